"""Types of the columns that a run keeps from lists of images: those that a plan can store and Python can represent."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RayDetrError
from pipelines.parquet_files import is_number, is_text, plain_type

_EPOCH: Final = date(1970, 1, 1)
_UTC: Final = ("UTC", "Etc/UTC", "GMT", "Z", "+00:00")
_IN_A_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6}


def plannable(column: pa.ChunkedArray, name: str, table: str) -> pa.ChunkedArray:
    """Return a kept column whose Python values a plan can store: without views, times in microseconds, Python's unit.

    Categories of text and numbers stay categories, which take less memory; `plain_type` is the type of their values.

    Raises:
        RayDetrError: a time has fractions of a microsecond, or is outside the years 1 to 9999.
    """
    if pa.types.is_dictionary(column.type) and (is_text(column.type) or is_number(column.type.value_type)):
        return column
    wanted = _plannable_type(column.type)
    if column.type != wanted:
        try:
            column = column.cast(wanted)
        except pa.ArrowInvalid as error:
            raise RayDetrError(
                f"keep: column {name!r} of {table} has fractions of a microsecond. Round it, or store it as text."
            ) from error
    limits = _python_limits(wanted)
    if limits is not None:
        found = pc.min_max(column.cast(pa.int32() if pa.types.is_date32(wanted) else pa.int64()))
        if any(value is not None and not limits[0] <= value <= limits[1] for value in found.as_py().values()):
            raise RayDetrError(
                f"keep: column {name!r} of {table} has times that Python cannot represent, such as infinity (the years "
                "must be 1 to 9999). Replace them by nulls, or store the column as text."
            )
    return column


def _plannable_type(kind: pa.DataType) -> pa.DataType:
    kind = plain_type(kind)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    return kind


def _python_limits(kind: pa.DataType) -> tuple[int, int] | None:
    """Return the smallest and largest number behind a time that Python represents; None if the type is not a time."""
    if pa.types.is_date32(kind):
        return (date.min - _EPOCH).days, (date.max - _EPOCH).days
    if pa.types.is_date64(kind):
        return (date.min - _EPOCH).days * 86_400_000, (date.max - _EPOCH).days * 86_400_000
    if pa.types.is_timestamp(kind):
        day = 86_400 * _IN_A_SECOND[kind.unit]
        margin = 0 if kind.tz in (None, *_UTC) else day  # Python converts a time to its zone
        return (date.min - _EPOCH).days * day + margin, ((date.max - _EPOCH).days + 1) * day - 1 - margin
    if pa.types.is_duration(kind):
        most = timedelta.max.days * 86_400 * _IN_A_SECOND[kind.unit]
        return -most, most
    return None
