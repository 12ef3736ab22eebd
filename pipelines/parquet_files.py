"""Read columns of Parquet files in stores without fetching whole files, and report damage in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import OutOfMemory, RayDetrError
from pipelines.store import Store, StoreEntry, join_uri
from pipelines.store.object_file import ObjectFile

_TEXT: Final = "BYTE_ARRAY"  # Parquet's physical type of text

SMALL_BYTES: Final = 2**18  # bytes that take as long to transfer as three requests for a footer and some columns


@contextmanager
def parquet_of(name: str) -> Iterator[None]:
    """Convert pyarrow's errors for damaged bytes to a message about the file `name`; errors of stores are unchanged.

    Raises:
        OutOfMemory: there is too little memory, or damaged bytes request too much.
        RayDetrError: the bytes are damaged.
    """
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(
            f"{name} cannot be read: it needs more memory than is available. Check whether it is damaged, or run again "
            "with more memory."
        ) from error
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RayDetrError(f"{name} is damaged: it cannot be read as Parquet ({reason}).") from error


def open_bytes(data: bytes, name: str) -> pq.ParquetFile:
    """Return a Parquet file from its bytes.

    Raises:
        RayDetrError: the bytes are damaged.
    """
    with parquet_of(name):
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)


def open_object(store: Store, key: str, size: int, *, if_match: str | None = None) -> pq.ParquetFile:
    """Open a Parquet file of a store: fetch its footer now, and columns on request.

    Args:
        store: The store.
        key: The file's key there.
        size: Its bytes.
        if_match: The etag that it must have at each read.

    Raises:
        RayDetrError: the footer is damaged.
        Changed: with `if_match`.
        StoreError: the store refused.
    """
    with parquet_of(join_uri(store.uri, key)):
        return pq.ParquetFile(
            pa.PythonFile(ObjectFile(store, key, size, if_match=if_match), mode="r"),
            pre_buffer=True,
            page_checksum_verification=True,
        )


def open_listed(store: Store, entry: StoreEntry) -> pq.ParquetFile:
    """Open a Parquet file of a store like `open_object`, even if the listing does not have its size."""
    return open_object(store, entry.key, entry.size if entry.size is not None else len(store.get(entry.key).data))


def is_small(entry: StoreEntry) -> bool:
    """Return whether a listed file is fetched as a whole when its rows are read."""
    return entry.size is not None and entry.size <= SMALL_BYTES


def open_for_rows(store: Store, entry: StoreEntry) -> pq.ParquetFile:
    """Open a listed Parquet file to read rows: a small one is fetched now, in one request.

    Raises:
        RayDetrError: the bytes are damaged.
        StoreError: the store refused.
    """
    if is_small(entry):
        return open_bytes(store.get(entry.key).data, join_uri(store.uri, entry.key))
    return open_listed(store, entry)


def text_bounds(file: pq.ParquetFile, group: int, name: str) -> tuple[str, str] | None:
    """Return the smallest and the largest value of a column of text in a row group; None if they are unknown."""
    index = file.schema_arrow.get_field_index(name)
    # pyarrow ends the process for statistics of an inconsistent footer; reading the column reports the damage
    if file.schema.column(index).physical_type != _TEXT:
        return None
    column = file.metadata.row_group(group).column(index)
    statistics = column.statistics if column.physical_type == _TEXT else None
    if statistics is None or not statistics.has_min_max:
        return None
    return statistics.min, statistics.max


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values: of a dictionary (categories), that of its values."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is text, also as a dictionary."""
    kind = plain_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_number(kind: pa.DataType) -> bool:
    """Return whether a type is a number, or true and false."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema after a round trip through Parquet, which for example has no seconds."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return pq.read_schema(pa.BufferReader(sink.getvalue())).remove_metadata()
