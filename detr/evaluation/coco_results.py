"""Detections as rows of COCO's results files, one for each detection, or as columns, for many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

ResultRow: TypeAlias = dict[str, Any]
"""`image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and `score` of one detection."""


@dataclass(frozen=True, slots=True, eq=False)
class ResultColumns:
    """N detections as columns: 56 bytes each, compared with about 600 for a dict.

    Attributes:
        image_ids: `(N,)` int64.
        category_ids: `(N,)` int64, the data set's own.
        boxes_xywh: `(N, 4)` float64: x, y, width, height in pixels.
        scores: `(N,)` float64.
    """

    image_ids: npt.NDArray[np.int64]
    category_ids: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = {"image_ids": (count,), "category_ids": (count,), "boxes_xywh": (count, 4), "scores": (count,)}
        for name, shape in shapes.items():
            column = getattr(self, name)
            if column.shape != shape:
                raise ValueError(f"the column {name} has the shape {column.shape} instead of {shape}")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> ResultColumns:
        """Return rows as columns, in the same order.

        Raises:
            ValueError: a `bbox` does not have four numbers.
            OverflowError: an id is outside int64.
        """
        return cls(
            image_ids=np.array([row["image_id"] for row in rows], np.int64),
            category_ids=np.array([row["category_id"] for row in rows], np.int64),
            boxes_xywh=_boxes([row["bbox"] for row in rows]),
            scores=np.array([row["score"] for row in rows], np.float64),
        )

    @classmethod
    def of_corners(
        cls,
        image_ids: npt.NDArray[np.int64],
        category_ids: npt.ArrayLike,
        scores: npt.ArrayLike,
        boxes_xyxy: npt.NDArray[Any],
    ) -> ResultColumns:
        """Return detections whose boxes are `(N, 4)` corners: xmin, ymin, xmax, ymax in pixels."""
        boxes = boxes_xyxy.astype(np.float64)  # width and height are differences of float64, as in `result_rows`
        boxes[:, 2:] -= boxes[:, :2]
        return cls(image_ids, np.asarray(category_ids, np.int64), boxes, np.asarray(scores, np.float64))

    @classmethod
    def concatenate(cls, parts: Sequence[ResultColumns]) -> ResultColumns:
        """Return the detections of all parts in order; empty without parts."""
        if not parts:
            return cls.of_rows([])
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def where(self, chosen: npt.NDArray[np.bool_ | np.int64]) -> ResultColumns:
        """Return the detections for which `chosen`, `(N,)`, is true, or those with the indices `chosen`."""
        return ResultColumns(*(getattr(self, field.name)[chosen] for field in fields(self)))


def _boxes(boxes: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    if any(len(box) != 4 for box in boxes):
        raise ValueError("a bbox must have four numbers: x, y, width, height")
    return np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(boxes)).reshape(-1, 4)


def result_rows(
    image_id: int, category_ids: Sequence[int], scores: Sequence[float], boxes_xyxy: Sequence[Sequence[float]]
) -> list[ResultRow]:
    """Return the rows of one image, in the order given; `bbox` is x, y, width, height.

    Args:
        image_id: as the annotations have it.
        category_ids: N Python integers, the data set's own ids, such as `tensor.tolist()` returns.
        scores: N.
        boxes_xyxy: N times four corners, in pixels of the picture that was annotated.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "score": score,
        }
        for category_id, score, (xmin, ymin, xmax, ymax) in zip(category_ids, scores, boxes_xyxy, strict=True)
    ]


def merge_results(parts: Sequence[ResultColumns]) -> ResultColumns:
    """Return the detections of all workers: each image once, sorted by id, an image's detections in their order.

    The figures do not depend on how images were distributed, nor on images that several workers received to make their
    numbers equal: pycocotools sorts equal scores by image, then by the order of an image's rows.

    Args:
        parts: each worker's detections. If several parts have an image, the first counts.
    """
    every = ResultColumns.concatenate(parts)
    order = np.argsort(every.image_ids, kind="stable")
    part = np.repeat(np.arange(len(parts)), [len(one) for one in parts])[order]
    merged = every.where(order)
    _, first, count = np.unique(merged.image_ids, return_index=True, return_counts=True)
    return merged.where(part == np.repeat(part[first], count))
