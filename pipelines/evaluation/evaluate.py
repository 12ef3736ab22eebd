"""How good detections are: those of a table or of a results file against COCO annotations of the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from detr.evaluation.average_precision import AveragePrecision, average_precision
from detr.evaluation.coco_results import ResultColumns
from detr.evaluation.evaluators import Evaluator
from pipelines.errors import UsageError
from pipelines.evaluation.annotations import Annotations, Json, read_annotations
from pipelines.evaluation.results_file import read_results
from pipelines.store import StoreOptions

if TYPE_CHECKING:
    from pipelines.evaluation.table_results import RowChoice

OFFICIAL_QUERIES = 100
"""Detections that the official models have of every image where nothing is left out."""


@dataclass(frozen=True, slots=True)
class ThresholdCost:
    """What the detections that were kept can tell of what a threshold did to AP.

    The AP of all detections is never lower than that of the kept ones; how much higher cannot be known from these. What
    the next doubling of the threshold would cost is a hint, and neither a bound nor an estimate: of 40 drawn scenes it
    was 0.0001 from 0.05 to 0.1, where 0.05 itself had cost 0.0016 (MEASURED).

    Attributes:
        threshold: below it nothing was kept.
        short_images: images with fewer than 100 detections: what the official models have of each at threshold 0.
        doubled: twice the threshold, 1 at most.
        AP_doubled: AP of the detections that reach that.
    """

    threshold: float
    short_images: int
    doubled: float
    AP_doubled: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What detections are worth. File names are those of the annotations.

    Attributes:
        average_precision: over all `images`; where there are no detections of one, all that is there was missed.
        images: how many are annotated, and so measured on.
        missing: file names of those that there is no row of.
        errors: file names of those whose row is an error.
        turned_back: file names of those that were annotated as stored: their boxes were turned back by EXIF.
        other_size: file names of those whose row and annotation disagree about height and width and that could not be
            turned back.
        unread: those of `other_size` whose picture could not be read again to check their rotation.
        unannotated: rows of images that are not annotated; they play no part.
        undeclared: detections of categories that the annotations do not declare; they play no part.
        detections: how many were measured.
        threshold: the highest of the rows; above 0 detections were left out, and AP is lower than the model's. None
            where it is not known, as of a results file.
        threshold_cost: where the threshold is above 0.
        kept_classes: where the rows keep some classes only: of the others nothing counts as found.
        models: whose detections these are, as rows name it; none where there are no rows of any of the images.
        annotations_sha256: what the figures can be compared by: equal for equal images, boxes and classes.
        matched_otherwise: sentences about images whose file is spelled or placed differently from the annotations.
        annotation_findings: what is wrong with the annotations, as sharding finds it: counts by kind.
        annotation_examples: a few sentences for each.
    """

    average_precision: AveragePrecision
    images: int
    missing: tuple[str, ...]
    errors: tuple[str, ...]
    turned_back: tuple[str, ...]
    other_size: tuple[str, ...]
    unread: tuple[str, ...]
    unannotated: int
    undeclared: int
    detections: int
    threshold: float | None
    threshold_cost: ThresholdCost | None
    kept_classes: tuple[str, ...] | None
    models: tuple[str, ...]
    annotations_sha256: str
    matched_otherwise: tuple[str, ...] = ()
    annotation_findings: Mapping[str, int] = field(default_factory=dict)
    annotation_examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def evaluated(self) -> int:
        """Images that there is an `ok` row of."""
        return self.images - len(self.missing) - len(self.errors)

    def as_json(self) -> Json:
        """Return what `metrics.json` holds: the twelve numbers by pycocotools' names, then the rest."""
        counts = {name: value for name, value in asdict(self).items() if name != "average_precision"}
        return {
            **self.average_precision.numbers(),
            "class_agnostic_AP": self.average_precision.class_agnostic,
            "classes": [asdict(one) for one in self.average_precision.classes],
            "evaluated": self.evaluated,
            **counts,
        }


