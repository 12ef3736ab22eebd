"""Read and check a COCO results json, the format of evaluation servers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from detr.evaluation.coco_results import ResultColumns, ResultRow
from pipelines.coco.documents import read_document
from pipelines.coco.text import json_text
from pipelines.coco.values import box, id_key, is_finite_box, number, whole
from pipelines.errors import UsageError
from pipelines.store import StoreOptions, without_secrets
from pipelines.strict_json import parse_json

FIELDS = ("image_id", "category_id", "bbox", "score")


def read_results(
    uri: str, image_numbers: Mapping[int | str, int], *, options: StoreOptions | None = None
) -> ResultColumns:
    """Return the rows of a results json in the order of the file, with COCO's four fields only.

    Ids and numbers are read as in annotations: 1, 1.0 and "1" are equal.

    Args:
        uri: path or URI.
        image_numbers: the images that the annotations have, each with its number by `id_key`.
        options: how stores are reached.

    Raises:
        UsageError: it cannot be read, a row is not one of COCO's, or is of an image that the annotations do not have.
    """
    name = without_secrets(uri)
    data = read_document(uri, what="the results", options=options)
    try:
        rows = parse_json(json_text(data, name=f"results {name}"))
    except ValueError as error:
        raise UsageError(f"results {name}: this is not JSON ({error}).") from error
    if not isinstance(rows, list):
        raise UsageError(
            f"results {name}: this is not a list of rows with {', '.join(FIELDS)}, as COCO's results files are."
        )
    if all(key == found for key, found in image_numbers.items()):
        columns = _columns(rows, frozenset(image_numbers.values()))
        if columns is not None:
            return columns
    read: list[ResultRow] = []
    for position, row in enumerate(rows):
        try:
            read.append(_read_row(row, image_numbers))
        except ValueError as error:
            raise UsageError(f"results {name}: row {position} {error}.") from error
    return ResultColumns.of_rows(read)


def _columns(rows: Sequence[Any], image_ids: frozenset[int]) -> ResultColumns | None:
    """Return rows of plain numbers, or None. Converts by column, which takes a fraction of the time."""
    try:
        images, categories, boxes, scores = ([row[field] for row in rows] for field in FIELDS)
    except (KeyError, TypeError):
        return None
    if set(map(type, chain(images, categories))) - {int} or not image_ids.issuperset(images):
        return None
    if set(map(type, boxes)) - {list} or set(map(len, boxes)) - {4}:
        return None
    sides = list(chain.from_iterable(boxes))
    if set(map(type, chain(sides, scores))) - {int, float}:
        return None
    try:
        columns = ResultColumns(
            np.array(images, np.int64),
            np.array(categories, np.int64),
            np.array(sides, np.float64).reshape(-1, 4),
            np.array(scores, np.float64),
        )
    except OverflowError:
        return None
    is_finite = np.isfinite(columns.boxes_xywh).all() and np.isfinite(columns.scores).all()
    return columns if is_finite and (columns.boxes_xywh[:, 2:] >= 0).all() else None


def _read_row(row: object, image_numbers: Mapping[int | str, int]) -> ResultRow:
    """Return a row with converted numbers.

    Raises:
        ValueError: it is not one of COCO's, or of an image that the annotations do not have.
    """
    if not isinstance(row, dict):
        raise ValueError("is not an object")  # noqa: TRY004 - the file is wrong, not who calls
    missing = [field for field in FIELDS if field not in row]
    if missing:
        hint = ": results of masks or key points have no box AP" if missing == ["bbox"] else ""
        raise ValueError(f"has no {' and no '.join(missing)}{hint}")
    key, category_id = id_key(row["image_id"]), whole(row["category_id"])
    if key is None:
        raise ValueError(f"has the image_id {row['image_id']!r:.80}, which is not a valid id")
    if category_id is None:
        raise ValueError(f"has the category_id {row['category_id']!r:.80}, which is not an integer of 64 bits")
    sides, score = box(row["bbox"]), number(row["score"])
    if sides is None or not is_finite_box(sides):
        raise ValueError(f"has the bbox {row['bbox']!r:.80}, which is not x, y, width, height")
    if sides[2] < 0 or sides[3] < 0:
        raise ValueError(
            f"has the bbox {row['bbox']!r:.80}, whose width or height is negative: COCO's is x, y, width, height"
        )
    if score is None or not math.isfinite(score):
        raise ValueError(f"has the score {row['score']!r:.80}, which is not a number")
    if key not in image_numbers:
        raise ValueError(f"is of image {row['image_id']!r:.80}, which is not in the annotations")
    bbox = row["bbox"] if sides == row["bbox"] else sides
    return {
        "image_id": image_numbers[key],
        "category_id": category_id,
        "bbox": bbox,
        "score": score if isinstance(row["score"], str) else row["score"],
    }
