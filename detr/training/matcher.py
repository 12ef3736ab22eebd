"""Bipartite matching between queries and targets (section 3.1 of the paper, Hungarian method)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr.boxes import cxcywh_to_xyxy, generalized_iou
from detr.device import upload


@dataclass(frozen=True, slots=True)
class MatchWeights:
    """Factors of the terms in the cost of a pair of query and target. The defaults are the paper's."""

    classification: float = 1.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """The objects of one image: `labels` `(T,)` int64 class indices, `boxes_cxcywh` `(T, 4)` in 0..1 of the image."""

    labels: Tensor
    boxes_cxcywh: Tensor


@dataclass(frozen=True, slots=True)
class PaddedTargets:
    """The targets of B images on one device, padded to the largest number M of one image, at least 1.

    Attributes:
        labels: `(B, M)` int64; 0 in padding.
        boxes_cxcywh: `(B, M, 4)` float32; the whole image in padding, which has a finite cost.
        numbers: `(B,)` int64, the number of targets of each image.
        counts: the same as Python integers, available without waiting for the device.
        extents: `(B, 2)` int64, each image's own height and width in pixels; None if not given.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    numbers: Tensor
    counts: tuple[int, ...]
    extents: Tensor | None = None


class NotFinite(ValueError):
    """A matching cost of image `image` of the batch is NaN or infinite."""

    def __init__(self, image: int) -> None:
        super().__init__(
            f"image {image} of the batch: a matching cost is NaN or infinite. Either the model's logits or boxes have "
            "diverged (lower the learning rate), or a target of this image is not finite or has no area (check it)."
        )
        self.image = image


def pad_targets(
    targets: Sequence[Target], *, images: int, device: torch.device, extents: Tensor | None = None
) -> PaddedTargets:
    """Copy the targets of a batch of `images` from CPU memory to `device` in one asynchronous copy.

    Args:
        targets: one per image.
        images: number of images.
        device: target of the copy.
        extents: `(B, 2)` integers in CPU memory, each image's own height and width, copied together with the targets.

    Raises:
        ValueError: the number of targets is not that of the images.
    """
    if len(targets) != images:
        raise ValueError(f"{len(targets)} targets for {images} images: give one target, possibly empty, per image")
    counts = tuple(len(target.labels) for target in targets)
    fullest = max(1, *counts, 0)
    # a row per image: number, height, width, labels, boxes; float32 is exact for all of these integers, below 2**24
    packed = torch.zeros((images, 3 + 5 * fullest))
    labels, boxes = packed[:, 3 : 3 + fullest], packed[:, 3 + fullest :].view(images, fullest, 4)
    boxes.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))
    packed[:, 0] = torch.tensor(counts)
    if extents is not None:
        packed[:, 1:3] = extents
    for image, target in enumerate(targets):
        labels[image, : counts[image]] = target.labels
        boxes[image, : counts[image]] = target.boxes_cxcywh

    packed = upload(packed, device)
    integers = packed[:, : 3 + fullest].long()
    return PaddedTargets(
        labels=integers[:, 3:],
        boxes_cxcywh=packed[:, 3 + fullest :].view(images, fullest, 4),
        numbers=integers[:, 0],
        counts=counts,
        extents=None if extents is None else integers[:, 1:3],
    )


@torch.no_grad()
def match_layers(
    log_probabilities: Tensor, boxes_cxcywh: Tensor, targets: PaddedTargets, *, weights: MatchWeights | None = None
) -> Tensor:
    """Match the outputs of several decoder layers separately: each target of an image has one query, at minimal cost.

    The cost of a pair is -`classification` * probability of the target's class + `l1` * L1 distance of the normalised
    centre-and-size boxes - `giou` * generalised IoU. Runs without gradient, on the CPU, with one copy to the host.

    Args:
        log_probabilities: `(L, B, Q, K + 1)` float32, the log-softmax of the logits.
        boxes_cxcywh: `(L, B, Q, 4)`, normalised.
        targets: of the B images.
        weights: the factors of the three terms; the paper's when not given.

    Returns:
        `(4, N)` int64 on the CPU: layer, image, query and target of every pair, sorted by layer, image and query. Every
        layer has the same number of pairs: min(queries, targets) of each image; surplus targets are not matched.

    Raises:
        NotFinite: a cost is NaN or infinite (diverged logits, or both boxes without area); it names the first such
            image.
    """
    costs = _costs(log_probabilities, boxes_cxcywh.float(), targets, weights or MatchWeights()).cpu().numpy()
    broken = ~np.isfinite(costs).all(axis=(0, 2, 3))
    if broken.any():
        raise NotFinite(int(broken.argmax()))
    pairs = [np.empty((4, 0), dtype=np.int64)]
    for layer, images in enumerate(costs):
        for image, (cost, count) in enumerate(zip(images, targets.counts, strict=True)):
            query, target = linear_sum_assignment(cost[:, :count])
            pairs.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target)))
    return torch.from_numpy(np.concatenate(pairs, axis=1))


def _costs(log_probabilities: Tensor, predicted: Tensor, targets: PaddedTargets, weights: MatchWeights) -> Tensor:
    """Return the cost of each query with each target of its own image, padded: `(L, B, Q, M)`."""
    layers, _, queries, _ = log_probabilities.shape
    wanted = targets.labels[None, :, None, :].expand(layers, -1, queries, -1)
    probability = log_probabilities.gather(-1, wanted).exp()
    # coordinate by coordinate: at most (L, B, Q, M) numbers in memory at a time
    query_boxes, target_boxes = predicted[:, :, :, None], targets.boxes_cxcywh[None, :, None]
    distance = sum(
        (one - other).abs() for one, other in zip(query_boxes.unbind(-1), target_boxes.unbind(-1), strict=True)
    )
    overlap = generalized_iou(cxcywh_to_xyxy(query_boxes), cxcywh_to_xyxy(target_boxes))
    return weights.l1 * distance - weights.classification * probability - weights.giou * overlap
