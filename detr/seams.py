"""Merge the detections of overlapping views of one picture, so that each object is detected once."""

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

LEAST_SCORE: Final = 0.5
"""The share of a cut box's score that a larger one must have to replace it."""

MOST_IOU: Final = 0.5
"""Of two boxes of one class that overlap by more, the one with the lower score is dropped."""

_BLOCK: Final = 2**22  # pairs of boxes compared at a time: 16 MiB for each of a few intermediate results


def join_views(
    views: Sequence[Tile],
    found: Sequence[Detections],
    *,
    seam_share: float = SEAM_SHARE,
    covered: float = COVERED,
    least_score: float = LEAST_SCORE,
    most_iou: float = MOST_IOU,
) -> Detections:
    """Return the detections of a picture, best first, from those of its views.

    1. Boxes are moved to the picture's coordinates. A box of a tile is *cut* if it touches a seam: a side of the tile
       that is not a side of the picture. The box may show a part of an object only.
    2. A cut box is dropped if a larger box of the same class from another view covers half of it or more and has half
       of its score or more: that view shows more of the object. A part can have a higher score than the whole, but a
       box with hardly any score is no reason to drop one with a high score.
    3. The rest goes through non-maximum suppression within each class.

    Whether a detection is kept depends only on boxes with half of its score or more. With two thresholds that are both
    at most `t / 2` the detections with a score of `t` or more are therefore the same.

    An object that is not longer than the overlap of the tiles lies whole in one of them, so that its parts are dropped.
    Two parts can remain of a longer object that the detector does not find in the whole picture.

    Args:
        views: the whole picture first, then its tiles.
        found: the detections of each view, in pixels of the view; equal scores stay in the order of the views.
        seam_share: a box touches a seam if it ends within this share of the tile's side from it.
        covered: the share of a cut box that a larger one must cover to replace it; above 1 none is replaced.
        least_score: the share of a cut box's score that a larger one must have to replace it.
        most_iou: of two boxes of one class that overlap by more, the one with the lower score is dropped.
    """
    corners = torch.tensor([[view.left, view.top, view.right, view.bottom] for view in views])
    labels = [label for one in found for label in one.labels]
    scores = torch.cat([one.scores for one in found])
    category_ids = torch.cat([one.category_ids for one in found])
    view = torch.arange(len(views)).repeat_interleave(torch.tensor([len(one) for one in found]))
    boxes = torch.cat([one.boxes_xyxy for one in found]) + corners[view][:, :2].repeat(1, 2)

    is_cut = _are_cut(boxes, corners[view], corners[0], seam_share)
    replaced = torch.zeros(len(boxes), dtype=torch.bool)
    for category_id in set(category_ids[is_cut].tolist()):
        own = (category_ids == category_id).nonzero()[:, 0]
        replaced[own] = _replaced(boxes[own], scores[own], is_cut[own], view[own], covered, least_score)
    kept = (~replaced).nonzero()[:, 0]
    kept = kept[_suppress(boxes[kept], scores[kept], category_ids[kept], most_iou)]
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return Detections(
        category_ids=category_ids[kept],
        labels=tuple(labels[index] for index in kept.tolist()),
        scores=scores[kept],
        boxes_xyxy=boxes[kept],
    )


def _are_cut(boxes: Tensor, tiles: Tensor, picture: Tensor, seam_share: float) -> Tensor:
    """Return which of N boxes touch a side of their tile, `(N, 4)`, that is not a side of the picture, `(4,)`."""
    margin = seam_share * (tiles[:, 2:] - tiles[:, :2])
    touches = torch.cat((boxes[:, :2] <= tiles[:, :2] + margin, boxes[:, 2:] >= tiles[:, 2:] - margin), dim=1)
    return (touches & (tiles != picture)).any(dim=1)


def _replaced(
    boxes: Tensor, scores: Tensor, is_cut: Tensor, view: Tensor, covered: float, least_score: float
) -> Tensor:
    """Return which of N boxes of one class are cut and replaced by a larger one from another view."""
    replaced = torch.zeros(len(boxes), dtype=torch.bool)
    areas = _areas(boxes)
    cut = is_cut.nonzero()[:, 0]
    for part in torch.split(cut, max(1, _BLOCK // max(1, len(boxes)))):
        low = torch.maximum(boxes[part, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[part, None, 2:], boxes[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(dim=2)
        covers = (shared >= covered * areas[part, None]) & (areas > areas[part, None])
        may_replace = (view != view[part, None]) & (scores >= least_score * scores[part, None])
        replaced[part] = (covers & may_replace).any(dim=1)
    return replaced


def _suppress(boxes: Tensor, scores: Tensor, category_ids: Tensor, most_iou: float) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression keeps, in ascending order."""
    from torchvision.ops import batched_nms  # imported here: torchvision's Python package is not used for anything else

    # float64: `batched_nms` may move each class by more than the largest coordinate, which float32 would round
    kept: Tensor = batched_nms(boxes.double(), scores.double(), category_ids, most_iou)
    return kept.sort().values


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
