"""Read images inside files, in the order of the file, with one request for neighbours."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from pipelines.errors import OutOfMemory, RayDetrError
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.members import PARQUET_SUFFIX, REFUSED, file_of, split_member
from pipelines.lake.parquet_members import ImageColumn, split_name
from pipelines.store import Blob, Store, join_uri
from pipelines.store.object_file import refuse_cut_off

T = TypeVar("T")

SPAN_BYTES: Final = 64 << 20  # read with one request
GAP_BYTES: Final = 128 << 10  # largest gap between two images that is read instead of making another request

GROUPS_BYTES: Final = 256 << 20  # of row groups that are read concurrently; a larger one is read alone

_HEADER_BYTES: Final = 512
_FOOTERS: Final = 8  # footers of Parquet files that are cached


@dataclass(frozen=True, slots=True)
class BadMember:
    """Why an image inside a file, or a damaged file itself, has no bytes: the error kind of its row and a message."""

    kind: str
    error: str


def reading_order(objects: Sequence[LakeObject]) -> list[int]:
    """Return the indices of a shard's objects in reading order.

    Members are read in the order of their file, which may differ from that of their names.
    """
    if all(item.offset is None for item in objects):
        return list(range(len(objects)))
    return sorted(range(len(objects)), key=lambda index: (file_of(objects[index]), objects[index].offset or 0, index))


def member_spans(window: Sequence[LakeObject]) -> Iterator[list[LakeObject]]:
    """Split a window into spans that are read with one request each.

    A span is a single object, neighbours inside an archive, or the required images of a row group of Parquet.

    Args:
        window: Objects in the order of `reading_order`.
    """
    span: list[LakeObject] = []
    for item in window:
        if span and not _continues(span, item):
            yield span
            span = []
        span.append(item)
    if span:
        yield span


def row_group_of(item: LakeObject) -> tuple[str, str | None, int] | None:
    """Return file, version and first row of an image's row group of Parquet; None for other objects."""
    if item.offset is None or split_member(item.uri) is None or not _is_parquet(file_of(item)):
        return None
    return file_of(item), item.etag, item.offset


def _continues(span: Sequence[LakeObject], item: LakeObject) -> bool:
    first, last = span[0], span[-1]
    if None in (first.offset, item.offset) or split_member(first.uri) is None or split_member(item.uri) is None:
        return False
    if (file_of(item), item.etag) != (file_of(first), first.etag):
        return False
    if _is_parquet(file_of(item)):
        return item.offset == first.offset  # of one row group
    assert first.offset is not None
    assert last.offset is not None
    assert item.offset is not None
    gap = item.offset - (last.offset + (last.size or 0))
    return gap <= GAP_BYTES and item.offset + (item.size or 0) - first.offset <= SPAN_BYTES


class MemberReader:
    """Reads spans of members. Thread-safe."""

    def __init__(self) -> None:
        """Create an empty cache of footers."""
        self._requests = 0
        self._lock = threading.Lock()
        self._columns: OrderedDict[tuple[str, str, str | None], ImageColumn] = OrderedDict()
        self._room = _Room(GROUPS_BYTES)

    def read(self, store: Store, key: str, span: Sequence[LakeObject]) -> list[Blob | BadMember]:
        """Return the bytes of each image of a span, with the etag of its file, or its error.

        Args:
            store: The store of the file.
            key: The file's key there.
            span: Of `member_spans`.

        Raises:
            Changed: the file's version is not the listed one.
            StoreError: the store refused, or returned fewer bytes than the file has.
        """
        if split_member(span[0].uri) is None:
            self._count(len(span))
            return [_damage(store, key, item) for item in span]
        if _is_parquet(key):
            return self._read_rows(store, key, span)
        self._count(any(item.size for item in span))
        return _read_span(store, key, span)

    def take_requests(self) -> int:
        """Return the number of requests since the last call."""
        with self._lock:
            requests, self._requests = self._requests, 0
        return requests

    def _count(self, requests: int) -> None:
        with self._lock:
            self._requests += requests

    def _read_rows(self, store: Store, key: str, span: Sequence[LakeObject]) -> list[Blob | BadMember]:
        named = [_row_of(item) for item in span]
        try:
            images = _twice(lambda: self._column(store, key, named[0][0], span[0].etag))
        except RayDetrError as error:
            return [_bad_rows(error)] * len(span)
        found: dict[int, bytes | BadMember | None] = {}
        for group, rows in images.groups(row for _, row in named).items():
            found |= self._read_group(images, group, rows)
        return [_blob_or_bad(found.get(row), item) for item, (_, row) in zip(span, named, strict=True)]

    def _read_group(self, images: ImageColumn, group: int, rows: list[int]) -> dict[int, bytes | BadMember | None]:
        """Return the images of a row group; if it is damaged, those before the damage."""
        found: dict[int, bytes | BadMember | None] = {}

        def read() -> None:
            self._count(1)
            found.update(images.read_group(group, rows))

        try:
            with self._room.take(images.group_bytes(group)):
                _twice(read)
        except RayDetrError as error:
            return {row: found.get(row, _bad_rows(error)) for row in rows}
        return found

    def _column(self, store: Store, key: str, column: str, etag: str | None) -> ImageColumn:
        """Return a file's column; its footer is read once."""
        name = (join_uri(store.uri, key), column, etag)
        with self._lock:
            known = self._columns.get(name)
        if known is None or etag is None:
            self._count(2)  # its size, and its footer
            known = ImageColumn(store, key, column, etag=etag)
        with self._lock:
            self._columns[name] = known
            self._columns.move_to_end(name)
            while len(self._columns) > _FOOTERS:
                self._columns.popitem(last=False)
        return known


