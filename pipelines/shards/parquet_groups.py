"""Reads one row group of a Parquet object with one request."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.parquet_files import parquet_of
from pipelines.store import Store, join_uri


def read_row_group(
    store: Store, key: str, footer: pq.FileMetaData, group: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return columns of one row group of an object whose footer is known.

    Fetches all columns of the group, because they are adjacent; this suits files in which one wanted column is most of
    the data. Memory: the stored group and the returned columns. Can be used by several threads.

    Raises:
        RayDetrError: the object is damaged.
        StoreError: the store refused or did not answer.
    """
    start, end = _stretch(footer, group)
    data = store.get_range(key, start, end - start)
    with parquet_of(join_uri(store.uri, key)):
        # without pre_buffer: it is one request already
        file = pq.ParquetFile(
            pa.PythonFile(_Stretch(data, start), mode="r"),
            metadata=footer,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        return file.read_row_group(group, columns=None if columns is None else list(columns), use_threads=False)


def _stretch(footer: pq.FileMetaData, group: int) -> tuple[int, int]:
    """Return the first byte of a row group and the byte after its end."""
    row_group = footer.row_group(group)
    chunks = [row_group.column(column) for column in range(row_group.num_columns)]
    starts = [
        chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
        for chunk in chunks
    ]
    ends = [start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)]
    return min(starts), max(ends)


class _Stretch(io.RawIOBase):
    """A file of which only the bytes from `start` on are available."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start, self._position = memoryview(data), start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._start + len(self._data)
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int | None = -1) -> bytes:
        first = self._position - self._start
        if first < 0:
            raise ValueError("a read outside of the row group")
        last = len(self._data) if length is None or length < 0 else first + length
        data = bytes(self._data[first:last])
        self._position += len(data)
        return data
