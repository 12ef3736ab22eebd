"""Evaluation during training: all workers detect, and rank 0 computes the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

from detr.detector import Detector
from detr.evaluation.average_precision import average_precision
from detr.evaluation.coco_results import ResultRow, merge_results, result_rows
from detr.images.decoding import ImageError
from detr.model import Detr
from detr.precision import Precision
from pipelines.errors import RayDetrError
from pipelines.evaluation.annotations import truth_sha256
from pipelines.shards.reader import decode_training_image
from pipelines.training.collective import Collective
from pipelines.training.row_groups import RowGroups, evaluation_images

WINDOW_IMAGES: Final = 32  # images decoded at a time, so that they can be sorted by shape
MISSING_EXAMPLES: Final = 3

Json = dict[str, Any]
Part = dict[int, Sequence[ResultRow]]


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
    part: Part = {}
    try:
        detector = Detector(model, device=device, precision=precision, threshold=0.0)
        own = evaluation_images(groups, collective.rank, collective.workers)
        while images := list(islice(own, WINDOW_IMAGES)):
            pictures = [decode_training_image(image) for image in images]
            for image, found in zip(images, detector(pictures), strict=True):
                part[image.image_id] = result_rows(
                    image.image_id, found.category_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist()
                )
    except RayDetrError as error:
        problem = str(error)
    except (ImageError, FloatingPointError) as error:  # reported to all workers, which wait for this one
        problem = f"the model cannot be evaluated: {error}"
    gathered = collective.gather((part, problem))
    problem = collective.broadcast(next((sentence for _, sentence in gathered if sentence is not None), None))
    if problem is not None:
        raise RayDetrError(problem)
    if collective.rank != 0:
        return None
    assert truth is not None
    parts = [part for part, _ in gathered]
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    image_ids = set(names)
    missing = [name for image_id, name in names.items() if not any(image_id in part for part in parts)]
    score = average_precision(truth, merge_results(parts), image_ids=image_ids)
    return {
        **score.numbers(),
        "class_agnostic_AP": score.class_agnostic,
        "classes": [asdict(one) for one in score.classes],
        "images": len(image_ids),
        "missing": len(missing),
        "missing_examples": missing[:MISSING_EXAMPLES],
        "annotations_sha256": truth_sha256(truth, image_ids),
        "threshold": 0.0,
    }
