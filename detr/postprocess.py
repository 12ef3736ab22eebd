"""Convert logits and boxes to detections with the original's arithmetic, then filter them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detr.boxes import cxcywh_to_xyxy
from detr.classes import Category, category_named
from detr.model import DetrOutput


@dataclass(frozen=True, slots=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        category_ids: `(N,)` int64, the data set's own ids.
        labels: the N class names.
        scores: `(N,)` float32 in 0..1, probability of the class after softmax over all classes and no-object.
        boxes_xyxy: `(N, 4)` float32, pixels of the upright image; may reach a little outside it.
    """

    category_ids: Tensor
    labels: tuple[str, ...]
    scores: Tensor
    boxes_xyxy: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def postprocess(output: DetrOutput, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores `(B, Q)`, class indices `(B, Q)` and boxes `(B, Q, 4)` xyxy in pixels, in query order.

    No-object is part of the softmax but never the result, so every query gets its best real class. Nothing is dropped,
    clipped or sorted (the original's `PostProcess`).

    Args:
        output: of B images.
        sizes: `(B, 2)`, (height, width) in pixels that boxes are scaled to.
    """
    scores, classes = output.logits.float().softmax(-1)[..., :-1].max(-1)
    height, width = sizes.to(scores).unbind(1)
    scale = torch.stack((width, height, width, height), dim=1)
    return scores, classes, cxcywh_to_xyxy(output.boxes_cxcywh.float()) * scale[:, None]


def class_thresholds(
    categories: Sequence[Category], threshold: float, *, classes: Mapping[str, float | None] | None, model: str
) -> Tensor:
    """Return `(K,)` float32: the minimum score to keep for each class, infinite for unwanted classes.

    Unused ids of the data set have rows in the official heads; only threshold 0 keeps them.

    Args:
        categories: the model's.
        threshold: for all classes without a threshold of their own, in 0..1.
        classes: names of the classes to keep, each with its own threshold or None; None keeps all.
        model: name of the model in error messages.

    Raises:
        UnknownClass: a wanted name is not in `categories`.
        ValueError: a threshold is outside 0..1.
    """
    asked = [threshold, *(own for own in (classes or {}).values() if own is not None)]
    if not all(0 <= value <= 1 for value in asked):
        raise ValueError(f"threshold: {next(v for v in asked if not 0 <= v <= 1)} is not in 0..1")
    if classes is None:
        kept = [threshold if category.is_used or threshold == 0 else math.inf for category in categories]
        return torch.tensor(kept)
    wanted = {category_named(name, categories, model=model): own for name, own in classes.items()}
    kept = [math.inf] * len(categories)
    for category, own in wanted.items():
        kept[categories.index(category)] = threshold if own is None else own
    return torch.tensor(kept)


def rank(scores: Tensor, classes: Tensor, boxes_xyxy: Tensor, thresholds: Tensor) -> Tensor:
    """Return `(B, Q, 6)` float32: score, class index, box; the kept detections of each image first, best first.

    Detections that reach their class's threshold are kept; equal scores stay in query order. The others follow with
    class index -1. The host does not wait for the device.

    Args:
        scores: `(B, Q)` float32.
        classes: `(B, Q)` int64 class indices.
        boxes_xyxy: `(B, Q, 4)` float32.
        thresholds: `(K,)`, of `class_thresholds`, on the same device.
    """
    order, is_kept = ranking(scores, classes, thresholds)
    kept_classes = torch.where(is_kept, classes, -1).to(scores.dtype)
    rows = torch.cat((torch.stack((scores, kept_classes), dim=2), boxes_xyxy), dim=2)
    return rows.gather(1, order[:, :, None].expand(-1, -1, 6))


def ranking(scores: Tensor, classes: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of queries in `rank`, `(B, Q)` int64, and which queries are kept, `(B, Q)` bool."""
    is_kept = scores >= thresholds[classes]
    return torch.where(is_kept, scores, -1.0).argsort(dim=1, descending=True, stable=True), is_kept


def read_detections(ranked: Tensor, categories: Sequence[Category]) -> list[Detections]:
    """Return the detections of each image of `rank`'s result, which must be on the CPU. They are copies."""
    found = []
    for image, classes in zip(ranked, ranked[:, :, 1].int().tolist(), strict=True):
        kept = [categories[index] for index in classes if index >= 0]
        rows = image[: len(kept)]
        found.append(
            Detections(
                category_ids=torch.tensor([category.id for category in kept], dtype=torch.int64),
                labels=tuple(category.name for category in kept),
                scores=rows[:, 0].clone(),
                boxes_xyxy=rows[:, 2:].clone(memory_format=torch.contiguous_format),
            )
        )
    return found