def _read_span(store: Store, key: str, span: Sequence[LakeObject]) -> list[Blob | BadMember]:
    """Read neighbours of a tar archive with one request."""
    start = span[0].offset or 0
    stop = max((item.offset or 0) + (item.size or 0) for item in span)
    data = memoryview(store.get_range(key, start, stop - start, if_match=span[0].etag) if stop > start else b"")
    if len(data) < stop - start:
        refuse_cut_off(store, key, start, stop - start, len(data))
    found: list[Blob | BadMember] = []
    for item in span:
        first = (item.offset or 0) - start
        content = bytes(data[first : first + (item.size or 0)])
        if len(content) < (item.size or 0):
            sentence = f"the archive ends after {len(content):,} of {item.size:,} bytes of this image"
            found.append(BadMember("truncated", sentence))
        else:
            found.append(Blob(content, item.etag))
    return found


def _damage(store: Store, key: str, item: LakeObject) -> BadMember:
    """Return the error of a file from an offset on; raise again the refusal that the listing met."""
    place = item.offset or 0
    if place == REFUSED:
        store.get_range(key, 0, _HEADER_BYTES)
        return BadMember(
            "fetch_failed",
            "the file was refused, or was being written, when it was listed, but it can be read now. Run again to "
            "label its images",
        )
    if _is_parquet(key):
        return BadMember(
            "unreadable", "the file is damaged: it cannot be read as Parquet, so none of its images was read"
        )
    after = store.get_range(key, place, _HEADER_BYTES, if_match=item.etag)
    if len(after) < _HEADER_BYTES:
        sentence = f"the archive is cut off: it ends at byte {place + len(after):,} without an end mark"
        return BadMember("truncated", f"{sentence}. Images before it have their own rows")
    if place == 0:
        return BadMember("unreadable", "this is not a tar archive, or a compressed one: it has no valid tar header")
    sentence = f"the archive is damaged at byte {place:,}, where a header should be"
    return BadMember("unreadable", f"{sentence}. Images before it have their own rows, images after it have none")


def _blob_or_bad(data: bytes | BadMember | None, item: LakeObject) -> Blob | BadMember:
    if isinstance(data, bytes):
        return Blob(data, item.etag)
    return data or BadMember("empty", "the row contains no image")


def _bad_rows(error: RayDetrError) -> BadMember:
    # out of memory: another run may have more
    return BadMember("fetch_failed" if isinstance(error, OutOfMemory) else "unreadable", str(error))


def _twice(read: Callable[[], T]) -> T:
    """Read data that looks damaged a second time: it may have been damaged in transfer."""
    try:
        return read()
    except RayDetrError:
        return read()


class _Room:
    """A limit of bytes in memory for several threads; a thread that needs more waits until it is alone."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._held = most_bytes, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + size <= self._most_bytes)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


def _row_of(item: LakeObject) -> tuple[str, int]:
    found = split_member(item.uri)
    place = None if found is None else split_name(found[1])
    assert place is not None, "checked where spans are cut, and named by the listing"
    return place


def _is_parquet(uri: str) -> bool:
    return uri.lower().endswith(PARQUET_SUFFIX)
