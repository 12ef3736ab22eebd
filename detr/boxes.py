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
    """Return the areas of `(..., 4)` corner boxes; negative if the corners of one axis are exchanged."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def iou(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and union area of xyxy boxes `(..., 4)` in any one unit, whose leading dimensions broadcast.

    Equal shapes are compared row by row; `iou(a[:, None], b[None])` returns all pairs, `(N, M)`. The IoU of two boxes
    without area is NaN.
    """
    xmin_a, ymin_a, xmax_a, ymax_a = boxes_a.unbind(-1)
    xmin_b, ymin_b, xmax_b, ymax_b = boxes_b.unbind(-1)
    width = (torch.minimum(xmax_a, xmax_b) - torch.maximum(xmin_a, xmin_b)).clamp(min=0)
    height = (torch.minimum(ymax_a, ymax_b) - torch.maximum(ymin_a, ymin_b)).clamp(min=0)
    intersection = width * height
    union = area(boxes_a) + area(boxes_b) - intersection
    return intersection / union, union


def generalized_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return the generalised IoU, in (-1, 1], of boxes as `iou` takes them (Rezatofighi et al. 2019).

    Boxes must have xmax >= xmin and ymax >= ymin; this is not checked, because the check would synchronise with the
    device.
    """
    overlap, union = iou(boxes_a, boxes_b)
    xmin_a, ymin_a, xmax_a, ymax_a = boxes_a.unbind(-1)
    xmin_b, ymin_b, xmax_b, ymax_b = boxes_b.unbind(-1)
    enclosing = (torch.maximum(xmax_a, xmax_b) - torch.minimum(xmin_a, xmin_b)) * (
        torch.maximum(ymax_a, ymax_b) - torch.minimum(ymin_a, ymin_b)
    )
    return overlap - (enclosing - union) / enclosing
