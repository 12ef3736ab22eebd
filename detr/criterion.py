"""The loss of the paper: matched queries against their targets, at every layer of the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detr.boxes import area, cxcywh_to_xyxy
from detr.matcher import Match, MatchWeights, Target, match
from detr.model import DetrOutput


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What each part counts in the total, and what a query without object weighs in the class loss; the paper's."""

    classification: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    no_object: float = 0.1


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of one batch.

    `total` is what is trained. `parts` has every part, unweighted, by the original's names: `loss_ce`, `loss_bbox`,
    `loss_giou`, `cardinality_error` of the last layer, the same with `_0`, `_1`, ... of the earlier ones, and
    `class_error` of the last. The two errors are logged only: they have no gradient and no share in `total`.
    """

    total: Tensor
    parts: dict[str, Tensor]


def criterion(
    output: DetrOutput,
    targets: Sequence[Target],
    *,
    num_boxes: float | None = None,
    weights: LossWeights | None = None,
    match_weights: MatchWeights | None = None,
) -> Losses:
    """Match every decoder layer to the targets by itself and add up its losses.

    The class loss is the weighted mean over all queries of this batch, never divided by `num_boxes`. The box losses are
    sums over the matched pairs divided by `num_boxes`, the same number in all layers; without any target they are 0.

    Args:
        output: the last layer's `(B, Q, K + 1)` logits and `(B, Q, 4)` boxes, with the earlier ones in `aux`.
        targets: one per image, on the output's device; labels are class indices in 0 .. K - 1.
        num_boxes: targets of all workers (and micro-batches of one step) divided by their number; at least 1 is used.
            This batch's own count when not given.
        weights: factors of the parts.
        match_weights: factors of the matching costs.

    Raises:
        ValueError: a label is not a class, or a matching cost is not finite.
    """
    weights = weights or LossWeights()
    refuse_bad_labels(targets, output.logits.shape[-1] - 1)
    own_count = sum(len(target.labels) for target in targets)
    # the clamp comes after the division by the workers, so a share below one box counts as one
    divisor = max(1.0, float(own_count if num_boxes is None else num_boxes))

    parts: dict[str, Tensor] = {}
    total = output.logits.new_zeros(())
    for suffix, layer in [("", output), *((f"_{index}", aux) for index, aux in enumerate(output.aux))]:
        matches = match(layer, targets, weights=match_weights)
        losses = _layer_losses(layer, targets, matches, divisor, weights.no_object)
        total = (
            total
            + weights.classification * losses["loss_ce"]
            + weights.l1 * losses["loss_bbox"]
            + weights.giou * losses["loss_giou"]
        )
        if suffix == "":
            parts["class_error"] = _class_error(layer.logits, targets, matches)
        parts |= {name + suffix: value for name, value in losses.items()}
    return Losses(total, parts)


def paired_generalized_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Generalised IoU row by row: `(N, 4)` and `(N, 4)` xyxy in any one unit -> `(N,)` in (-1, 1]."""
    xmin_a, ymin_a, xmax_a, ymax_a = boxes_a.unbind(1)
    xmin_b, ymin_b, xmax_b, ymax_b = boxes_b.unbind(1)
    width = (torch.minimum(xmax_a, xmax_b) - torch.maximum(xmin_a, xmin_b)).clamp(min=0)
    height = (torch.minimum(ymax_a, ymax_b) - torch.maximum(ymin_a, ymin_b)).clamp(min=0)
    intersection = width * height
    union = area(boxes_a) + area(boxes_b) - intersection
    enclosing = (torch.maximum(xmax_a, xmax_b) - torch.minimum(xmin_a, xmin_b)) * (
        torch.maximum(ymax_a, ymax_b) - torch.minimum(ymin_a, ymin_b)
    )
    return intersection / union - (enclosing - union) / enclosing


def refuse_bad_labels(targets: Sequence[Target], class_count: int) -> None:
    """Raise unless every label is one of `class_count` classes.

    A label equal to `class_count` would silently train "no object"; a larger one is an assertion on the device, later
    and elsewhere.

    Raises:
        ValueError: a label is out of range.
    """
    for image, target in enumerate(targets):
        if len(target.labels) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < class_count:
            raise ValueError(
                f"image {image} of the batch has labels {sorted(set(target.labels.tolist()))}, but the classes are "
                f"0 .. {class_count - 1}. Map category ids to class indices before training."
            )


def _layer_losses(
    output: DetrOutput, targets: Sequence[Target], matches: Sequence[Match], num_boxes: float, no_object: float
) -> dict[str, Tensor]:
    """The unweighted parts of one decoder layer under its own matching."""
    logits = output.logits.float()
    no_object_class = logits.shape[-1] - 1
    image, query, labels, boxes = _matched(targets, matches, logits.device)

    classes = torch.full(logits.shape[:2], no_object_class, dtype=torch.int64, device=logits.device)
    classes[image, query] = labels
    class_weights = logits.new_ones(no_object_class + 1)
    class_weights[no_object_class] = no_object
    loss_ce = F.cross_entropy(logits.transpose(1, 2), classes, weight=class_weights)

    predicted = output.boxes_cxcywh[image, query].float()
    overlap = paired_generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(boxes))

    seen = (logits.detach().argmax(-1) != no_object_class).sum(1)
    counts = torch.tensor([len(target.labels) for target in targets], device=logits.device)
    return {
        "loss_ce": loss_ce,
        "loss_bbox": (predicted - boxes).abs().sum() / num_boxes,
        "loss_giou": (1 - overlap).sum() / num_boxes,
        "cardinality_error": (seen - counts).abs().float().mean(),
    }


def _matched(
    targets: Sequence[Target], matches: Sequence[Match], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs of the batch: image and query indices `(M,)`, the labels `(M,)` and boxes `(M, 4)` to be learned."""
    image = torch.cat([torch.full_like(pairs.query, index) for index, pairs in enumerate(matches)]).to(device)
    query = torch.cat([pairs.query for pairs in matches]).to(device)
    labels = torch.cat([target.labels[pairs.target] for target, pairs in zip(targets, matches, strict=True)])
    boxes = torch.cat([target.boxes_cxcywh[pairs.target] for target, pairs in zip(targets, matches, strict=True)])
    return image, query, labels, boxes.float()


def _class_error(logits: Tensor, targets: Sequence[Target], matches: Sequence[Match]) -> Tensor:
    """Per cent of the matched queries whose best class, no-object included, is wrong; 100 when nothing is matched."""
    image, query, labels, _ = _matched(targets, matches, logits.device)
    if len(labels) == 0:
        return logits.new_tensor(100.0)
    right = logits.detach()[image, query].argmax(-1) == labels
    return 100 - 100 * right.float().mean()
