"""Columns of lists of images that are kept in the table, and their types."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from pipelines.errors import RayDetrError
from pipelines.lake.uri_tables import UriTable
from pipelines.parquet_files import is_number, is_text, plain_type, stored_schema
from pipelines.table.schema import NO_COLUMNS


def kept_schema(tables: Sequence[UriTable], keep: Sequence[str], stored: pa.Schema = NO_COLUMNS) -> pa.Schema:
    """Return the names and types of the kept columns.

    Args:
        tables: all lists of images.
        keep: names of columns.
        stored: columns of the newest file of the detection table.

    Raises:
        RayDetrError: no list has a column, or two have it in types that cannot be joined.
    """
    fields = []
    for name in keep:
        having = [table for table in tables if name in table.columns]
        if not having:
            where = ", ".join(table.name for table in tables) or "the images: no table of URIs is among them"
            near = difflib.get_close_matches(name, [column for table in tables for column in table.columns], 1)
            raise RayDetrError(
                f"keep: there is no column {name!r} in {where}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
        fields.append(pa.field(name, _common_type(name, having, _stored_type(name, stored))))
    return stored_schema(pa.schema(fields))


def with_types(table: UriTable, schema: pa.Schema) -> UriTable:
    """Return a list whose kept numbers are text where a schema has text."""
    rows = table.rows
    for place, name in enumerate(rows.column_names[3:], start=3):
        kind = plain_type(rows.schema.field(name).type)
        if is_number(kind) and is_text(schema.field(name).type):
            rows = rows.set_column(place, name, rows[name].cast(kind).cast(pa.string()))
    return replace(table, rows=rows)


def _stored_type(name: str, stored: pa.Schema) -> pa.DataType | None:
    return plain_type(stored.field(name).type) if name in stored.names else None


def _common_type(name: str, tables: Sequence[UriTable], stored: pa.DataType | None) -> pa.DataType:
    """Return a type for the values of a column in all lists, that of the table if it can hold them.

    A column without values gets the type of the table; text if that has none, because readers of tables refuse to join
    a column of nulls with one of values. Numbers beside text are text: in CSV the values alone decide the type.

    Raises:
        RayDetrError: the types are different.
    """
    kinds: dict[pa.DataType, str] = {}
    for table in tables:
        kinds.setdefault(plain_type(table.rows.schema.field(name).type), table.name)
    valued = [kind for kind in kinds if not pa.types.is_null(kind)]
    known = None if stored is None or pa.types.is_null(stored) else stored
    if not valued:
        return known or pa.string()
    candidates = [*valued, known] if known is not None and (is_text(known) or known == pa.float64()) else valued
    if len(set(candidates)) == 1:
        return valued[0]
    if any(map(is_text, candidates)) and all(is_text(kind) or is_number(kind) for kind in candidates):
        return pa.string()
    if set(candidates) == {pa.int64(), pa.float64()} and all(_fits_double(table.rows[name]) for table in tables):
        return pa.float64()
    if len(valued) == 1:
        return valued[0]
    said = ", ".join(f"{kind} in {table}" for kind, table in kinds.items() if kind in valued)
    raise RayDetrError(f"keep: column {name!r} has several types: {said}. Use one type.")


def _fits_double(column: pa.ChunkedArray) -> bool:
    """Return whether no digit of a number is lost in a double."""
    try:
        column.cast(plain_type(column.type)).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
