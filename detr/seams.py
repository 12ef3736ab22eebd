"""Detections of overlapping views of one picture joined into those of the picture, each object once."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from detr.postprocess import Detections
from detr.tiles import Tile

SEAM_SHARE: Final = 0.01
"""A box touches a seam if it ends within this share of the tile's side from it."""

COVERED: Final = 0.5
"""The share of a cut box that a larger one must cover to replace it."""

MOST_IOU: Final = 0.5
"""Of two boxes of one class that overlap by more, the one with the lower score is dropped."""

_BLOCK: Final = 2**22  # pairs of boxes that are compared at once: 16 MiB for each of a few intermediate results


def join_views(views: Sequence[Tile], found: Sequence[Detections]) -> Detections:
    """Return the detections of a picture, best first, from those of its views.

    1. Boxes are moved to the picture's coordinates. A box of a tile is *cut* if it touches a seam: a side of the tile
       that is not a side of the picture. The box may show a part of an object only.
    2. A cut box is dropped if a larger box of the same class from another view covers half of it or more: that view
       shows more of the object. The scores do not matter, because a part can have a higher score than the whole.
    3. The rest goes through non-maximum suppression within each class.

    An object that is not longer than the overlap of the tiles lies whole in one of them, so that its parts are dropped.
    Of an object that is longer, and that the detector does not find in the whole picture, two parts can remain.

    Args:
        views: the whole picture first, then its tiles.
        found: the detections of each view, in pixels of the view; equal scores stay in the order of the views.
    """
    corners = torch.tensor([[view.left, view.top, view.right, view.bottom] for view in views])
    labels = [label for one in found for label in one.labels]
    scores = torch.cat([one.scores for one in found])
    category_ids = torch.cat([one.category_ids for one in found])
    view = torch.arange(len(views)).repeat_interleave(torch.tensor([len(one) for one in found]))
    boxes = torch.cat([one.boxes_xyxy for one in found]) + corners[view][:, :2].repeat(1, 2)

    kept = (~_replaced(boxes, _are_cut(boxes, corners[view], corners[0]), view, category_ids)).nonzero()[:, 0]
    kept = kept[_suppress(boxes[kept], scores[kept], category_ids[kept])]
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return Detections(
        category_ids=category_ids[kept],
        labels=tuple(labels[index] for index in kept.tolist()),
        scores=scores[kept],
        boxes_xyxy=boxes[kept],
    )


def _are_cut(boxes: Tensor, tiles: Tensor, picture: Tensor) -> Tensor:
    """Return which of N boxes touch a side of their tile, `(N, 4)`, that is not a side of the picture, `(4,)`."""
    margin = SEAM_SHARE * (tiles[:, 2:] - tiles[:, :2])
    touches = torch.cat((boxes[:, :2] <= tiles[:, :2] + margin, boxes[:, 2:] >= tiles[:, 2:] - margin), dim=1)
    return (touches & (tiles != picture)).any(dim=1)


def _replaced(boxes: Tensor, is_cut: Tensor, view: Tensor, category_ids: Tensor) -> Tensor:
    """Return which of N boxes are cut and covered by a larger one of the same class from another view."""
    replaced = torch.zeros(len(boxes), dtype=torch.bool)
    areas = _areas(boxes)
    cut = is_cut.nonzero()[:, 0]
    for part in torch.split(cut, max(1, _BLOCK // max(1, len(boxes)))):
        low = torch.maximum(boxes[part, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[part, None, 2:], boxes[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(dim=2)
        covers = (shared >= COVERED * areas[part, None]) & (areas > areas[part, None])
        others = (view != view[part, None]) & (category_ids == category_ids[part, None])
        replaced[part] = (covers & others).any(dim=1)
    return replaced


def _suppress(boxes: Tensor, scores: Tensor, category_ids: Tensor) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression leaves, in rising order."""
    from torchvision.ops import batched_nms  # here: torchvision's Python package is used for nothing else

    # float64: `batched_nms` may move each class by more than the largest coordinate, which float32 would round
    kept: Tensor = batched_nms(boxes.double(), scores.double(), category_ids, MOST_IOU)
    return kept.sort().values


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
