"""Converts the images of a micro-batch to the tensors of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from detr.batching import pad
from detr.images.decoding import SizeRule, resize
from detr.images.results import ImageError
from detr.scenes.augment import SceneAugmentation, augment_scene_image, augment_scene_target, draw_scene_augmentation
from detr.training.augment import augment_image, augment_target, draw_augmentation, image_generator
from detr.training.augment_config import AugmentConfig
from detr.training.matcher import Target
from detr.training.targets import image_target
from pipelines.errors import RayDetrError
from pipelines.shards.reader import TrainingImage, decode_training_image
from pipelines.training.order import step_stream

_SCENE_LONGEST_SHARE = 5 / 3  # of the shorter side: 1333 / 800


class UnusableImage(Exception):
    """An image of a shard cannot be used for training. `index` is its position in the micro-batch."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message, index)
        self.message, self.index = message, index


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """A micro-batch on the CPU.

    Args:
        pixels: uint8 `(B, 3, H, W)` in channels-last memory. Images are at the top left; the padding is zero, and must
            be zero again after normalisation on the device.
        extents: `(B, 2)` int64, the (height, width) of each image.
        targets: Targets of each image; boxes are relative to the image without padding.
        image_ids: Id of each image.
        reader: Number of the virtual reader.
        step: Step of the epoch.
    """

    pixels: Tensor
    extents: Tensor
    targets: tuple[Target, ...]
    image_ids: tuple[int, ...]
    reader: int
    step: int


@dataclass(frozen=True, slots=True)
class Preparation:
    """Settings for preparing images and their targets. Can be sent to other processes.

    Args:
        augmentation: "coco" is the paper's; "scenes" is for classes that do not depend on mirroring or colour; "none"
            only resizes.
        class_of: (category id, class index) of every class; other categories are omitted.
        seed: Seed of the run.
        augment: Parameters of "coco".
        one_scale_a_batch: Resize all images of a micro-batch to one shorter side, for less padding; "scenes" then also
            turns all or none, so that equal shapes stay equal.
        scene_sides: Shorter sides for "scenes".
        size_rule: Size rule for "none".
    """

    augmentation: Literal["coco", "scenes", "none"]
    class_of: tuple[tuple[int, int], ...]
    seed: int
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    one_scale_a_batch: bool = False
    scene_sides: tuple[int, ...] = ()
    size_rule: SizeRule = field(default_factory=SizeRule)

    def __post_init__(self) -> None:
        if self.augmentation not in ("coco", "scenes", "none"):
            raise ValueError(f"augmentation: {self.augmentation!r} is not one of coco, scenes, none")
        if self.augmentation == "scenes" and not self.scene_sides:
            raise ValueError("scene sides: give at least one shorter side to resize scenes to")

    def prepare(self, images: Sequence[TrainingImage], *, epoch: int, step: int, reader: int) -> TrainBatch:
        """Return the micro-batch of these images, determined by the arguments and the seed on every machine.

        Random numbers of an image depend on (seed, epoch, image id), those of a micro-batch on (seed, epoch, step,
        reader).

        Raises:
            UnusableImage: an image cannot be decoded, does not have the size of its annotations, or is too narrow.
        """
        common = step_stream(self.seed, epoch, step, reader)
        scale = turned = None
        if self.one_scale_a_batch and self.augmentation == "coco":
            scale = self.augment.scales[common.integers(len(self.augment.scales))]
        if self.one_scale_a_batch and self.augmentation == "scenes":
            scale = self.scene_sides[common.integers(len(self.scene_sides))]
            turned = bool(common.integers(2))

        class_of = dict(self.class_of)
        pictures: list[Tensor] = []
        targets: list[Target] = []
        for index, image in enumerate(images):
            generator = image_generator(self.seed, epoch, image.image_id)
            try:
                picture, target = self._prepare_image(image, class_of, generator, scale, turned)
            except RayDetrError as error:
                raise UnusableImage(str(error), index) from error
            except (ImageError, ValueError) as error:
                raise UnusableImage(
                    f"image {image.image_id} ({image.file_name}) cannot be trained from: {error}", index
                ) from error
            pictures.append(picture)
            targets.append(target)
        height, width = (max((picture.shape[axis] for picture in pictures), default=0) for axis in (1, 2))
        pixels, extents = pad(pictures, height, width)
        return TrainBatch(
            pixels, extents, tuple(targets), tuple(image.image_id for image in images), reader=reader, step=step
        )

    def size(self, height: int, width: int, image_id: int, *, epoch: int) -> tuple[int, int]:
        """Return the height and width of an image after augmentation in an epoch.

        Not for micro-batches of one scale, because that depends on the step.

        Raises:
            TooExtreme: the image is too narrow.
        """
        generator = image_generator(self.seed, epoch, image_id)
        match self.augmentation:
            case "coco":
                drawn = draw_augmentation(height, width, generator, self.augment)
                return drawn.height, drawn.width
            case "scenes":
                scene = self._draw_scene(height, width, generator, None, None)
                return scene.height, scene.width
            case "none":
                return self.size_rule.shape(height, width)

    def _prepare_image(
        self,
        image: TrainingImage,
        class_of: dict[int, int],
        generator: Generator,
        scale: int | None,
        turned: bool | None,
    ) -> tuple[Tensor, Target]:
        """Return an image as uint8 `(3, H, W)` and its objects. Reads annotations first: that is cheap and may fail."""
        target = image_target(image.annotations, image.height, image.width, class_of=class_of)
        match self.augmentation:
            case "coco":
                drawn = draw_augmentation(image.height, image.width, generator, self.augment, scale=scale)
                target = augment_target(target, drawn)
                return augment_image(decode_training_image(image), drawn), target.normalised()
            case "scenes":
                scene = self._draw_scene(image.height, image.width, generator, scale, turned)
                target = augment_scene_target(target, scene)
                return augment_scene_image(decode_training_image(image), scene), target.normalised()
            case "none":
                height, width = self.size_rule.shape(image.height, image.width)
                return resize(decode_training_image(image), height, width), target.normalised()

    def _draw_scene(
        self, height: int, width: int, generator: Generator, scale: int | None, turned: bool | None
    ) -> SceneAugmentation:
        if scale is None:
            scale = self.scene_sides[int(torch.randint(len(self.scene_sides), (), generator=generator))]
        if turned is None:
            turned = bool(torch.rand((), generator=generator) < 0.5)
        longest = int(_SCENE_LONGEST_SHARE * scale)
        return draw_scene_augmentation(height, width, generator, shorter=scale, longest=longest, transposed=turned)
