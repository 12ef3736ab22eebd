"""Recipes: the numbers that determine the result of training, with presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from detr.training.augment_config import AugmentConfig
from detr.training.schedule import Schedule
from pipelines.options import check_options, option

if TYPE_CHECKING:
    from detr.training.step import LossSettings

PAPER_SCALES = tuple(range(480, 801, 32))
SCENE_SCALES = ((0.34, (80, 96, 112)), (0.64, (96, 128, 144, 160)), (1.0, (144, 160, 176, 192, 208)))

ScalePhases = tuple[tuple[float, tuple[int, ...]], ...]


def scale_phase(text: str) -> tuple[float, tuple[int, ...]]:
    """Parse `UNTIL:480,512` to (share of the run, shorter sides); without UNTIL it is the whole run."""
    until, colon, sides = text.rpartition(":")
    if not colon:
        return 1.0, pixels(sides)
    share = _number(until, float)
    if not 0 <= share <= 1:
        raise ValueError(f"{until} is not in 0..1")
    return share, pixels(sides)


def pixels(text: str) -> tuple[int, ...]:
    """Return the numbers of `400,500,600`."""
    sides = tuple(int(_number(one, int)) for one in text.split(","))
    if min(sides) < 1:
        raise ValueError(f"{min(sides)} is less than 1")
    return sides


def pixel_range(text: str) -> tuple[int, int]:
    """Return the bounds of `384:600`."""
    least, _, most = text.partition(":")
    return pixels(least)[0], pixels(most)[0]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers that determine the result of training from given weights. A resumed run must have the same.

    The defaults are the paper's (section 4 and appendix A.4); factors of losses and matching have the original's names.
    """

    epochs: int = option("passes over the data set", default=300, metavar="N", at_least=1)
    lr: float = option(
        "learning rate of all parts except the backbone; does not change with the number of workers",
        default=1e-4, metavar="RATE", at_least=0,
    )  # fmt: skip
    lr_backbone: float = option("learning rate of the backbone; 0 freezes it", default=1e-5, metavar="RATE", at_least=0)
    lr_drop: int = option("divide the learning rates by ten every N epochs", default=200, metavar="N", at_least=1)
    schedule: Literal["step", "cosine"] = option(
        "step: drop the rates as in the paper; cosine: lower them gradually to a hundredth", default="step"
    )
    constant_share: float = option(
        "share of the run with the full learning rates, for --schedule cosine",
        default=0.0, metavar="SHARE", at_least=0, at_most=1,
    )  # fmt: skip
    warm_up_steps: int = option("steps in which the learning rates increase from 0", default=0, metavar="N", at_least=0)
    weight_decay: float = option("weight decay of AdamW", default=1e-4, metavar="X", at_least=0)
    clip_max_norm: float = option(
        "largest norm of all gradients together; 0: no clipping", default=0.1, metavar="NORM", at_least=0
    )
    effective_batch: int = option(
        "images in each step, over all workers and micro-batches", default=16, metavar="N", at_least=1
    )
    batch_size: int = option("images in each micro-batch of a worker", default=2, metavar="N", at_least=1)
    set_cost_class: float = option("factor of the class in the matching cost", default=1.0, metavar="X", at_least=0)
    set_cost_bbox: float = option(
        "factor of the L1 distance in the matching cost", default=5.0, metavar="X", at_least=0
    )
    set_cost_giou: float = option(
        "factor of the generalised IoU in the matching cost", default=2.0, metavar="X", at_least=0
    )
    class_loss_coef: float = option("factor of the class loss", default=1.0, metavar="X", at_least=0)
    bbox_loss_coef: float = option("factor of the L1 loss", default=5.0, metavar="X", at_least=0)
    giou_loss_coef: float = option("factor of the generalised IoU loss", default=2.0, metavar="X", at_least=0)
    eos_coef: float = option("weight of no-object in the class loss", default=0.1, metavar="X", at_least=0)
    aux_loss: bool = option("compute the losses for every decoder layer", default=True)
    warm_losses: bool = option("also train the output of the encoder: for small networks from scratch", default=False)
    dropout: float | None = option(
        "dropout in the transformer (the network's own)", default=None, metavar="SHARE", at_least=0, at_most=1
    )
    freeze_backbone: Literal["none", "stem_and_first", "all"] = option(
        "part of the backbone that is not trained", default="stem_and_first"
    )
    augmentation: Literal["coco", "scenes", "none"] = option(
        "augmentation of the training images: as in the paper, for drawn scenes, or none", default="coco"
    )
    flip: float = option("probability of a mirrored image", default=0.5, metavar="P", at_least=0, at_most=1)
    crop: float = option("probability of a random crop", default=0.5, metavar="P", at_least=0, at_most=1)
    scale_phases: ScalePhases = option(
        "shorter sides to choose from, such as 480,512,544; UNTIL is the share of the run at which the list ends",
        default=((1.0, PAPER_SCALES),), flag="--scales", metavar="[UNTIL:]PIXELS,...", parse=scale_phase, is_list=True,
    )  # fmt: skip
    longest: int = option(
        "limit of the longer side of a training image, unless it is cropped first",
        default=1333, flag="--train-longest", metavar="PIXELS", at_least=1,
    )  # fmt: skip
    crop_scales: tuple[int, ...] = option(
        "shorter sides before a crop", default=(400, 500, 600), metavar="PIXELS,...", parse=pixels
    )
    crop_range: tuple[int, int] = option(
        "width and height of a crop, in pixels", default=(384, 600), metavar="MIN:MAX", parse=pixel_range
    )
    one_shape_a_batch: bool = option("make batches of images of one shape and scale, without padding", default=False)
    sized_for: int = option(
        "shorter side of the models for which the sizes of the preset are meant; for other models they are scaled; "
        "0: no scaling (0 if one of --scales, --crop-scales, --crop-range and --train-longest is given)",
        default=0, metavar="PIXELS", at_least=0,
    )  # fmt: skip
    similar_sizes: bool = option(
        "use images of similar sizes in each step, for little padding and short waits between workers", default=False
    )
    bf16: bool = option("compute the network in bfloat16; the losses stay in float32", default=False)
    ema_decay: float = option(
        "decay of a moving average of the weights, which is then the result; 0: no average",
        default=0.0, metavar="X", at_least=0, at_most=1,
    )  # fmt: skip
    seed: int = option("random seed of weights, order, augmentation and dropout", default=42, metavar="N", at_least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.ema_decay == 1:
            raise ValueError("ema decay: 1.0 must be at least 0 and below 1")
        if self.effective_batch % self.batch_size:
            raise ValueError(
                f"effective batch: {self.effective_batch} images are not a whole number of micro-batches of "
                f"{self.batch_size}. Give a multiple of --batch-size."
            )
        if self.warm_losses and not self.one_shape_a_batch:
            raise ValueError("--warm-losses needs batches without padding; give --one-shape-a-batch, too")
        if self.one_shape_a_batch and self.similar_sizes:
            raise ValueError(
                "similar sizes: it cannot be combined with batches of one shape; give --no-one-shape-a-batch, too"
            )
        if self.one_shape_a_batch and self.augmentation == "coco" and self.crop > 0:
            raise ValueError("one shape a batch: crops are of many shapes; give --crop 0, too")
        if [until for until, _ in self.scale_phases] != sorted({until for until, _ in self.scale_phases}) or (
            not self.scale_phases or self.scale_phases[-1][0] != 1.0 or self.scale_phases[0][0] <= 0
        ):
            raise ValueError("scales: the phases must end at growing shares of the run, the last at 1")
        for phase in range(len(self.scale_phases)):
            self._augment_of(self.scale_phases[phase][1])  # has its own checks
        self.learning_schedule  # noqa: B018 - as above

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step. This is the number of virtual readers, and so the largest number of workers."""
        return self.effective_batch // self.batch_size

    @property
    def learning_schedule(self) -> Schedule:
        """The schedule of the learning rates."""
        return Schedule(
            kind=self.schedule,
            epochs=self.epochs,
            drop=self.lr_drop,
            warm_up_steps=self.warm_up_steps,
            constant_share=self.constant_share,
        )

    @property
    def losses(self) -> LossSettings:
        """The weights of the parts of the loss."""
        from detr.training.criterion import LossWeights
        from detr.training.matcher import MatchWeights
        from detr.training.step import LossSettings

        return LossSettings(
            weights=LossWeights(self.class_loss_coef, self.bbox_loss_coef, self.giou_loss_coef, self.eos_coef),
            match_weights=MatchWeights(self.set_cost_class, self.set_cost_bbox, self.set_cost_giou),
            auxiliary=self.aux_loss,
            warm=self.warm_losses,
        )

    def scales(self, share: float) -> tuple[int, ...]:
        """Return the shorter sides to draw from after a share of the run, in 0..1."""
        return next((sides for until, sides in self.scale_phases if share < until), self.scale_phases[-1][1])

    def augment(self, share: float) -> AugmentConfig:
        """Return the paper's augmentation with the scales after a share of the run."""
        return self._augment_of(self.scales(share))

    def _augment_of(self, scales: tuple[int, ...]) -> AugmentConfig:
        from detr.training.augment_config import AugmentConfig

        return AugmentConfig(
            flip=self.flip,
            scales=scales,
            longest=self.longest,
            crop=self.crop,
            crop_scales=self.crop_scales,
            crop_range=self.crop_range,
        )

    def for_model(self, shorter: int, longest: int) -> Recipe:
        """Return the recipe with sizes for a model whose images have these sides, in pixels.

        A DETR learns objects at the sizes of training: a model for 192 pixels that is fine-tuned at 480 to 800 pixels
        finds less than before (docs/measurements/training.md).
        """
        if not self.sized_for:
            return self
        share = shorter / self.sized_for

        def scaled(sides: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(sorted({max(1, round(side * share)) for side in sides}))

        least, most = self.crop_range
        return replace(
            self,
            scale_phases=tuple((until, scaled(sides)) for until, sides in self.scale_phases),
            crop_scales=scaled(self.crop_scales),
            crop_range=(max(1, round(least * share)), max(1, round(most * share))),
            longest=longest,
            sized_for=0,
        )

    def as_json(self) -> dict[str, Any]:
        """Return all values, for the run's record."""
        values = asdict(self)
        if not self.similar_sizes:
            del values["similar_sizes"]  # records of runs from before this option do not have it
        if not self.sized_for:
            del values["sized_for"]  # as above
        return values


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # the paper's and the model card's: 40.6 AP with R50 (published)
        "paper-300": Recipe(sized_for=800),
        # of the released weights: 42.0 AP with R50 (published), batch 64
        "released-500": Recipe(epochs=500, lr_drop=400, effective_batch=64, sized_for=800),
        # from a trained DETR to new classes with a few hundred images
        "finetune": Recipe(epochs=60, lr_drop=40, effective_batch=8, sized_for=800),
        # the embedded model's, from scratch: see detr/weights/scenes/README.md
        "scenes": Recipe(
            epochs=29,
            lr=8e-4,
            lr_backbone=1.6e-3,
            schedule="cosine",
            constant_share=0.53,
            warm_up_steps=150,
            clip_max_norm=0.5,
            effective_batch=48,
            batch_size=16,
            class_loss_coef=5.0,
            warm_losses=True,
            freeze_backbone="none",
            augmentation="scenes",
            scale_phases=SCENE_SCALES,
            sized_for=192,
            one_shape_a_batch=True,
            ema_decay=0.998,
            seed=0,
        ),
    }
)
"""Presets; another value is `replace(RECIPES["paper-300"], epochs=150)`."""


def differing_batch(name: str, recipe: Recipe) -> str | None:
    """Return a note if the effective batch differs from the preset's, to which the learning rates belong."""
    usual = RECIPES[name].effective_batch
    if recipe.effective_batch == usual:
        return None
    return (
        f"the effective batch is {recipe.effective_batch} images, but the recipe {name} has {usual}: "
        f"its learning rates ({recipe.lr:g}, backbone {recipe.lr_backbone:g}) are not scaled"
    )


def _number(text: str, kind: type[float] | type[int]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
