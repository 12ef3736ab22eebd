"""The evaluators of COCO's boxes: ultrafast-pycocotools and pycocotools, whose figures are bit-identical.

Both have the same interface. pycocotools is the official one and takes more than 20 times the CPU time and 4 times the
memory; the tests compare them on many random data sets.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import ultrafast_pycocotools

from detr.evaluation.coco_results import ResultColumns

Evaluator = Literal["ultrafast", "pycocotools"]
EVALUATORS: Final[tuple[Evaluator, ...]] = get_args(Evaluator)

LARGEST, SMALLEST_SIDE = 1e150, 1e-150
"""Limits beyond which the area of a box or of an intersection can be infinite or rounded to 0."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of an evaluator.

    Attributes:
        stats: COCO's twelve numbers, in the order in which pycocotools prints them.
        precision: `(10 IoU thresholds, 101 recalls, classes, 4 area ranges, 3 numbers of detections)`, -1 where a class
            has no truth. Classes are in the order of their ids; there is only one if categories are not used.
    """

    stats: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]


class CocoEvaluation:
    """Truth and detections, prepared once for several evaluations.

    Ids of images and categories are replaced by their rank, which keeps their order, and so the order of detections
    with equal scores: the evaluators store ids as float64 or replace an id of 0. Annotations and detections of
    categories or images that the truth does not declare are left out, because they cannot count.

    The two packages count differently if the overlap of two boxes is NaN, because their areas overflow or underflow.
    Such boxes are always evaluated by pycocotools.
    """

    def __init__(
        self,
        truth: Mapping[str, Any],
        results: ResultColumns,
        *,
        image_ids: Collection[int],
        evaluator: Evaluator,
    ) -> None:
        """Prepare an evaluation.

        Args:
            truth: the contents of a COCO json: `images`, `annotations` and `categories`.
            results: the detections.
            image_ids: the images to evaluate, at least one.
            evaluator: the package that evaluates.
        """
        chosen = {image_id: rank for rank, image_id in enumerate(sorted(set(image_ids)), start=1)}
        self.category_ids: Final = sorted({category["id"] for category in truth["categories"]})
        categories = {category_id: rank for rank, category_id in enumerate(self.category_ids, start=1)}
        dataset = {
            "images": [{"id": rank} for rank in chosen.values()],
            "categories": [{"id": rank} for rank in categories.values()],
            "annotations": _annotations(truth["annotations"], chosen, categories),
        }
        ranked = _ranked(results, list(chosen), self.category_ids)
        self._image_ranks = list(chosen.values())
        truth_boxes = np.array([annotation["bbox"] for annotation in dataset["annotations"]], np.float64).reshape(-1, 4)
        is_extreme = _is_extreme(truth_boxes) or _is_extreme(ranked.boxes_xywh)
        prepare = _ultrafast if evaluator == "ultrafast" and not is_extreme else _pycocotools
        with _silence():
            self._new = prepare(dataset, ranked)

    def figures(self, *, use_categories: bool) -> Figures:
        """Return the figures; without categories, those of all detections as one class."""
        with _silence():
            evaluation = self._new()
            evaluation.params.imgIds = self._image_ranks
            evaluation.params.useCats = int(use_categories)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return Figures(np.asarray(evaluation.stats, np.float64), evaluation.eval["precision"])


def _is_extreme(boxes_xywh: npt.NDArray[np.float64]) -> bool:
    sizes = np.abs(boxes_xywh)
    sides = sizes[:, 2:]
    return bool((sizes > LARGEST).any() or ((sides > 0) & (sides < SMALLEST_SIDE)).any())


def _annotations(
    annotations: Sequence[Mapping[str, Any]], images: Mapping[int, int], categories: Mapping[int, int]
) -> list[dict[str, Any]]:
    # renumbered: an annotation with the id 0 would count as not found, one with a duplicate id would replace the other
    return [
        {
            "id": number,
            "image_id": images[annotation["image_id"]],
            "category_id": categories[annotation["category_id"]],
            "bbox": annotation["bbox"],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        }
        for number, annotation in enumerate(annotations, start=1)
        if annotation["image_id"] in images and annotation["category_id"] in categories
    ]


def _ranked(results: ResultColumns, image_ids: Sequence[int], category_ids: Sequence[int]) -> ResultColumns:
    images, categories = np.array(image_ids, np.int64), np.array(category_ids, np.int64)
    kept = results.where(np.isin(results.image_ids, images) & np.isin(results.category_ids, categories))
    return ResultColumns(
        np.searchsorted(images, kept.image_ids) + 1,
        np.searchsorted(categories, kept.category_ids) + 1,
        kept.boxes_xywh,
        kept.scores,
    )


def _ultrafast(dataset: dict[str, Any], results: ResultColumns) -> Callable[[], Any]:
    expected = ultrafast_pycocotools.COCO(dataset, verbose=False)
    columns = (results.image_ids, results.boxes_xywh, results.scores, results.category_ids)
    found = expected.loadRes(np.column_stack(columns))  # avoids a dict for each detection
    return lambda: ultrafast_pycocotools.COCOeval(expected, found, "bbox", print_function=lambda _line: None)


def _pycocotools(dataset: dict[str, Any], results: ResultColumns) -> Callable[[], Any]:
    from pycocotools.coco import COCO  # imported here: the other evaluator does not need it
    from pycocotools.cocoeval import COCOeval

    rows = [
        {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box, "score": score,
         "area": box[2] * box[3], "iscrowd": 0}
        for number, (image_id, category_id, box, score) in enumerate(
            zip(
                results.image_ids.tolist(), results.category_ids.tolist(), results.boxes_xywh.tolist(),
                results.scores.tolist(), strict=True,
            ),
            start=1,
        )
    ]  # fmt: skip
    expected, found = COCO(), COCO()
    expected.dataset, found.dataset = dataset, {**dataset, "annotations": rows}
    for handle in (expected, found):
        handle.createIndex()  # not `loadRes`, which fails on an empty list
    return lambda: COCOeval(expected, found, "bbox")


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    # both always print their progress, which must not reach the caller's standard output
    return contextlib.redirect_stdout(io.StringIO())
