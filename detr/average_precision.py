"""Average precision: COCO's twelve numbers of detections against their truth, by the official evaluator."""

import contextlib
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The names of the twelve, in the order in which pycocotools prints them."""

RECALLS = tuple(point / 100 for point in range(101))
"""Where curves have their points."""


@dataclass(frozen=True, slots=True)
class ClassPrecision:
    """The AP of one class, and how many annotations (crowds left out) it rests on; -1 where there are none."""

    category_id: int
    name: str
    AP: float
    annotations: int


@dataclass(frozen=True, slots=True)
class PrecisionCurves:
    """Precision over recall, mean over the classes that have truth: a number for each of `RECALLS`.

    As COCO interpolates it: the best precision at this recall or a higher one. Its mean is the figure that it is named
    by. All numbers are -1 where there is no truth.

    Attributes:
        AP: mean over the IoU thresholds .50:.05:.95.
        AP50: at IoU .50.
        AP75: at IoU .75.
    """

    AP: tuple[float, ...]
    AP50: tuple[float, ...]
    AP75: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's twelve numbers, each in 0..1, or -1 where there is no truth to measure it by, as pycocotools has it.

    Attributes:
        AP: mean over classes and IoU thresholds .50:.05:.95; `AP50`, `AP75` at one threshold.
        APs: of annotations under 32 x 32 pixels; `APm` under 96 x 96; `APl` of the larger.
        AR1: the best recall with one detection an image; `AR10`, `AR100`; `ARs`, `ARm`, `ARl` with a hundred, by size.
        class_agnostic: the AP if all classes were one: whether things are found at all.
        classes: by category id.
        curves: what `AP`, `AP50` and `AP75` are the means of.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    class_agnostic: float
    classes: tuple[ClassPrecision, ...]
    curves: PrecisionCurves

    def numbers(self) -> dict[str, float]:
        """Return the twelve by name, in pycocotools' order."""
        return {name: getattr(self, name) for name in NUMBERS}


def average_precision(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, image_ids: Collection[int] | None = None
) -> AveragePrecision:
    """Measure detections against a COCO json, boxes only; nothing that is given is changed.

    Of an image and class the best hundred count; equal scores keep the order of their rows. Crowds are regions where
    nothing counts. Rows of categories that the truth does not declare are ignored.

    Args:
        truth: what a COCO json holds: `images`, `annotations` and `categories`. An annotation without `iscrowd` is
            none, one without `area` has its box's.
        results: rows as in COCO's results files: `image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and
            `score`. May be empty.
        image_ids: the images to measure on; None is all. An image without rows is one in which nothing was found.

    Raises:
        ValueError: there is no image or category to measure on, or a row is of an image that the truth does not have.
    """
    expected, found = _expected(truth), _found(truth, results)
    chosen = sorted({image["id"] for image in truth["images"]} if image_ids is None else set(image_ids))
    # pycocotools takes an empty list for "all"
    if not chosen or not truth["categories"]:
        raise ValueError("there is no image, or no category, to measure average precision on")
    # one after the other, not both in memory: 2.5 GB at the peak instead of 3.2 for 500,000 rows (measured)
    agnostic = float(_evaluate(expected, found, chosen, use_categories=False).stats[0])
    by_class = _evaluate(expected, found, chosen, use_categories=True)
    numbers: dict[str, Any] = dict(zip(NUMBERS, by_class.stats.tolist(), strict=True))
    # (IoU thresholds, recalls, classes, areas, most detections): all areas and a hundred, -1 all through without truth
    precision = by_class.eval["precision"][:, :, :, 0, -1]
    return AveragePrecision(
        **numbers,
        class_agnostic=agnostic,
        classes=_classes(by_class, precision, truth),
        curves=_curves(precision),
    )


def _expected(truth: Mapping[str, Any]) -> COCO:
    # numbered anew: an annotation with the id 0 would count as never found, one with another's id would replace it
    annotations = [
        {
            "id": number,
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": annotation.get("iscrowd", 0),
        }
        for number, annotation in enumerate(truth["annotations"], start=1)
    ]
    return _indexed(truth, annotations)


def _found(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> COCO:
    """What `COCO.loadRes` makes of boxes; that one fails on an empty list and changes the rows."""
    known = {image["id"] for image in truth["images"]}
    strange = next((row["image_id"] for row in results if row["image_id"] not in known), None)
    if strange is not None:
        raise ValueError(f"there are results of image {strange!r}, which the annotations do not have")
    rows = [
        {
            "id": number,
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": row["bbox"],
            "score": row["score"],
            "area": row["bbox"][2] * row["bbox"][3],
            "iscrowd": 0,
        }
        for number, row in enumerate(results, start=1)
    ]
    return _indexed(truth, rows)


def _indexed(truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    with _silence():
        coco.createIndex()
    return coco


def _evaluate(expected: COCO, found: COCO, image_ids: Sequence[int], *, use_categories: bool) -> COCOeval:
    evaluation = COCOeval(expected, found, "bbox")
    evaluation.params.imgIds = image_ids
    evaluation.params.useCats = int(use_categories)
    with _silence():
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _classes(
    evaluation: COCOeval, precision: npt.NDArray[np.float64], truth: Mapping[str, Any]
) -> tuple[ClassPrecision, ...]:
    names = {category["id"]: category["name"] for category in truth["categories"]}
    chosen = set(evaluation.params.imgIds)
    counts = Counter(
        annotation["category_id"]
        for annotation in truth["annotations"]
        if annotation["image_id"] in chosen and not annotation.get("iscrowd", 0)
    )
    means = precision.mean(axis=(0, 1))
    return tuple(
        ClassPrecision(int(category_id), names[category_id], float(mean), counts[category_id])
        for category_id, mean in zip(evaluation.params.catIds, means, strict=True)
    )


def _curves(precision: npt.NDArray[np.float64]) -> PrecisionCurves:
    with_truth = precision[:, :, precision[0, 0] > -1]
    if not with_truth.shape[2]:
        none = (-1.0,) * precision.shape[1]
        return PrecisionCurves(none, none, none)
    means = with_truth.mean(axis=2)  # (IoU thresholds .50:.05:.95, recalls)
    at50, at75 = means[0], means[5]
    return PrecisionCurves(tuple(means.mean(axis=0).tolist()), tuple(at50.tolist()), tuple(at75.tolist()))


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    # pycocotools prints its progress and results whoever asks; standard output is the caller's
    return contextlib.redirect_stdout(io.StringIO())
