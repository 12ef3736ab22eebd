"""Recipes: every number that determines the result of a training, and presets that work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from detr.training.augment import AugmentConfig
from detr.training.criterion import LossWeights
from detr.training.matcher import MatchWeights
from detr.training.schedule import Schedule
from detr.training.step import LossSettings

PAPER_SCALES = tuple(range(480, 801, 32))
SCENE_SCALES = ((0.34, (80, 96, 112)), (0.64, (96, 128, 144, 160)), (1.0, (144, 160, 176, 192, 208)))

# 0 or more, and finite
_RATES_AND_FACTORS = (
    "lr", "lr_backbone", "warm_up_steps", "weight_decay", "clip_max_norm", "set_cost_class", "set_cost_bbox",
    "set_cost_giou", "class_loss_coef", "bbox_loss_coef", "giou_loss_coef", "eos_coef", "seed",
    "sized_for",
)  # fmt: skip

ScalePhases = tuple[tuple[float, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides which weights come out of a data set, given where it starts; a resumed run must be given the same.

    The defaults are the paper's (spec: section 4 and appendix A.4; flags of the original by their names).

    Args:
        epochs: Passes over the data set.
        lr: AdamW's rate of everything but the backbone. It does not change with the number of workers.
        lr_backbone: Of the backbone; 0 freezes it.
        lr_drop: Epochs after which the rates are divided by ten, again and again.
        schedule: "step" as the paper, or "cosine": full rate until `constant_share`, then down to a hundredth.
        constant_share: Share of the run at full rate; cosine only.
        warm_up_steps: Over which the rates grow from nothing.
        weight_decay: AdamW's, on every parameter.
        clip_max_norm: Of all gradients together; 0 does not clip.
        effective_batch: Images a step of the optimiser, over all workers and micro-steps.
        batch_size: Images of a micro-batch: what one worker computes at once.
        set_cost_class: Of the matching; so are the two that follow.
        set_cost_bbox: See `set_cost_class`.
        set_cost_giou: See `set_cost_class`.
        class_loss_coef: Factor of the class loss; the original's is fixed at 1.
        bbox_loss_coef: Factor of the L1 loss.
        giou_loss_coef: Factor of the generalised IoU loss.
        eos_coef: What a query without object weighs in the class loss.
        aux_loss: Whether every decoder layer is trained.
        warm_losses: Whether the encoder's output is trained directly, too (`detr.training.dense_losses`).
        dropout: In the transformer; None is the network's own.
        freeze_backbone: "stem_and_first" as the paper, "none", or "all".
        augmentation: "coco" is the paper's (flip, several scales, crop), "scenes" for drawn shapes, "none".
        flip: Probability of a mirrored image.
        crop: Probability of a random crop.
        scale_phases: (until this share of the run, shorter sides in pixels to draw from).
        longest: The longer side in pixels, unless the crop is taken first.
        sized_for: Shorter side, in pixels, of models that all these sizes are meant for; for a model that is used at
            another size they are scaled (`for_model`). 0 never scales: give it with sizes of your own.
        crop_scales: Shorter sides in pixels before a crop.
        crop_range: Least and most width and height of a crop, in pixels.
        one_shape_a_batch: Whether a micro-batch has images of one shape and one scale only, so that nothing is padded.
        similar_sizes: Whether images of similar sizes share a step, in all micro-batches, so that little is padded and
            no worker waits long for another. Each image is augmented as without it; which ones meet changes.
        bf16: Whether the network computes in bfloat16 (autocast); the loss never does.
        ema_decay: Of a moving average of the weights, which is what is evaluated and kept then; 0 is none.
        seed: Of the initial weights, order, augmentation and dropout.
    """

    epochs: int = 300
    lr: float = 1e-4
    lr_backbone: float = 1e-5
    lr_drop: int = 200
    schedule: Literal["step", "cosine"] = "step"
    constant_share: float = 0.0
    warm_up_steps: int = 0
    weight_decay: float = 1e-4
    clip_max_norm: float = 0.1
    effective_batch: int = 16
    batch_size: int = 2
    set_cost_class: float = 1.0
    set_cost_bbox: float = 5.0
    set_cost_giou: float = 2.0
    class_loss_coef: float = 1.0
    bbox_loss_coef: float = 5.0
    giou_loss_coef: float = 2.0
    eos_coef: float = 0.1
    aux_loss: bool = True
    warm_losses: bool = False
    dropout: float | None = None
    freeze_backbone: Literal["none", "stem_and_first", "all"] = "stem_and_first"
    augmentation: Literal["coco", "scenes", "none"] = "coco"
    flip: float = 0.5
    crop: float = 0.5
    scale_phases: ScalePhases = ((1.0, PAPER_SCALES),)
    longest: int = 1333
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    one_shape_a_batch: bool = False
    sized_for: int = 0
    similar_sizes: bool = False
    bf16: bool = False
    ema_decay: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("epochs", "lr_drop", "effective_batch", "batch_size", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)}: {getattr(self, name)} is not at least 1")
        for name in _RATES_AND_FACTORS:
            if not 0 <= getattr(self, name) < math.inf:  # NaN, too, which is below nothing
                raise ValueError(f"{_flag(name)}: {getattr(self, name)} is not a number of 0 or more")
        for name in ("flip", "crop", "constant_share", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{_flag(name)}: {value} is not in 0..1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema decay: {self.ema_decay} is not in 0..1 and below 1")
        if self.augmentation not in ("coco", "scenes", "none"):
            raise ValueError(f"augmentation: {self.augmentation!r} is not one of coco, scenes, none")
        if self.freeze_backbone not in ("none", "stem_and_first", "all"):
            raise ValueError(f"freeze backbone: {self.freeze_backbone!r} is not one of none, stem_and_first, all")
        if self.effective_batch % self.batch_size:
            raise ValueError(
                f"effective batch: {self.effective_batch} images are not a whole number of micro-batches of "
                f"{self.batch_size}. Give a multiple of --batch-size."
            )
        if self.warm_losses and not self.one_shape_a_batch:
            raise ValueError("warm losses: they need batches without padding; give --one-shape-a-batch, too")
        if self.one_shape_a_batch and self.similar_sizes:
            raise ValueError(
                "similar sizes: images of one shape need no similar ones; give --no-one-shape-a-batch, too"
            )
        if self.one_shape_a_batch and self.augmentation == "coco" and self.crop > 0:
            raise ValueError("one shape a batch: crops are of many shapes; give --crop 0, too")
        if [until for until, _ in self.scale_phases] != sorted({until for until, _ in self.scale_phases}) or (
            not self.scale_phases or self.scale_phases[-1][0] != 1.0 or self.scale_phases[0][0] <= 0
        ):
            raise ValueError("scales: the phases must end at growing shares of the run, the last at 1")
        for phase in range(len(self.scale_phases)):
            self._augment_of(self.scale_phases[phase][1])  # has its own checks
        self.learning_schedule  # noqa: B018 - likewise

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one step: into how many readers an epoch is dealt, and so the most workers."""
        return self.effective_batch // self.batch_size

    @property
    def learning_schedule(self) -> Schedule:
        """How the learning rates change."""
        return Schedule(
            kind=self.schedule,
            epochs=self.epochs,
            drop=self.lr_drop,
            warm_up_steps=self.warm_up_steps,
            constant_share=self.constant_share,
        )

    @property
    def losses(self) -> LossSettings:
        """What is added up to the loss."""
        return LossSettings(
            weights=LossWeights(self.class_loss_coef, self.bbox_loss_coef, self.giou_loss_coef, self.eos_coef),
            match_weights=MatchWeights(self.set_cost_class, self.set_cost_bbox, self.set_cost_giou),
            auxiliary=self.aux_loss,
            warm=self.warm_losses,
        )

    def scales(self, share: float) -> tuple[int, ...]:
        """Return the shorter sides to draw from when `share` of the run, 0..1, is done."""
        return next((sides for until, sides in self.scale_phases if share < until), self.scale_phases[-1][1])

    def augment(self, share: float) -> AugmentConfig:
        """Return the paper's augmentation with the scales of that share of the run."""
        return self._augment_of(self.scales(share))

    def _augment_of(self, scales: tuple[int, ...]) -> AugmentConfig:
        return AugmentConfig(
            flip=self.flip,
            scales=scales,
            longest=self.longest,
            crop=self.crop,
            crop_scales=self.crop_scales,
            crop_range=self.crop_range,
        )

    def for_model(self, shorter: int, longest: int) -> Recipe:
        """Return the recipe with the sizes for a model that is used with pictures of these sides, in pixels.

        A DETR learns objects at the sizes at which it sees them: trained at 480 to 800 pixels, one that is used at 192
        finds less afterwards than before (docs/measurements/training.md).
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
            del values["similar_sizes"]  # runs that were begun before there was one have records without it
        if not self.sized_for:
            del values["sized_for"]  # as above
        return values


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # the paper's and the model card's: 40.6 AP with R50 (published)
        "paper-300": Recipe(sized_for=800),
        # behind the released weights: 42.0 AP with R50 (published), batch 64
        "released-500": Recipe(epochs=500, lr_drop=400, effective_batch=64, sized_for=800),
        # from a trained DETR to own classes and a few hundred images
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
    """Return a sentence where the effective batch is not that of the preset, whose rates were found for it."""
    usual = RECIPES[name].effective_batch
    if recipe.effective_batch == usual:
        return None
    return (
        f"the effective batch is {recipe.effective_batch} images, where the recipe {name} has {usual}: "
        f"its learning rates ({recipe.lr:g}, backbone {recipe.lr_backbone:g}) are not scaled"
    )


def _flag(name: str) -> str:
    return name.replace("_", " ")
