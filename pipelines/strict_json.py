"""JSON that may have been damaged since it was written: whatever is wrong with it is a ValueError, what passes fits.

`json.loads` alone answers deep nesting with a RecursionError, and lets through what neither Parquet nor terminals take.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from typing import Any, NoReturn

MOST = 2**63 - 1  # what the integers of Parquet and numpy hold


def parse_json(data: str | bytes) -> Any:
    """Return the value of a JSON document of any origin; as Python does, with NaN and infinities.

    Raises:
        ValueError: it is not JSON, or is nested deeper than can be read.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # it would search the growing document for garbage again and again, a third of the time in all
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        if was_enabled:
            gc.enable()


def parse_object(data: str | bytes) -> dict[str, Any]:
    """Return the fields of a record that we wrote: an object, without what neither UTF-8 nor other readers take.

    Raises:
        ValueError: it is no such JSON: nested too deeply, with NaN, infinities or halves of surrogate pairs.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - the document is wrong, not who calls
    return value


def count_field(fields: Mapping[str, Any], name: str) -> int:
    """Return a field that counts something: an integer from 0 on.

    Raises:
        ValueError: there is no such field, or it is something else.
    """
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError(f"{name} is not a count")
    return value


def counts_field(fields: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return a field that counts several things, each by its name.

    Raises:
        ValueError: there is no such field, or it is something else.
    """
    value = fields.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")  # noqa: TRY004 - as above
    return {key: count_field(value, key) for key in value}


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Return a field that is a text.

    Raises:
        ValueError: there is no such field, or it is something else.
    """
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")  # noqa: TRY004 - as above
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")
