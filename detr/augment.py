"""Changes of a training picture that keep its truth: pure functions of a picture, its target and a generator.

A picture is uint8 `(3, H, W)`; a target's boxes are shares of it, so a resize leaves them alone. No function changes
its arguments.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from detr.matcher import Target

LEAST_GAIN, MOST_GAIN = 0.8, 1.15


def mirror_columns(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Exchange left and right."""
    x, y, width, height = target.boxes_cxcywh.unbind(-1)
    return image.flip(2), replace(target, boxes_cxcywh=torch.stack((1 - x, y, width, height), dim=-1))


def mirror_rows(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Exchange top and bottom."""
    x, y, width, height = target.boxes_cxcywh.unbind(-1)
    return image.flip(1), replace(target, boxes_cxcywh=torch.stack((x, 1 - y, width, height), dim=-1))


def transpose(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Exchange rows and columns: landscape becomes portrait."""
    x, y, width, height = target.boxes_cxcywh.unbind(-1)
    return image.transpose(1, 2), replace(target, boxes_cxcywh=torch.stack((y, x, height, width), dim=-1))


def augment_scene(image: Tensor, target: Target, generator: Generator) -> tuple[Tensor, Target]:
    """Mirror along each axis, permute colours, invert and brighten, each at random; a square one is also transposed.

    Only for classes that no mirror image, turn or colour changes, such as those of the scenes.

    Args:
        image: uint8 `(3, H, W)`.
        target: its objects.
        generator: all chance comes from it.
    """
    coins = torch.rand(4, generator=generator) < 0.5
    for coin, change in zip(coins.tolist(), (mirror_columns, mirror_rows, transpose), strict=False):
        if coin and (change is not transpose or image.shape[1] == image.shape[2]):
            image, target = change(image, target)
    image = image[torch.randperm(3, generator=generator)]
    if coins[3]:
        image = 255 - image
    gain = LEAST_GAIN + (MOST_GAIN - LEAST_GAIN) * float(torch.rand((), generator=generator))
    return (image * gain).round().clamp(0, 255).to(torch.uint8), target
