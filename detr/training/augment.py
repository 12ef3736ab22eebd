"""The paper's training augmentation: mirror, then resize, or resize, crop and resize again (section 4).

All parameters are drawn first, from the picture's size, so that batches can be planned before a picture is decoded;
then the same steps are applied to its pixels and to its target. No function changes its arguments.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from detr.images.decoding import resize, resize_shape
from detr.training.augment_config import AugmentConfig
from detr.training.targets import ImageTarget


@dataclass(frozen=True, slots=True)
class Mirror:
    """Left and right are exchanged."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The picture becomes `height` x `width` pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Crop:
    """Keep `height` rows from `top` and `width` columns from `left`."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The operations on a picture of `source_height` x `source_width` pixels, and the resulting size."""

    steps: tuple[Mirror | Resize | Crop, ...]
    height: int
    width: int
    source_height: int
    source_width: int


def image_generator(seed: int, epoch: int, image_id: int) -> Generator:
    """Return the random generator of an image in an epoch; it depends on the three numbers only, on every machine."""
    digest = hashlib.sha256(f"{seed} {epoch} {image_id}".encode()).digest()
    # 32 bits: torch's CPU generator ignores the other bits of a seed (2.14.1)
    return Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def draw_augmentation(
    height: int, width: int, generator: Generator, config: AugmentConfig, *, scale: int | None = None
) -> Augmentation:
    """Draw a picture's augmentation in the original's order: mirror, with or without crop, sizes.

    Two differences from the original, both where it fails. The crop is limited to the picture's sides if they are
    smaller. A picture with an aspect above `longest` to the smallest of `crop_scales` (1333 to 400) is never cropped:
    before the crop the long side is not limited, and has 60,000 pixels at an aspect of 100.

    Args:
        height: height of the picture in pixels.
        width: width of the picture in pixels.
        generator: source of all randomness.
        config: probabilities and sizes.
        scale: final shorter side if the caller has drawn one for a whole batch.

    Raises:
        TooExtreme: the picture's aspect is twice `longest` or more, independent of what is drawn: it cannot be used for
            training.
    """
    steps: list[Mirror | Resize | Crop] = []
    final_height, final_width = height, width
    if _chance(config.flip, generator):
        steps.append(Mirror())
    cropped = _chance(config.crop, generator)
    if cropped and max(height, width) * min(config.crop_scales) <= config.longest * min(height, width):
        side = config.crop_scales[_integer(0, len(config.crop_scales) - 1, generator)]
        before = Resize(*resize_shape(height, width, shorter=side, longest=None))
        crop = _draw_crop(before.height, before.width, generator, config)
        steps += [before, crop]
        final_height, final_width = crop.height, crop.width
    if scale is None:
        scale = config.scales[_integer(0, len(config.scales) - 1, generator)]
    last = Resize(*resize_shape(final_height, final_width, shorter=scale, longest=config.longest))
    return Augmentation((*steps, last), last.height, last.width, height, width)


def augment_image(image: Tensor, augmentation: Augmentation) -> Tensor:
    """Apply all steps to `image`, uint8 `(3, H, W)`; return uint8 `(3, height, width)`.

    Raises:
        ValueError: the picture is not of the size that the augmentation was drawn for.
    """
    _check_size(augmentation, image.shape[1], image.shape[2])
    for step in augmentation.steps:
        match step:
            case Mirror():
                image = image.flip(2)
            case Resize(height, width):
                image = resize(image, height, width)
            case Crop(top, left, height, width):
                image = image[:, top : top + height, left : left + width]
    return image


def augment_target(target: ImageTarget, augmentation: Augmentation) -> ImageTarget:
    """Apply all steps to `target`, in the original's float32 arithmetic.

    A crop clips boxes at its edges and drops those without area; thin slivers are kept. All targets may be dropped.

    Raises:
        ValueError: the target is not of the size that the augmentation was drawn for.
    """
    _check_size(augmentation, target.height, target.width)
    for step in augmentation.steps:
        match step:
            case Mirror():
                target = _mirror_target(target)
            case Resize():
                target = _resize_target(target, step)
            case Crop():
                target = _crop_target(target, step)
    return target


def _draw_crop(height: int, width: int, generator: Generator, config: AugmentConfig) -> Crop:
    least, most = config.crop_range
    crop_width = _integer(min(least, width), min(most, width), generator)
    crop_height = _integer(min(least, height), min(most, height), generator)
    top = _integer(0, height - crop_height, generator)
    left = _integer(0, width - crop_width, generator)
    return Crop(top, left, crop_height, crop_width)


def _chance(probability: float, generator: Generator) -> bool:
    return float(torch.rand((), generator=generator, dtype=torch.float64)) < probability


def _integer(least: int, most: int, generator: Generator) -> int:
    """Return a uniformly drawn integer, both ends included."""
    return int(torch.randint(least, most + 1, (), generator=generator))


def _mirror_target(target: ImageTarget) -> ImageTarget:
    x0, y0, x1, y1 = target.boxes_xyxy.unbind(-1)
    boxes = torch.stack((target.width - x1, y0, target.width - x0, y1), dim=-1)
    return replace(target, boxes_xyxy=boxes)


def _resize_target(target: ImageTarget, step: Resize) -> ImageTarget:
    along_x, along_y = step.width / target.width, step.height / target.height
    return replace(
        target,
        boxes_xyxy=target.boxes_xyxy * torch.tensor([along_x, along_y, along_x, along_y]),
        height=step.height,
        width=step.width,
    )


def _crop_target(target: ImageTarget, step: Crop) -> ImageTarget:
    boxes = target.boxes_xyxy - torch.tensor([step.left, step.top, step.left, step.top])
    edges = torch.tensor([step.width, step.height, step.width, step.height], dtype=torch.float32)
    boxes = boxes.minimum(edges).clamp(min=0)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return ImageTarget(target.labels[kept], boxes[kept], step.height, step.width)


def _check_size(augmentation: Augmentation, height: int, width: int) -> None:
    if (height, width) != (augmentation.source_height, augmentation.source_width):
        raise ValueError(
            f"the augmentation was drawn for {augmentation.source_width} x {augmentation.source_height} pixels "
            f"(width x height), this picture has {width} x {height}: draw it from the size of the picture as decoded"
        )
