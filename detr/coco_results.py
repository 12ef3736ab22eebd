"""Detections as the rows of COCO's results files: one a detection, `image_id`, `category_id`, `bbox`, `score`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

ResultRow: TypeAlias = dict[str, Any]


def result_rows(
    image_id: int, category_ids: Sequence[int], scores: Sequence[float], boxes_xyxy: Sequence[Sequence[float]]
) -> list[ResultRow]:
    """Return the rows of one image, in the order given; `bbox` is x, y, width, height.

    Args:
        image_id: as the annotations have it.
        category_ids: N plain integers, the data set's own; `tensor.tolist()` gives such.
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


def merge_results(parts: Iterable[Mapping[int, Sequence[ResultRow]]]) -> list[ResultRow]:
    """Return the rows of all workers' images: each image once, images by id, an image's rows in the order given.

    The figures over them do not depend on how the images were dealt, nor on images that several workers were given
    so that all have equally many: pycocotools takes equal scores in the order of images, and of an image's rows.

    Args:
        parts: of each worker, its rows by image id; an image in which nothing was found has an empty sequence, or none.
            Of an image that came several times the first part that has it counts.
    """
    merged: dict[int, Sequence[ResultRow]] = {}
    for part in parts:
        for image_id, rows in part.items():
            merged.setdefault(image_id, rows)
    return [row for image_id in sorted(merged) for row in merged[image_id]]
