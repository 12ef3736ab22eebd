"""The images in a column of a Parquet file: bytes, or the struct of bytes and path of Hugging Face's data sets."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate
from operator import attrgetter
from typing import Final
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import OutOfMemory, RayDetrError, UsageError
from pipelines.lake.members import REFUSED, MemberIndex, member_index
from pipelines.parquet_files import open_object, parquet_of
from pipelines.store import Store, file_name, join_uri, without_secrets
from pipelines.store.object_file import ObjectFile

_ROW_DIGITS: Final = 9
_ROWS_OF_ANY_FILE: Final = 1_000_000  # larger only if the file has a byte for each
_BATCH_ROWS: Final = 16  # rows decoded at a time, whose images may have megabytes each
# A row group with more bytes is read piece by piece; the images of a smaller one in one request.
_WHOLE_GROUP_BYTES: Final = 128 << 20
_PIECE_BYTES: Final = 8 << 20

_logger = logging.getLogger(__name__)
_warned = threading.Lock()  # acquired after the warning about a large row group


def read_parquet_index(store: Store, key: str, size: int, column: str, *, etag: str | None = None) -> MemberIndex:
    """Return the images in a column of a Parquet file: one for each row, in order.

    Reads the footer and the paths; no image. The size of an image is the mean of its row group, and its offset the
    first row of the group, which is equal for all images that are read together. A file whose footer or paths cannot be
    read is damaged at byte 0.

    Args:
        store: The store of the file.
        key: Its key there.
        size: Its bytes.
        column: Name of the column: bytes, or a struct of bytes and path.
        etag: Its version, if known.

    Raises:
        UsageError: it does not have such a column.
        Changed: the file is another version.
        StoreError: the store refused.
    """
    name = without_secrets(join_uri(store.uri, key))
    damaged = member_index([], [], [], skipped={}, damaged_at=0)
    not_read = member_index([], [], [], skipped={}, damaged_at=REFUSED)  # the next run may have more memory
    try:
        file = open_object(store, key, size, if_match=etag)
        with parquet_of(name):
            schema, count = file.schema_arrow, file.metadata.num_rows
    except OutOfMemory:
        return not_read
    except RayDetrError:
        return damaged
    _, path = _columns(schema, column, name)
    if count > max(size, _ROWS_OF_ANY_FILE):
        return damaged  # because of a footer that would fill the memory
    try:
        with parquet_of(name):
            sizes, starts = _sizes_and_starts(file.metadata)
        paths = [None] * count if path is None else _paths(file, column, path, name)
    except OutOfMemory:
        return not_read
    except RayDetrError:
        return damaged
    if not count == len(sizes) == len(paths):
        return damaged
    _warn_of_large_groups(file.metadata, name)
    names = [_member_name(column, row, one) for row, one in enumerate(paths)]
    return member_index(names, starts, sizes, skipped={})


def _warn_of_large_groups(metadata: pq.FileMetaData, name: str) -> None:
    """Warn once per process about the cost of large row groups, and say what to do."""
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    largest = max(groups, key=attrgetter("total_byte_size"), default=None)
    if largest is None or largest.total_byte_size <= _WHOLE_GROUP_BYTES or not _warned.acquire(blocking=False):
        return
    rows = max(1, _WHOLE_GROUP_BYTES * largest.num_rows // largest.total_byte_size)
    _logger.warning(
        "%s has a row group of %s MiB, and other files may, too. Every shard that has images of a row group reads it "
        "from its beginning, and needs up to twice its bytes of memory. Write such files again with row groups of at "
        "most %s MiB: in PyArrow write_table(..., row_group_size=%d).",
        name,
        f"{largest.total_byte_size >> 20:,}",
        _WHOLE_GROUP_BYTES >> 20,
        rows,
    )


def split_name(member: str) -> tuple[str, int] | None:
    """Return the column and the row in the name of a member; None if it has none."""
    column, _, rest = member.partition("/")
    row = rest.partition("/")[0]
    return (unquote(column), int(row)) if row.isdecimal() else None


class ImageColumn:
    """The images in a column of one version of a Parquet file. Thread-safe."""

    def __init__(self, store: Store, key: str, column: str, *, etag: str | None = None) -> None:
        """Read the footer.

        Args:
            store: The store of the file.
            key: Its key there.
            column: Name of the column.
            etag: The required version; None: any.

        Raises:
            RayDetrError: the file is damaged, or has no such column.
            Changed: the file is another version.
            StoreError: the store refused.
        """
        entry = store.head(key)
        self.name = without_secrets(join_uri(store.uri, key))
        self.etag = entry.etag if etag is None else etag
        self._size = len(store.get(key).data) if entry.size is None else entry.size
        self._store, self._key = store, key
        file = open_object(store, key, self._size, if_match=self.etag)
        with parquet_of(self.name):
            schema, self._metadata = file.schema_arrow, file.metadata
            counts = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        self._starts = list(accumulate(counts, initial=0))  # the first row of each row group, and the number of rows
        self._content, _ = _columns(schema, column, self.name)

    def groups(self, rows: Iterable[int]) -> dict[int, list[int]]:
        """Return these rows by row group; rows beyond the end of the file are omitted."""
        ends = self._starts[1:]
        wanted: dict[int, list[int]] = {}
        for row in sorted(set(rows)):
            group = bisect_right(ends, row)
            if group < len(ends):
                wanted.setdefault(group, []).append(row)
        return wanted

    def rows_of(self, group: int) -> range:
        """Return the rows of a row group, counted from the beginning of the file."""
        return range(self._starts[group], self._starts[group + 1])

    def group_bytes(self, group: int) -> int:
        """Return the uncompressed size of a row group in bytes, including its other columns."""
        return int(self._metadata.row_group(group).total_byte_size)

    def read_group(self, group: int, rows: Collection[int]) -> Iterator[tuple[int, bytes | None]]:
        """Yield row and bytes of images of one row group, in order; None for a row without an image.

        A row group is read in one request and kept in memory; one with more than 128 MiB is read page by page from its
        beginning to the requested images. A page is in memory twice: 1,024 images with pyarrow's defaults.

        Args:
            group: The row group.
            rows: From `groups`, counted from the beginning of the file; at least one.

        Raises:
            RayDetrError: the row group is damaged; images before the damage were yielded.
            Changed: the file is another version now.
            StoreError: the store refused.
        """
        first, wanted = self._starts[group], set(rows)
        for place, data in self._read_group(group, max(wanted) - first):
            if first + place in wanted:
                yield first + place, data

    def _read_group(self, group: int, last: int) -> Iterator[tuple[int, bytes | None]]:
        """Yield position and bytes of the images of a row group up to position `last`."""
        with parquet_of(self.name):
            is_large = self._metadata.row_group(group).total_byte_size > _WHOLE_GROUP_BYTES
            batches = pq.ParquetFile(
                pa.PythonFile(ObjectFile(self._store, self._key, self._size, if_match=self.etag), mode="r"),
                metadata=self._metadata,
                buffer_size=_PIECE_BYTES if is_large else 0,
                pre_buffer=not is_large,
                page_checksum_verification=True,
            ).iter_batches(_BATCH_ROWS, row_groups=[group], columns=[self._content])
        place = 0
        while place <= last:
            with parquet_of(self.name):
                batch = next(batches, None)
            if batch is None:
                raise RayDetrError(f"{self.name} is damaged: row group {group} has fewer rows than its footer says.")
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
            for value in values:
                yield place, value.as_py()
                place += 1


def _sizes_and_starts(metadata: pq.FileMetaData) -> tuple[list[int | None], list[int]]:
    """Return the approximate size of each image, the mean of its row group, and the group's first row."""
    sizes: list[int | None] = []
    starts: list[int] = []
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        # not of the column alone: pyarrow 26 aborts the process if a damaged footer has invalid statistics
        sizes += [group.total_byte_size // max(1, group.num_rows)] * group.num_rows
        starts += [len(starts)] * group.num_rows
    return sizes, starts


def _columns(schema: pa.Schema, column: str, name: str) -> tuple[str, str | None]:
    """Return the Parquet columns of the images' bytes and of their paths (None without paths).

    Raises:
        UsageError: there is no such column of images.
    """
    if schema.names.count(column) != 1:
        shown = ", ".join(schema.names)[:400]
        raise UsageError(f"{name} does not have one column {column!r}: it has {shown}. Check --image-column.")
    kind = schema.field(column).type
    if _is_bytes(kind):
        return column, None
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" in fields and _is_bytes(fields["bytes"]):
            return f"{column}.bytes", f"{column}.path" if "path" in fields else None
    raise UsageError(
        f"{name}: the column {column!r} is {str(kind)[:100]}, not bytes or a struct of bytes and path. Check "
        "--image-column."
    )


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _paths(file: pq.ParquetFile, column: str, path: str, name: str) -> list[str | None]:
    with parquet_of(name):
        paths = pc.struct_field(file.read(columns=[path])[column].combine_chunks(), "path")
    return [None if one is None else str(one) for one in paths.to_pylist()]


def _member_name(column: str, row: int, path: str | None) -> str:
    # rows in the order of names
    number = f"{quote(column, safe='')}/{row:0{_ROW_DIGITS}d}"
    called = file_name(path) if path else ""
    return f"{number}/{called}" if called else number
