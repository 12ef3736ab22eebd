"""Evaluate the detections of a table or a results file against COCO annotations of the same images."""

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
    from pipelines.evaluation.class_numbers import MatchClasses
    from pipelines.evaluation.table_results import RowChoice, TableResults

OFFICIAL_QUERIES = 100
"""Detections per image of the official models if none are left out."""


@dataclass(frozen=True, slots=True)
class ThresholdCost:
    """An indication, from the kept detections, of how a threshold changed AP.

    The AP of all detections is never lower than that of the kept ones; the difference cannot be computed from these.
    The loss from doubling the threshold again is a hint, but neither a bound nor an estimate: on 40 drawn scenes it was
    0.0001 from 0.05 to 0.1, while 0.05 itself had cost 0.0016 (MEASURED).

    Attributes:
        threshold: detections below it were dropped.
        short_images: images with fewer than 100 detections, the number of the official models at threshold 0.
        doubled: twice the threshold, 1 at most.
        AP_doubled: AP of the detections that reach that.
    """

    threshold: float
    short_images: int
    doubled: float
    AP_doubled: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation. File names are those of the annotations.

    Attributes:
        average_precision: over all `images`; an image without detections counts as missed.
        images: number of annotated images, which are evaluated.
        missing: file names of those without a row.
        errors: file names of those whose row is an error.
        turned_back: file names of those that were annotated as stored: their boxes were rotated back by EXIF.
        other_size: file names of those whose row and annotation differ in height and width and that could not be
            rotated back.
        unread: those of `other_size` whose picture could not be read again to check their rotation.
        unannotated: rows of images that are not annotated, which are ignored.
        undeclared: detections of categories that the annotations do not declare, which are ignored.
        detections: number of evaluated detections.
        threshold: the highest of the rows; above 0, detections were left out, and AP is lower than the model's. None if
            unknown, as for a results file.
        threshold_cost: if the threshold is above 0.
        kept_classes: the classes of the rows if only some were kept; objects of other classes count as missed.
        models: the models of the rows; empty if none of the images has a row.
        annotations_sha256: figures are comparable if it is equal: it depends on images, boxes and classes.
        matched_otherwise: sentences about images whose file has another spelling or folder than in the annotations.
        renamed_classes: sentences about numbers whose class has another name in the annotations.
        annotation_findings: problems of the annotations, as in sharding: counts by kind.
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
    renamed_classes: tuple[str, ...] = ()
    annotation_findings: Mapping[str, int] = field(default_factory=dict)
    annotation_examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def evaluated(self) -> int:
        """Number of images with an `ok` row."""
        return self.images - len(self.missing) - len(self.errors)

    def as_json(self) -> Json:
        """Return the contents of `metrics.json`: the twelve numbers by pycocotools' names, then the rest."""
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
    match_classes: MatchClasses | None = None,
    choice: RowChoice | None = None,
    picture_options: StoreOptions | None = None,
    evaluator: Evaluator = "ultrafast",
) -> Evaluation:
    """Evaluate the current published row of every image of a table against COCO annotations.

    Images are matched by the end of their URI, as in `ImageNames`. Memory: the keys of one row group at a time, and the
    detections of annotated images.

    Args:
        table_uri: the detection table.
        annotations: path or URI of a COCO json, or its parsed `Annotations`.
        options: access to stores.
        picture_size: evaluate only annotated images of this (height, width) in pixels; None is all, or those that the
            annotations were read for.
        allow_thresholded: whether to evaluate a table that left out low scores or classes.
        match_classes: whether classes are matched by number or name; None is by number, refused where a name has
            another number in the annotations.
        choice: the rows to use; None is all.
        picture_options: access to pictures whose rotation must be read; None is as for the table.
        evaluator: the package that computes the figures; both give the same.

    Raises:
        RayDetrError: the table or the annotations cannot be read, or one does not fit the other.
        ValueError: no annotated image has that size, or the rows left something out and that is not allowed.
    """
    from pipelines.evaluation.table_results import read_table_results  # imported here: a results json needs no pyarrow

    read = _read(annotations, options, picture_size)
    found = read_table_results(
        table_uri,
        read,
        options=options,
        picture_options=picture_options,
        choice=choice,
        allow_thresholded=allow_thresholded,
        match_classes=match_classes,
        queries=OFFICIAL_QUERIES,
    )
    return evaluate_rows(found, read, evaluator=evaluator)


def evaluate_rows(found: TableResults, annotations: Annotations, *, evaluator: Evaluator = "ultrafast") -> Evaluation:
    """Evaluate rows that were read from a table against the annotations that they were read for."""
    measured = average_precision(
        annotations.truth, found.detections, image_ids=annotations.image_ids, evaluator=evaluator
    )
    cost = None
    if found.threshold > 0:
        cost = _cost(found.threshold, found.short, annotations, found.detections, evaluator)
    return Evaluation(
        average_precision=measured,
        images=len(annotations.image_ids),
        missing=found.missing,
        errors=found.errors,
        turned_back=found.turned_back,
        other_size=found.other_size,
        unread=found.unread,
        unannotated=found.unannotated,
        undeclared=_undeclared(annotations.truth, found.detections),
        detections=len(found.detections),
        threshold=found.threshold,
        threshold_cost=cost,
        kept_classes=found.classes,
        models=found.models,
        matched_otherwise=found.matched_otherwise,
        renamed_classes=found.renamed,
        annotations_sha256=annotations.sha256,
        annotation_findings=annotations.findings,
        annotation_examples=annotations.examples,
    )


def check_has_images(evaluation: Evaluation) -> None:
    """Refuse an evaluation of a table with other images.

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
    """Evaluate a COCO results json with unchanged boxes: the annotations must be of the same pictures.

    Args:
        results: path or URI of the json: rows of `image_id`, `category_id`, `bbox`, `score`.
        annotations: path or URI of a COCO json, or its parsed `Annotations`.
        options: access to stores.
        picture_size: evaluate only annotated images of this (height, width) in pixels; None is all, or those that the
            annotations were read for.
        evaluator: the package that computes the figures; both give the same.

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
