"""Boxes: formats, areas, IoU and generalised IoU, as pure functions on tensors.

`xyxy` is (xmin, ymin, xmax, ymax), `cxcywh` is (centre x, centre y, width, height), both in any one unit, y downwards,
continuous coordinates: a box from 0 to 10 is 10 wide.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn `(..., 4)` centre and size into corners."""
    centre_x, centre_y, width, height = boxes.unbind(-1)
    return torch.stack(
        (centre_x - 0.5 * width, centre_y - 0.5 * height, centre_x + 0.5 * width, centre_y + 0.5 * height), dim=-1
    )


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Turn `(..., 4)` corners into centre and size."""
    xmin, ymin, xmax, ymax = boxes.unbind(-1)
    return torch.stack(((xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin), dim=-1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas of `(..., 4)` corner boxes; negative where one side is turned round."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def iou(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and union area of every pair: `(N, 4)` and `(M, 4)` xyxy -> two `(N, M)`.

    The IoU of two boxes without area is NaN.
    """
    top_left = torch.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    bottom_right = torch.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    union = area(boxes_a)[:, None] + area(boxes_b)[None, :] - intersection
    return intersection / union, union


def generalized_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Generalised IoU of every pair: `(N, 4)` and `(M, 4)` xyxy in any one unit -> `(N, M)` in (-1, 1].

    Source: Rezatofighi et al. 2019. Boxes must have xmax >= xmin and ymax >= ymin; this is not checked, because the
    check would wait for the device.
    """
    overlap, union = iou(boxes_a, boxes_b)
    top_left = torch.minimum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    bottom_right = torch.maximum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    enclosing = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    return overlap - (enclosing - union) / enclosing
