"""The loss of the paper, between matched queries and their targets, at every decoder layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detr.boxes import cxcywh_to_xyxy, generalized_iou
from detr.device import upload
from detr.model import DetrOutput
from detr.training.matcher import MatchWeights, PaddedTargets, Target, match_layers, pad_targets


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Factors of the parts in the total, and of queries without object in the class loss; defaults are the paper's."""

    classification: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    no_object: float = 0.1


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of one batch.

    `total` is minimised. `parts` has every part, unweighted, by the original's names: `loss_ce`, `loss_bbox`,
    `loss_giou`, `cardinality_error` of the last layer, the same with `_0`, `_1`, ... of the earlier ones, and
    `class_error` of the last. The two errors are for logging only: they have no gradient and are not part of `total`.
    """

    total: Tensor
    parts: dict[str, Tensor]


def criterion(
    output: DetrOutput,
    targets: Sequence[Target] | PaddedTargets,
    *,
    num_boxes: float | None = None,
    weights: LossWeights | None = None,
    match_weights: MatchWeights | None = None,
) -> Losses:
    """Match every decoder layer to the targets separately and sum the losses.

    The class loss is the weighted mean over all queries of this batch, never divided by `num_boxes`. The box losses are
    sums over the matched pairs divided by `num_boxes`, the same number in all layers; without any target they are 0.

    Everything is computed in float32, whatever the model computes in, and for all layers together. The host waits for
    the device once, for the matching costs, and again for each loss that is read, so stack those first.

    Args:
        output: the last layer's `(B, Q, K + 1)` logits and `(B, Q, 4)` boxes, with the earlier ones in `aux`.
        targets: one per image, in CPU memory, or those of `pad_targets` on the device of the output; labels are class
            indices in 0 .. K - 1.
        num_boxes: targets of all workers (and micro-batches of one step) divided by their number; at least 1 is used.
            Defaults to this batch's count.
        weights: factors of the parts.
        match_weights: factors of the matching costs.

    Raises:
        NotFinite: a matching cost is not finite.
        ValueError: a label is not a class; of padded targets this is not checked: see `refuse_bad_labels`.
    """
    weights = weights or LossWeights()
    if not isinstance(targets, PaddedTargets):
        refuse_bad_labels(targets, output.logits.shape[-1] - 1)
        targets = pad_targets(targets, images=len(output.logits), device=output.logits.device)
    own_count = sum(targets.counts)
    # clamped after the division by the workers, so a share below one box counts as one
    divisor = max(1.0, float(own_count if num_boxes is None else num_boxes))

    losses = _losses(output, targets, divisor, weights.no_object, match_weights)
    total = (
        weights.classification * losses["loss_ce"]
        + weights.l1 * losses["loss_bbox"]
        + weights.giou * losses["loss_giou"]
    ).sum()
    suffixes = [*(f"_{index}" for index in range(len(output.aux))), ""]
    parts = {"class_error": losses.pop("class_error")}
    values = {name: dict(zip(suffixes, layers.unbind(), strict=True)) for name, layers in losses.items()}
    # the last layer first, because it is logged first
    parts |= {name + suffix: values[name][suffix] for suffix in [suffixes[-1], *suffixes[:-1]] for name in values}
    return Losses(total, parts)


def refuse_bad_labels(targets: Sequence[Target], class_count: int) -> None:
    """Raise unless every label of the targets, in CPU memory, is below `class_count`.

    A label equal to `class_count` would silently train "no object"; a larger one would cause a later assertion failure
    on the device.

    Raises:
        ValueError: a label is out of range.
    """
    labels = torch.cat([target.labels for target in targets]).numpy()
    if not ((labels < 0) | (labels >= class_count)).any():
        return
    for image, target in enumerate(targets):
        own = sorted(set(target.labels.tolist()))
        if own and not 0 <= own[0] <= own[-1] < class_count:
            raise ValueError(
                f"image {image} of the batch has labels {own}, but the classes are 0 .. {class_count - 1}. Map "
                "category ids to class indices before training."
            )


def _losses(
    output: DetrOutput,
    padded: PaddedTargets,
    num_boxes: float,
    no_object: float,
    match_weights: MatchWeights | None,
) -> dict[str, Tensor]:
    """Return the unweighted parts, each `(L,)` by layer, the last layer last; `class_error`, `()`, is of the last."""
    # float32 from here on, also under autocast, which does not convert the following operations
    logits = torch.stack([*(layer.logits for layer in output.aux), output.logits]).float()
    boxes = torch.stack([*(layer.boxes_cxcywh for layer in output.aux), output.boxes_cxcywh]).float()
    no_object_class = logits.shape[-1] - 1
    log_probabilities = logits.log_softmax(-1)  # of the matching and of the loss
    pairs = match_layers(log_probabilities.detach(), boxes.detach(), padded, weights=match_weights)
    layer, image, query, target = upload(pairs, logits.device)
    labels, wanted = padded.labels[image, target], padded.boxes_cxcywh[image, target]

    classes = torch.full(logits.shape[:3], no_object_class, dtype=torch.int64, device=logits.device)
    classes[layer, image, query] = labels
    counted = torch.where(classes == no_object_class, no_object, 1.0)
    surprise = -log_probabilities.gather(-1, classes[..., None])[..., 0]

    predicted = boxes[layer, image, query]
    overlap = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))

    scores = logits.detach()
    # argmax returns the first of equal logits, so no-object only if it is above all others
    seen = (scores[..., :-1].amax(-1) >= scores[..., -1]).sum(-1)
    last = layer.numel() // len(logits) * (len(logits) - 1)  # every layer has the same number of pairs
    return {
        "class_error": _class_error(scores[-1][image[last:], query[last:]], labels[last:]),
        "loss_ce": (counted * surprise).sum((1, 2)) / counted.sum((1, 2)),
        "loss_bbox": (predicted - wanted).abs().view(len(logits), -1).sum(1) / num_boxes,
        "loss_giou": (1 - overlap).view(len(logits), -1).sum(1) / num_boxes,
        "cardinality_error": (seen - padded.numbers).abs().float().mean(1),
    }


def _class_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the percentage of matched queries whose best class, including no-object, is wrong; 100 without matches."""
    if len(labels) == 0:
        return logits.new_full((), 100.0)
    return 100 - 100 * (logits.argmax(-1) == labels).float().mean()
