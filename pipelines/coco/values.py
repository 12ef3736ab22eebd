"""Parse values of a COCO json as exporters write them, by the same rules for every command."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

MOST_INT64: Final = 2**63 - 1
MOST_INT32: Final = 2**31 - 1

_MOST_NUMBER: Final = 1e300  # above this, products of two sides overflow
_LONGEST_TEXT: Final = 64  # characters of a number written as text
_WHOLE: Final = re.compile(r"[+-]?\d+(?:\.0*)?")
_DECIMAL: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_NO: Final = frozenset({"", "0", "false", "no", "n", "f", "none", "null"})

Json = dict[str, Any]


def whole(value: object, most: int = MOST_INT64) -> int | None:
    """Return a json value as an integer of at most `most`, or None.

    5, 5.0, "5" and "5.0" are integers; true and 5.5 are not.
    """
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST_TEXT or not _WHOLE.fullmatch(text):
            return None
        value = int(text.partition(".")[0])
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > most:
        return None
    return int(value) if value == int(value) else None


def number(value: object) -> float | None:
    """Return a json value as a number, or None. 5, 5.5, "5.5" and NaN are numbers, true is not."""
    if isinstance(value, str):
        text = value.strip()
        return float(text) if len(text) <= _LONGEST_TEXT and _DECIMAL.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isinstance(value, float) or abs(value) < _MOST_NUMBER else None


def box(value: object) -> list[float] | None:
    """Return a json value as the four numbers of a box; None if it is not a list of four numbers.

    A list that a table converted to text, "[1, 2, 3, 4]", is accepted.
    """
    if isinstance(value, str) and value.lstrip().startswith("[") and len(value) <= 4 * _LONGEST_TEXT:
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [one for one in map(number, value) if one is not None]
    return numbers if len(numbers) == 4 else None


def is_finite_box(numbers: list[float]) -> bool:
    """Return whether the numbers of a box are finite, and small enough to compute with."""
    return all(math.isfinite(one) and abs(one) < _MOST_NUMBER for one in numbers)


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation is of a crowd: `iscrowd` is present and true.

    False are 0, false, null, an empty string, and strings of these; everything else is true.
    """
    value = annotation.get("iscrowd")
    if isinstance(value, str):
        return value.strip().casefold() not in _NO and number(value) != 0
    return bool(value)


def area(annotation: Mapping[str, Any]) -> float | None:
    """Return the area of an annotation in square pixels; None if the json has no usable one."""
    value = number(annotation.get("area"))
    return value if value is not None and is_finite_box([value]) else None


def picture_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of an image in pixels; None if the json does not have both.

    Raises:
        ValueError: a side is not a whole number of pixels; the error has the field's name.
    """
    sides = []
    for field in ("height", "width"):
        value = image.get(field)
        side = 0 if value is None or value == "" else whole(value, MOST_INT32)
        if side is None or side < 0:
            raise ValueError(field)
        sides.append(side)
    height, width = sides
    return (height, width) if height and width else None


def id_key(value: object) -> int | str | None:
    """Return the value by which ids are compared: 5 for 5, 5.0 and "5"; other strings unchanged; None without an id."""
    if isinstance(value, bool):
        return None
    found = whole(value, 10**_LONGEST_TEXT)
    if found is not None:
        return found
    return value if isinstance(value, str) and value else None


def id_hash(key: int | str) -> int:
    """Return a signed 64-bit hash of an id, the same on every machine; a small integer is its own hash."""
    if isinstance(key, int) and -MOST_INT64 <= key <= MOST_INT64:
        return key
    digest = hashlib.blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def has_numbers_as_text(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation has numbers that are written as text."""
    texts = [annotation.get(field) for field in ("category_id", "area")]
    value = annotation.get("bbox")
    texts += value if isinstance(value, list) else [value] if box(value) is not None else []
    return any(isinstance(text, str) and (text == value or number(text) is not None) for text in texts)


def annotation_problem(annotation: Mapping[str, Any]) -> str | None:
    """Return why training cannot use the box of an annotation, ignoring its position in the image; None if it can."""
    numbers = box(annotation.get("bbox"))
    if numbers is None:
        return "boxes_missing"
    if not is_finite_box(numbers):
        return "boxes_not_finite"
    return "boxes_without_area" if numbers[2] <= 0 or numbers[3] <= 0 else None


def shown(value: object) -> str:
    """Return a json value for a message: as json, truncated if long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
