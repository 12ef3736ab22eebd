"""Which query answers for which target: the one-to-one assignment of the paper (section 3.1, Hungarian method)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr.boxes import cxcywh_to_xyxy, generalized_iou
from detr.model import DetrOutput


@dataclass(frozen=True, slots=True)
class MatchWeights:
    """What a pair of query and target costs: each term's factor. The defaults are the paper's."""

    classification: float = 1.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """The objects of one image: `labels` `(T,)` int64 class indices, `boxes_cxcywh` `(T, 4)` in 0..1 of the image."""

    labels: Tensor
    boxes_cxcywh: Tensor


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of one image: `query[i]` answers for `target[i]`; int64, on the CPU, `query` ascending."""

    query: Tensor
    target: Tensor


@torch.no_grad()
def match(output: DetrOutput, targets: Sequence[Target], *, weights: MatchWeights | None = None) -> list[Match]:
    """Assign each target the one query that costs least in all.

    The cost of a pair is -`classification` * probability of the target's class + `l1` * L1 distance of the normalised
    centre-and-size boxes - `giou` * generalised IoU, in float32 whatever the model computes in. Runs without gradient,
    on the CPU, with one transfer for the whole batch. Auxiliary outputs are not looked at: each is matched on its own.

    Args:
        output: logits `(B, Q, K + 1)` and normalised boxes `(B, Q, 4)`.
        targets: one per image, on the device of the output.
        weights: the factors of the three terms; the paper's when not given.

    Returns:
        Per image the pairs, min(queries, targets) of them; surplus targets stay without a query.

    Raises:
        ValueError: a cost is NaN or infinite (diverged logits, boxes without area on both sides).
    """
    weights = weights or MatchWeights()
    batch, queries = output.logits.shape[:2]
    if len(targets) != batch:
        raise ValueError(f"{len(targets)} targets for {batch} images: give one target, possibly empty, per image")
    counts = [len(target.labels) for target in targets]
    labels = torch.cat([target.labels for target in targets])
    boxes = torch.cat([target.boxes_cxcywh for target in targets]).float()
    cost = _costs(
        output.logits.flatten(0, 1).float(), output.boxes_cxcywh.flatten(0, 1).float(), labels, boxes, weights
    )

    # every query against every target of the batch, then cut: B times the arithmetic, but one transfer
    cost = cost.view(batch, queries, -1).cpu()
    ends = zip(counts, accumulate(counts), strict=True)
    return [_assign(cost[image, :, end - count : end], image) for image, (count, end) in enumerate(ends)]


def _costs(logits: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor, weights: MatchWeights) -> Tensor:
    """The cost of each of `(N,)` queries against each of `(T,)` targets, `(N, T)`."""
    probability = logits.softmax(-1)[:, labels]
    distance = torch.cdist(predicted, boxes, p=1)
    overlap = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(boxes))
    return weights.l1 * distance - weights.classification * probability - weights.giou * overlap


def _assign(cost: Tensor, image: int) -> Match:
    """The cheapest assignment from the `(Q, T)` costs of an image; messages say which one of the batch it is."""
    if not bool(cost.isfinite().all()):
        raise ValueError(
            f"image {image} of the batch: a matching cost is NaN or infinite. Either the model's logits or boxes have "
            "diverged (lower the learning rate), or a target of this image is not finite or has no area (check it)."
        )
    query, target = linear_sum_assignment(cost.numpy())
    return Match(torch.as_tensor(query, dtype=torch.int64), torch.as_tensor(target, dtype=torch.int64))
