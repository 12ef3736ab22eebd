"""Evaluation during training: all workers detect, and rank 0 computes the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

import numpy as np

from detr.detector import Detector
from detr.evaluation.average_precision import average_precision
from detr.evaluation.coco_results import ResultColumns, merge_results
from detr.images.decoding import ImageError
from detr.model import Detr
from detr.postprocess import Detections
from detr.precision import Precision
from pipelines.errors import RayDetrError
from pipelines.evaluation.annotations import truth_sha256
from pipelines.shards.reader import TrainingImage, decode_training_image
from pipelines.training.collective import Collective
from pipelines.training.row_groups import RowGroups, evaluation_images

WINDOW_IMAGES: Final = 32  # images decoded at a time, so that they can be sorted by shape
MISSING_EXAMPLES: Final = 3

Json = dict[str, Any]
Part = tuple[list[int], ResultColumns]
"""The images of a worker, and what it found in them: 5.6 kB an image of 100 detections. Rank 0 has all parts."""


def evaluate_on_all(
    model: Detr,
    groups: RowGroups,
    truth: Json | None,
    collective: Collective,
    *,
    device: str,
    precision: Precision,
) -> Json | None:
    """Return the COCO metrics of a model over all annotated images on rank 0, and None on other ranks.

    Images that are not in the shards count as images without detections, like error rows of the labelling job, so that
    the metrics are those of an evaluation with the original json. `missing` is the number of these images.

    Collective: every worker detects its share of the images with the detector that labels, at threshold 0 and with
    every query. The metrics do not depend on the number of workers.

    Args:
        model: the model, which is not changed.
        groups: row groups of the evaluation shards.
        truth: the annotations, needed on rank 0 only.
        collective: the group of workers.
        device: device of this worker.
        precision: precision of the network; "fp32" gives the metrics of the labelling job on a CPU.

    Raises:
        RayDetrError: an image cannot be read or the model produced NaN on any worker; raised on every worker.
    """
    problem = None
    image_ids: list[int] = []
    found: list[ResultColumns] = []
    try:
        detector = Detector(model, device=device, precision=precision, threshold=0.0)
        own = evaluation_images(groups, collective.rank, collective.workers)
        while images := list(islice(own, WINDOW_IMAGES)):
            pictures = [decode_training_image(image) for image in images]
            detections = detector(pictures)
            image_ids += [image.image_id for image in images]
            found.append(_columns(images, detections))
    except RayDetrError as error:
        problem = str(error)
    except (ImageError, FloatingPointError) as error:  # reported to all workers, which wait for this one
        problem = f"the model cannot be evaluated: {error}"
    part: Part = image_ids, ResultColumns.concatenate(found)
    gathered = collective.gather((part, problem))
    problem = collective.broadcast(next((sentence for _, sentence in gathered if sentence is not None), None))
    if problem is not None:
        raise RayDetrError(problem)
    if collective.rank != 0:
        return None
    assert truth is not None
    parts = [part for part, _ in gathered]
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    evaluated = {image_id for own_ids, _ in parts for image_id in own_ids}
    missing = [name for image_id, name in names.items() if image_id not in evaluated]
    score = average_precision(truth, merge_results([columns for _, columns in parts]), image_ids=set(names))
    return {
        **score.numbers(),
        "class_agnostic_AP": score.class_agnostic,
        "classes": [asdict(one) for one in score.classes],
        "images": len(names),
        "missing": len(missing),
        "missing_examples": missing[:MISSING_EXAMPLES],
        "annotations_sha256": truth_sha256(truth, set(names)),
        "threshold": 0.0,
    }


def _columns(images: Sequence[TrainingImage], detections: Sequence[Detections]) -> ResultColumns:
    return ResultColumns.concatenate(
        [
            ResultColumns.of_corners(
                np.full(len(one.scores), image.image_id), one.category_ids, one.scores, one.boxes_xyxy.numpy()
            )
            for image, one in zip(images, detections, strict=True)
        ]
    )
