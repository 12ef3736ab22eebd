"""Agreement of two sets of detections of the same images: matched boxes, largest deviation, AP."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SURE = 0.5  # detections above this score must have a partner
PARTNER = 0.4  # a partner may have a slightly lower score, such as just below 0.5 instead of just above
LEAST_IOU = 0.9


@dataclass(frozen=True, slots=True)
class Found:
    """Detections of a list of images.

    Attributes:
        images: `(N,)` int64, the index of each detection's image.
        classes: `(N,)` int64 class indices.
        scores: `(N,)` float32.
        boxes_xyxy: `(N, 4)` float32, pixels of the original image.
        sizes: `(M, 2)` int64, height and width of each image in pixels.
    """

    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]
    sizes: NDArray[np.int64]

    def first(self, count: int) -> "Found":
        """Return the detections of only the first `count` images."""
        kept = self.images < count
        return Found(
            self.images[kept], self.classes[kept], self.scores[kept], self.boxes_xyxy[kept], self.sizes[:count]
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of detections with those of a reference.

    Attributes:
        boxes: detections of the reference with a score above 0.5.
        matched: the share of these with a partner: same image and class, IoU of 0.9 or more, score above 0.4.
        matched_back: the same with the roles exchanged.
        max_px: the largest difference of a box coordinate between partners, in pixels of the original image.
        ap: AP with the reference's detections above 0.5 as the truth; None if no evaluator is installed.
    """

    boxes: int
    matched: float
    matched_back: float
    max_px: float
    ap: float | None


def save_found(path: Path, per_image: Sequence[tuple[Any, Any, Any]], sizes: Sequence[tuple[int, int]]) -> None:
    """Write detections to a `.npz` file.

    Args:
        path: of the file.
        per_image: (classes, scores, boxes_xyxy) of each image, as arrays or tensors on the CPU.
        sizes: (height, width) of each image in pixels.
    """
    counts = [len(scores) for _, scores, _ in per_image]
    np.savez(
        path,
        images=np.repeat(np.arange(len(per_image)), counts),
        classes=np.concatenate([np.asarray(classes, np.int64).reshape(-1) for classes, _, _ in per_image]),
        scores=np.concatenate([np.asarray(scores, np.float32).reshape(-1) for _, scores, _ in per_image]),
        boxes_xyxy=np.concatenate([np.asarray(boxes, np.float32).reshape(-1, 4) for _, _, boxes in per_image]),
        sizes=np.asarray(sizes, np.int64).reshape(-1, 2),
    )


def read_found(path: Path) -> Found:
    """Read what `save_found` wrote."""
    with np.load(path) as arrays:
        return Found(**{name: arrays[name] for name in ("images", "classes", "scores", "boxes_xyxy", "sizes")})


def compare(found: Found, reference: Found, *, with_ap: bool = True) -> Agreement:
    """Compare detections with those of a reference on the same images, in the same order.

    Raises:
        ValueError: the two are of different images.
    """
    if not np.array_equal(found.sizes, reference.sizes):
        raise ValueError(f"detections of {len(found.sizes)} images cannot be compared with {len(reference.sizes)}")
    boxes, matched, there = _match(reference, found)
    own, matched_back, back = _match(found, reference)
    return Agreement(
        boxes=boxes,
        matched=matched / boxes if boxes else 1.0,
        matched_back=matched_back / own if own else 1.0,
        max_px=max(there, back),
        ap=_ap(found, reference) if with_ap and boxes else None,
    )


def compare_common(found: Found, reference: Found) -> Agreement:
    """Compare detections with those of a reference on the first images that both have, in the same order.

    One may have fewer: a subject measures as many images as its batch needs, and exported networks whole batches only.

    Raises:
        ValueError: the images have other sizes.
    """
    count = min(len(found.sizes), len(reference.sizes))
    return compare(found.first(count), reference.first(count))


def _match(asked: Found, answers: Found) -> tuple[int, int, float]:
    """Return the number of detections above 0.5, the number with a partner, and the largest deviation in pixels."""
    sure = np.flatnonzero(asked.scores > SURE)
    matched, largest = 0, 0.0
    for index in sure:
        candidates = np.flatnonzero(
            (answers.images == asked.images[index])
            & (answers.classes == asked.classes[index])
            & (answers.scores > PARTNER)
        )
        if not len(candidates):
            continue
        box, others = asked.boxes_xyxy[index], answers.boxes_xyxy[candidates]
        overlaps = _iou(box, others)
        best = int(overlaps.argmax())
        if overlaps[best] >= LEAST_IOU:
            matched += 1
            largest = max(largest, float(np.abs(others[best] - box).max()))
    return len(sure), matched, largest


def _iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    box, others = box.astype(np.float64), others.astype(np.float64)
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = sides.clip(0).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common
    overlaps: NDArray[np.float64] = common / np.maximum(union, 1e-12)
    return overlaps


def _ap(found: Found, reference: Found) -> float | None:
    try:
        from detr.evaluation.average_precision import average_precision
    except ImportError:
        return None  # no evaluator is installed: the other columns are still useful
    sure = np.flatnonzero(reference.scores > SURE)
    truth = {
        "images": [
            {"id": number, "height": int(height), "width": int(width)}
            for number, (height, width) in enumerate(reference.sizes)
        ],
        "categories": [{"id": int(one), "name": str(one)} for one in np.unique(reference.classes[sure])],
        "annotations": [
            {"id": number, **_row(reference, index), "iscrowd": 0}
            for number, index in enumerate(sure.tolist(), start=1)
        ],
    }
    rows = [{**_row(found, index), "score": float(found.scores[index])} for index in range(len(found.scores))]
    return average_precision(truth, rows).AP


def _row(found: Found, index: int) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in found.boxes_xyxy[index])
    return {
        "image_id": int(found.images[index]),
        "category_id": int(found.classes[index]),
        "bbox": [left, top, right - left, bottom - top],
    }
