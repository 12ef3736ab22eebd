"""Average precision: COCO's twelve numbers for detections, given the annotations of their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detr.evaluation.coco_results import ResultColumns
from detr.evaluation.evaluators import CocoEvaluation, Evaluator

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The names of the twelve, in the order in which pycocotools prints them."""

RECALLS = tuple(point / 100 for point in range(101))
"""The recalls at which curves have points."""


@dataclass(frozen=True, slots=True)
class ClassPrecision:
    """The AP of one class, and the number of its annotations without crowds; AP is -1 without annotations."""

    category_id: int
    name: str
    AP: float
    annotations: int


@dataclass(frozen=True, slots=True)
class PrecisionCurves:
    """Precision over recall, mean over the classes that have truth: one number for each of `RECALLS`.

    As COCO interpolates it: the best precision at this recall or a higher one. The mean of a curve is the figure of the
    same name. All numbers are -1 if there is no truth.

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
    """COCO's twelve numbers, each in 0..1, or -1 if there is no truth for it, as in pycocotools.

    Attributes:
        AP: mean over classes and IoU thresholds .50:.05:.95; `AP50`, `AP75` at one threshold.
        APs: of annotations under 32 x 32 pixels; `APm` under 96 x 96; `APl` of the larger.
        AR1: the best recall with one detection an image; `AR10`, `AR100`; `ARs`, `ARm`, `ARl` with a hundred, by size.
        class_agnostic: the AP if all classes were one: whether objects are found, whatever their class.
        classes: by category id.
        curves: the curves whose means are `AP`, `AP50` and `AP75`.
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
    truth: Mapping[str, Any],
    results: ResultColumns | Sequence[Mapping[str, Any]],
    *,
    image_ids: Collection[int] | None = None,
    evaluator: Evaluator = "ultrafast",
) -> AveragePrecision:
    """Measure detections against a COCO json, boxes only; the arguments are not changed.

    The best hundred detections of each image and class count; equal scores keep the order of their rows. Detections in
    crowds are ignored, and so are rows of categories that the truth does not declare.

    Args:
        truth: the contents of a COCO json: `images`, `annotations` and `categories`. An annotation without `iscrowd` is
            not a crowd, one without `area` has the area of its box.
        results: columns, or rows as in COCO's results files: `image_id`, `category_id`, `bbox` (x, y, width, height in
            pixels) and `score`. May be empty.
        image_ids: the images to measure on; None is all. An image without rows counts as one without detections.
        evaluator: the package that evaluates; both give the same figures.

    Raises:
        ValueError: there is no image or category to measure on, or a row is of an image that the truth does not have.
    """
    columns = results if isinstance(results, ResultColumns) else ResultColumns.of_rows(results)
    _check_images_are_known(truth, columns)
    chosen = {image["id"] for image in truth["images"]} if image_ids is None else set(image_ids)
    # the evaluators read an empty list as "all"
    if not chosen or not truth["categories"]:
        raise ValueError("there is no image, or no category, to measure average precision on")
    evaluation = CocoEvaluation(truth, columns, image_ids=chosen, evaluator=evaluator)
    # two evaluations: detections are matched within their class for the twelve, and across classes for this one
    class_agnostic = float(evaluation.figures(use_categories=False).stats[0])
    by_class = evaluation.figures(use_categories=True)
    numbers: dict[str, Any] = dict(zip(NUMBERS, by_class.stats.tolist(), strict=True))
    precision = by_class.precision[:, :, :, 0, -1]  # of all areas, with a hundred detections; -1 without truth
    return AveragePrecision(
        **numbers,
        class_agnostic=class_agnostic,
        classes=_classes(precision, evaluation.category_ids, truth, chosen),
        curves=_curves(precision),
    )


def _check_images_are_known(truth: Mapping[str, Any], results: ResultColumns) -> None:
    known = np.array([image["id"] for image in truth["images"]], np.int64)
    unknown = results.image_ids[~np.isin(results.image_ids, known)]
    if len(unknown):
        raise ValueError(f"there are results for image {unknown[0]}, which is not in the annotations")


def _classes(
    precision: npt.NDArray[np.float64],
    category_ids: Sequence[int],
    truth: Mapping[str, Any],
    image_ids: Collection[int],
) -> tuple[ClassPrecision, ...]:
    names = {category["id"]: category["name"] for category in truth["categories"]}
    counts = Counter(
        annotation["category_id"]
        for annotation in truth["annotations"]
        if annotation["image_id"] in image_ids and not annotation.get("iscrowd", 0)
    )
    means = precision.mean(axis=(0, 1))
    return tuple(
        ClassPrecision(category_id, names[category_id], float(mean), counts[category_id])
        for category_id, mean in zip(category_ids, means, strict=True)
    )


def _curves(precision: npt.NDArray[np.float64]) -> PrecisionCurves:
    with_truth = precision[:, :, precision[0, 0] > -1]
    if not with_truth.shape[2]:
        none = (-1.0,) * precision.shape[1]
        return PrecisionCurves(none, none, none)
    means = with_truth.mean(axis=2)  # (IoU thresholds .50:.05:.95, recalls)
    at50, at75 = means[0], means[5]
    return PrecisionCurves(tuple(means.mean(axis=0).tolist()), tuple(at50.tolist()), tuple(at75.tolist()))
