"""Augmentations of drawn scenes that keep their labels: mirrored, transposed, with exchanged colours.

They are for classes that do not depend on mirroring, rotation or colour, such as those of the scenes;
`detr.training.augment` is for photographs. A picture is uint8 `(3, H, W)`. No function changes its arguments.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from detr.images.decoding import resize, resize_shape
from detr.training.targets import ImageTarget

LEAST_GAIN, MOST_GAIN = 0.8, 1.15


@dataclass(frozen=True, slots=True)
class SceneAugmentation:
    """The changes of one scene, in the order of the attributes; drawn before its pixels are read.

    Attributes:
        resized_height: height after the first resize, in pixels.
        resized_width: width after the first resize, in pixels.
        columns_mirrored: left and right are exchanged.
        rows_mirrored: top and bottom are exchanged.
        transposed: rows and columns are exchanged.
        channels: which of the old channels becomes each of the new ones.
        inverted: 255 minus the value.
        gain: factor of the values.
        height: final height, in pixels.
        width: final width, in pixels.
    """

    resized_height: int
    resized_width: int
    columns_mirrored: bool
    rows_mirrored: bool
    transposed: bool
    channels: tuple[int, int, int]
    inverted: bool
    gain: float
    height: int
    width: int


def draw_scene_augmentation(
    height: int, width: int, generator: Generator, *, shorter: int, longest: int, transposed: bool
) -> SceneAugmentation:
    """Draw the changes of a scene of this size, each with probability 1/2.

    Args:
        height: height of the scene in pixels.
        width: width of the scene in pixels.
        generator: source of all randomness; the number of draws is constant.
        shorter: the shorter side to resize to, and
        longest: what the longer one may be, by the rule of `detr.images.decoding.resize_shape`.
        transposed: exchange rows and columns. The caller decides, so that a batch has one shape; a square scene is also
            transposed at random.

    Raises:
        TooExtreme: a side would become 0 pixels.
    """
    resized_height, resized_width = resize_shape(height, width, shorter=shorter, longest=longest)
    columns, rows, turned, inverted = (torch.rand(4, generator=generator) < 0.5).tolist()
    first, second, third = torch.randperm(3, generator=generator).tolist()
    gain = LEAST_GAIN + (MOST_GAIN - LEAST_GAIN) * float(torch.rand((), generator=generator))
    return SceneAugmentation(
        resized_height,
        resized_width,
        columns_mirrored=columns,
        rows_mirrored=rows,
        transposed=transposed != (turned and resized_height == resized_width),
        channels=(first, second, third),
        inverted=inverted,
        gain=gain,
        height=resized_width if transposed else resized_height,
        width=resized_height if transposed else resized_width,
    )


def augment_scene_image(image: Tensor, augmentation: SceneAugmentation) -> Tensor:
    """Apply `augmentation` to `image`, uint8 `(3, H, W)`; return uint8 `(3, height, width)`."""
    # shrink first: later changes then process fewer pixels, and the order does not affect their result
    image = resize(image, augmentation.resized_height, augmentation.resized_width)
    mirrored = [axis for axis, said in ((1, augmentation.rows_mirrored), (2, augmentation.columns_mirrored)) if said]
    image = image.flip(mirrored)
    if augmentation.transposed:
        image = image.transpose(1, 2)
    image = image[list(augmentation.channels)]
    if augmentation.inverted:
        image = 255 - image
    return (image * augmentation.gain).round().clamp(0, 255).to(torch.uint8)


def augment_scene_target(target: ImageTarget, augmentation: SceneAugmentation) -> ImageTarget:
    """Return the objects at their positions after `augment_scene_image`."""
    height, width = augmentation.resized_height, augmentation.resized_width
    along_x, along_y = width / target.width, height / target.height
    x0, y0, x1, y1 = (target.boxes_xyxy * torch.tensor([along_x, along_y, along_x, along_y])).unbind(-1)
    if augmentation.columns_mirrored:
        x0, x1 = width - x1, width - x0
    if augmentation.rows_mirrored:
        y0, y1 = height - y1, height - y0
    if augmentation.transposed:
        x0, y0, x1, y1 = y0, x0, y1, x1
    return replace(
        target,
        boxes_xyxy=torch.stack((x0, y0, x1, y1), dim=-1),
        height=augmentation.height,
        width=augmentation.width,
    )
