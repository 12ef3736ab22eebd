"""Rows as files of one format each, written piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, time
from itertools import chain
from typing import IO, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError

_SLICE_ROWS: Final = 256  # rows that are Python objects at a time


class RowsWriter(Protocol):
    """A writer of rows to one file."""

    def add(self, rows: pa.Table) -> None:
        """Write more rows."""
        ...

    def close(self) -> None:
        """Write the end of the file, without closing it."""
        ...


class ParquetRows:
    """Parquet like the table's own files, with a row group for each call of `add`."""

    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(
            sink, schema, compression="zstd", write_page_index=True, write_page_checksum=True
        )

    def add(self, rows: pa.Table) -> None:
        """Write a row group."""
        # pyarrow 26 stops using a dictionary if the next chunk has another one
        self._writer.write_table(rows.unify_dictionaries(), row_group_size=max(1, len(rows)))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class JsonLinesRows:
    """A JSON object a line: times as ISO 8601, detections as in the table; UTF-8."""

    def __init__(self, sink: IO[bytes], _: pa.Schema) -> None:
        self._sink = sink

    def add(self, rows: pa.Table) -> None:
        """Write a line for each row.

        Raises:
            RayDetrError: a kept column has values that JSON cannot represent.
        """
        parts = (rows.slice(first, _SLICE_ROWS).to_pylist() for first in range(0, len(rows), _SLICE_ROWS))
        for row in chain.from_iterable(parts):
            try:
                line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text)
            except (TypeError, ValueError) as error:
                raise RayDetrError(
                    f"the row of {row['uri']} contains a value that JSON cannot represent ({error}). Export it as "
                    "Parquet."
                ) from error
            self._sink.write(line.encode() + b"\n")

    def close(self) -> None:
        """Do nothing: each line is complete."""


WRITERS: Final[Mapping[str, Callable[[IO[bytes], pa.Schema], RowsWriter]]] = {
    "parquet": ParquetRows,
    "jsonl": JsonLinesRows,
}


def _as_text(value: object) -> str:
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__}")
