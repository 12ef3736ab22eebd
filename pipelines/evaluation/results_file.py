"""A COCO results json, what evaluation servers take: read, and checked row by row."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from detr.coco_results import ResultRow
from pipelines.stopped import RunStopped
from pipelines.store import StoreError, StoreOptions, Stores, without_secrets
from pipelines.strict_json import parse_json

FIELDS = ("image_id", "category_id", "bbox", "score")


def read_results(uri: str, image_ids: Collection[int], *, options: StoreOptions | None = None) -> list[ResultRow]:
    """Return the rows of a results json in the order of the file, other fields than COCO's four left out.

    Args:
        uri: path or URI.
        image_ids: that the annotations have.
        options: how stores are reached.

    Raises:
        RunStopped: it cannot be read, a row is none of COCO's, or is of an image that the annotations do not have.
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
    for number, row in enumerate(rows):
        reason = _fault(row, known)
        if reason:
            raise RunStopped(f"results {name}: row {number} {reason}.")
    return [{field: row[field] for field in FIELDS} for row in rows]


def _fault(row: object, image_ids: Collection[int]) -> str:
    """Return what is wrong with a row, or nothing."""
    if not isinstance(row, dict):
        return "is not an object"
    missing = [field for field in FIELDS if field not in row]
    if missing:
        hint = ": results of masks or key points have no AP of boxes" if missing == ["bbox"] else ""
        return f"has no {' and no '.join(missing)}{hint}"
    for field in ("image_id", "category_id"):
        if type(row[field]) is not int:
            return f"has the {field} {row[field]!r:.80}, which is not an integer"
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
    return type(value) in (int, float) and abs(value) < math.inf
