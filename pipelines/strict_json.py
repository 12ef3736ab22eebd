"""Read JSON that may be damaged: every problem is a ValueError.

Pydantic reads our records into frozen dataclasses. It is imported with the first record, because the import takes 0.08
s of CPU time, which `--help` and commands without records do not need.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema

MOST: Final = 2**63 - 1  # the range of integers of Parquet and numpy

Record = TypeVar("Record")


class _IsCount:
    """Marks an integer from 0 to 2^63 - 1."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.int_schema(strict=True, ge=0, le=MOST)


class _IsTime:
    """Marks a time in the format of `datetime.isoformat`; pydantic's own parser also accepts seconds since 1970."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        text = core_schema.str_schema(strict=True)
        return core_schema.no_info_after_validator_function(datetime.fromisoformat, text)


Count = Annotated[int, _IsCount()]
Time = Annotated[datetime, _IsTime()]


def parse_json(data: str | bytes) -> Any:
    """Return the value of a JSON document from any source, with NaN and infinities.

    Raises:
        ValueError: it is not JSON, or is nested deeper than can be read.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # it would repeatedly search the growing document for garbage, a third of the total time
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        if was_enabled:
            gc.enable()


def parse_object(data: str | bytes) -> dict[str, Any]:
    """Return the fields of a record that we wrote. Of fields with the same name, the last one counts.

    Raises:
        ValueError: it is not a JSON object, is nested too deeply, or contains NaN, infinities or halves of surrogate
            pairs, which other readers do not accept.
    """
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _encode(value)  # refuses NaN and halves of surrogate pairs
    if not isinstance(value, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - the document is wrong, not the caller
    return value


def read_record(kind: type[Record], data: str | bytes) -> Record:
    """Return the record in a JSON document; see `record_of`.

    Raises:
        ValueError: the document is damaged.
    """
    return record_of(kind, parse_object(data))


def record_of(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Return the dataclass with these JSON values, which must be of exactly the fields' types.

    Unknown and missing fields are refused at every depth, even missing ones with a default.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of range, contains NaN or infinities, or is
            nested more than 200 deep. One sentence about the first such field.
    """
    from pydantic import ValidationError

    try:
        record: Record = _adapter(kind).validate_json(_encode([values]))[0]  # type: ignore[arg-type] # a class is hashable
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][1:]))
        raise ValueError(f"{place[:100]!r}: {first['msg'][:200]}") from None
    for name in _missing(record, values):
        raise ValueError(f"{name!r} is missing")
    return record


@cache
def _adapter(kind: Hashable) -> TypeAdapter[tuple[Any]]:
    from pydantic import ConfigDict, TypeAdapter

    # in a tuple, because pydantic accepts no configuration for a dataclass, which inherits that of the tuple
    one: Any = tuple[kind]  # type: ignore[valid-type]
    return TypeAdapter(one, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))


def _missing(record: object, values: Any) -> Iterator[str]:
    """Yield the fields of a dataclass and its nested ones that are missing in the values."""
    if isinstance(record, tuple) and any(map(is_dataclass, record[:1])):
        for one, value in zip(record, values, strict=True):
            yield from _missing(one, value)
    elif is_dataclass(record):
        for field in fields(record):
            if field.name in values:
                yield from _missing(getattr(record, field.name), values[field.name])
            else:
                yield field.name


def _encode(value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