def evaluate_table(
    table_uri: str,
    annotations: str | Annotations,
    *,
    options: StoreOptions | None = None,
    picture_size: tuple[int, int] | None = None,
    allow_thresholded: bool = False,
    choice: RowChoice | None = None,
    picture_options: StoreOptions | None = None,
    evaluator: Evaluator = "ultrafast",
) -> Evaluation:
    """Measure the published rows of a table, the current one of every image, against COCO annotations.

    Images are matched by the end of their URI, as `ImageNames` does it. Memory holds the keys of one row group at a
    time, and the detections of annotated images.

    Args:
        table_uri: the detection table.
        annotations: path or URI of a COCO json, or what was read of one.
        options: how stores are reached.
        picture_size: measure only on annotated images of this (height, width) in pixels; None is all, or those that the
            annotations were read for.
        allow_thresholded: whether a table that left out low scores or classes is measured all the same.
        choice: which rows count; None is all.
        picture_options: how pictures are reached whose turn matters; None is as the table.
        evaluator: which package computes the figures, which are the same.

    Raises:
        RayDetrError: the table or the annotations cannot be read, or one does not fit the other.
        ValueError: no annotated image has that size, or the rows left something out and that is not allowed.
    """
    from pipelines.evaluation.table_results import read_table_results  # here: a results json needs no pyarrow

    read = _read(annotations, options, picture_size)
    found = read_table_results(
        table_uri,
        read,
        options=options,
        picture_options=picture_options,
        choice=choice,
        allow_thresholded=allow_thresholded,
        queries=OFFICIAL_QUERIES,
    )
    measured = average_precision(read.truth, found.detections, image_ids=read.image_ids, evaluator=evaluator)
    cost = None
    if found.threshold > 0:
        cost = _cost(found.threshold, found.short, read, found.detections, evaluator)
    return Evaluation(
        average_precision=measured,
        images=len(read.image_ids),
        missing=found.missing,
        errors=found.errors,
        turned_back=found.turned_back,
        other_size=found.other_size,
        unread=found.unread,
        unannotated=found.unannotated,
        undeclared=_undeclared(read.truth, found.detections),
        detections=len(found.detections),
        threshold=found.threshold,
        threshold_cost=cost,
        kept_classes=found.classes,
        models=found.models,
        matched_otherwise=found.matched_otherwise,
        annotations_sha256=read.sha256,
        annotation_findings=read.findings,
        annotation_examples=read.examples,
    )


def check_has_images(evaluation: Evaluation) -> None:
    """Refuse what was measured on a table of other images.

    Raises:
        UsageError: the table has none of the annotated images.
    """
    if len(evaluation.missing) == evaluation.images:
        raise UsageError(
            f"none of the {evaluation.images:,} annotated images, such as {evaluation.missing[0]}, is in the table: "
            "rows are found by file name. Check both addresses."
        )


def evaluate_results(
    results: str,
    annotations: str | Annotations,
    *,
    options: StoreOptions | None = None,
    picture_size: tuple[int, int] | None = None,
    evaluator: Evaluator = "ultrafast",
) -> Evaluation:
    """Measure a COCO results json, boxes as they are there: the annotations must be of the same pictures.

    Args:
        results: path or URI of the json: rows of `image_id`, `category_id`, `bbox`, `score`.
        annotations: path or URI of a COCO json, or what was read of one.
        options: how stores are reached.
        picture_size: measure only on annotated images of this (height, width) in pixels; None is all, or those that the
            annotations were read for.
        evaluator: which package computes the figures, which are the same.

    Raises:
        RayDetrError: one of the two cannot be read, or they do not fit.
        ValueError: no annotated image has that size.
    """
    read = _read(annotations, options, picture_size)
    everywhere = read_results(results, read.numbers, options=options)
    detections = everywhere.where(np.isin(everywhere.image_ids, list(read.image_ids)))
    found = set(detections.image_ids.tolist())
    return Evaluation(
        average_precision=average_precision(read.truth, detections, image_ids=read.image_ids, evaluator=evaluator),
        images=len(read.image_ids),
        missing=tuple(
            sorted(
                image["file_name"]
                for image in read.truth["images"]
                if image["id"] in read.image_ids and image["id"] not in found
            )
        ),
        errors=(),
        turned_back=(),
        other_size=(),
        unread=(),
        unannotated=0,
        undeclared=_undeclared(read.truth, detections),
        detections=len(detections),
        threshold=None,
        threshold_cost=None,
        kept_classes=None,
        models=(),
        annotations_sha256=read.sha256,
        annotation_findings=read.findings,
        annotation_examples=read.examples,
    )


def _read(
    annotations: str | Annotations, options: StoreOptions | None, picture_size: tuple[int, int] | None
) -> Annotations:
    if isinstance(annotations, Annotations):
        return annotations
    return read_annotations(annotations, options=options, picture_size=picture_size)


def _undeclared(truth: Mapping[str, Any], detections: ResultColumns) -> int:
    declared = [category["id"] for category in truth["categories"]]
    return int(np.count_nonzero(~np.isin(detections.category_ids, declared)))


def _cost(
    threshold: float, short_images: int, annotations: Annotations, detections: ResultColumns, evaluator: Evaluator
) -> ThresholdCost:
    doubled = min(2 * threshold, 1.0)
    kept = detections.where(detections.scores >= doubled)
    measured = average_precision(annotations.truth, kept, image_ids=annotations.image_ids, evaluator=evaluator)
    return ThresholdCost(threshold, short_images, doubled, measured.AP)
