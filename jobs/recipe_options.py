"""The options of a recipe: one for every number that decides what comes out; what is not given is the preset's."""

import argparse
from collections.abc import Callable
from typing import Any

from jobs.options import count, share

RECIPE_NAMES = ("paper-300", "released-500", "finetune", "scenes")
FREEZING = ("none", "stem_and_first", "all")
AUGMENTATIONS = ("coco", "scenes", "none")
_SIZES = ("scale_phases", "crop_scales", "crop_range", "longest")

# option without hyphens (the recipe's field) -> what its value is, and what it says
_NUMBERS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "epochs": (count, "N", "passes over the data set"),
    "lr": (float, "RATE", "learning rate, except of the backbone; does not change with the number of workers"),
    "lr_backbone": (float, "RATE", "learning rate of the backbone; 0 freezes it"),
    "lr_drop": (count, "N", "divide the learning rates by ten every N epochs"),
    "constant_share": (share, "SHARE", "share of the run at the full rate, with --schedule cosine"),
    "warm_up_steps": (int, "N", "steps over which the rates grow from 0"),
    "weight_decay": (float, "X", "weight decay of AdamW"),
    "clip_max_norm": (float, "NORM", "largest norm of all gradients together; 0 does not clip"),
    "effective_batch": (count, "N", "images in each step, over all workers and micro-batches"),
    "batch_size": (count, "N", "images in each micro-batch of a worker"),
    "set_cost_class": (float, "X", "factor of the class in the matching cost"),
    "set_cost_bbox": (float, "X", "factor of the L1 distance in the matching cost"),
    "set_cost_giou": (float, "X", "factor of the generalised IoU in the matching cost"),
    "class_loss_coef": (float, "X", "factor of the class loss"),
    "bbox_loss_coef": (float, "X", "factor of the L1 loss"),
    "giou_loss_coef": (float, "X", "factor of the generalised IoU loss"),
    "eos_coef": (float, "X", "weight of no-object in the class loss"),
    "dropout": (share, "SHARE", "dropout in the transformer (the network's own)"),
    "flip": (share, "P", "probability of a mirrored image"),
    "crop": (share, "P", "probability of a random crop"),
    "longest": (count, "PIXELS", "limit of the longer side of a training image"),
    "sized_for": (
        int,
        "PIXELS",
        "shorter side of models that the preset's sizes are for; for others they are scaled; 0 does not scale (0 if "
        "one of --scales, --crop-scales, --crop-range and --train-longest is given)",
    ),
    "ema_decay": (share, "X", "decay of a moving average of the weights, which is then the result; 0: no average"),
    "seed": (int, "N", "random seed of weights, order, augmentation and dropout"),
}


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add --recipe and an option for each of its values."""
    parser.add_argument(
        "--recipe",
        choices=RECIPE_NAMES,
        default="paper-300",
        help="preset of the options below: the paper's; that of the released weights; fine-tuning on a few hundred "
        "images; that of the model `scenes` (%(default)s)",
    )
    group = parser.add_argument_group("recipe", "The preset gives the defaults.")
    for name, (kind, metavar, text) in _NUMBERS.items():
        option = "--train-longest" if name == "longest" else f"--{name.replace('_', '-')}"
        group.add_argument(option, dest=f"recipe_{name}", type=kind, metavar=metavar, help=text)
    group.add_argument("--schedule", dest="recipe_schedule", choices=("step", "cosine"),
                       help="step: drop the rates as in the paper; cosine: lower them gradually")  # fmt: skip
    group.add_argument("--freeze-backbone", dest="recipe_freeze_backbone", choices=FREEZING,
                       help="part of the backbone that is not trained")  # fmt: skip
    group.add_argument("--augmentation", dest="recipe_augmentation", choices=AUGMENTATIONS,
                       help="that of the paper, that for drawn scenes, or none")  # fmt: skip
    group.add_argument(
        "--scales",
        dest="recipe_scale_phases",
        type=scale_phase,
        nargs="+",
        metavar="[UNTIL:]PIXELS,...",
        help="shorter sides to choose from, such as 480,512,544; UNTIL is the share of the run at which the list ends",
    )
    group.add_argument("--crop-scales", dest="recipe_crop_scales", type=pixels, metavar="PIXELS,...",
                       help="shorter sides before a crop")  # fmt: skip
    group.add_argument("--crop-range", dest="recipe_crop_range", type=pixel_range, metavar="MIN:MAX",
                       help="width and height of a crop, in pixels")  # fmt: skip
    for name, text in (
        ("aux_loss", "train every decoder layer"),
        ("warm_losses", "also train the output of the encoder: for small networks from scratch"),
        ("one_shape_a_batch", "batches of one shape and scale, without padding"),
        ("similar_sizes", "steps of images of similar sizes, for little padding and short waits between workers"),
        ("bf16", "compute the network in bfloat16"),
    ):
        group.add_argument(
            f"--{name.replace('_', '-')}", dest=f"recipe_{name}", action=argparse.BooleanOptionalAction, help=text
        )


def recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe's fields that the line gives."""
    prefix = "recipe_"
    values = {
        name.removeprefix(prefix): value
        for name, value in vars(args).items()
        if name.startswith(prefix) and value is not None
    } | ({"scale_phases": _phases(args.recipe_scale_phases)} if args.recipe_scale_phases else {})
    return ({} if values.keys().isdisjoint(_SIZES) else {"sized_for": 0}) | values


def scale_phase(text: str) -> tuple[float, tuple[int, ...]]:
    """Return (until which share of the run, shorter sides) of `UNTIL:480,512`; without UNTIL it is the whole run."""
    until, colon, sides = text.rpartition(":")
    return (share(until) if colon else 1.0, pixels(sides))


def pixels(text: str) -> tuple[int, ...]:
    """Return the numbers of `400,500,600`."""
    return tuple(count(one) for one in text.split(","))


def pixel_range(text: str) -> tuple[int, int]:
    """Return the bounds of `384:600`."""
    least, _, most = text.partition(":")
    return count(least), count(most)


def _phases(given: list[tuple[float, tuple[int, ...]]]) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """Return the phases; several lists without UNTIL are one."""
    if all(until == 1.0 for until, _ in given):
        return ((1.0, tuple(side for _, sides in given for side in sides)),)
    return tuple(given)
