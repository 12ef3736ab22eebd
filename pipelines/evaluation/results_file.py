"""A COCO results json, what evaluation servers take: read into columns and checked."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import numpy as np

from detr.coco_results import ResultColumns
from pipelines.stopped import RunStopped
from pipelines.store import StoreError, StoreOptions, Stores, without_secrets
from pipelines.strict_json import MOST, parse_json

FIELDS = ("image_id", "category_id", "bbox", "score")


def read_results(uri: str, image_ids: Collection[int], *, options: StoreOptions | None = None) -> ResultColumns:
    """Return the rows of a results json in the order of the file, without other fields than COCO's four.

    Args:
        uri: path or URI.
        image_ids: that the annotations have.
        options: how stores are reached.

    Raises:
        RunStopped: it cannot be read, a row is not one of COCO's, or is of an image that the annotations do not have.
    """
    name = without_secrets(uri)
    try:
        data = Stores(options).get(uri).data
    except StoreError as error:
        raise RunStopped(f"cannot read the results: {error}") from error
    try:
        rows = parse_json(data)
    except ValueError as error:
        raise RunStopped(f"results {name}: this is not JSON ({error}).") from error
    if not isinstance(rows, list):
        raise RunStopped(
            f"results {name}: this is not a list of rows with {', '.join(FIELDS)}, as COCO's results files are."
        )
    known = frozenset(image_ids)
    columns = _columns(rows, known)
    if columns is not None:
        return columns
    for number, row in enumerate(rows):
        reason = _fault(row, known)
        if reason:
            raise RunStopped(f"results {name}: row {number} {reason}.")
    return ResultColumns.of_rows(rows)


def _columns(rows: Sequence[Any], image_ids: frozenset[int]) -> ResultColumns | None:
    """Return rows in which `_fault` finds nothing, else None: by column, which takes a fraction of the time."""
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


def _fault(row: object, image_ids: Collection[int]) -> str:
    """Return what is wrong with a row, or nothing."""
    if not isinstance(row, dict):
        return "is not an object"
    missing = [field for field in FIELDS if field not in row]
    if missing:
        hint = ": results of masks or key points have no AP of boxes" if missing == ["bbox"] else ""
        return f"has no {' and no '.join(missing)}{hint}"
    for field in ("image_id", "category_id"):
        if type(row[field]) is not int or abs(row[field]) > MOST:
            return f"has the {field} {row[field]!r:.80}, which is not an integer of 64 bits"
    box, score = row["bbox"], row["score"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f"has the bbox {box!r:.80}, which is not x, y, width, height"
    if box[2] < 0 or box[3] < 0:
        return f"has the bbox {box!r:.80}, whose width or height is negative: COCO's is x, y, width, height"
    if not _is_number(score):
        return f"has the score {score!r:.80}, which is not a number"
    if row["image_id"] not in image_ids:
        return f"is of image {row['image_id']}, which the annotations do not have"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
