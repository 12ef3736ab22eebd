"""Images inside files, read in the order of the file: neighbours with one request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipelines.errors import RayDetrError
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.members import PARQUET_SUFFIX, REFUSED, file_of, split_member
from pipelines.lake.parquet_members import ImageColumn, split_name
from pipelines.store import Blob, Store, StoreDown, join_uri, without_secrets

SPAN_BYTES: Final = 64 << 20  # read with one request
GAP_BYTES: Final = 128 << 10  # between two images, that are read along rather than left out by another request

_HEADER_BYTES: Final = 512
_FOOTERS: Final = 8  # of Parquet files, that are remembered


@dataclass(frozen=True, slots=True)
class BadMember:
    """Why an image inside a file, or a damaged file itself, has no bytes: an error kind of its row and a sentence."""

    kind: str
    error: str


def reading_order(objects: Sequence[LakeObject]) -> list[int]:
    """Return the indices of a shard's objects in the order in which they are read.

    Members are read in the order of their file, which need not be that of their names.
    """
    if all(item.offset is None for item in objects):
        return list(range(len(objects)))
    return sorted(range(len(objects)), key=lambda index: (file_of(objects[index]), objects[index].offset or 0, index))


def member_spans(window: Sequence[LakeObject]) -> Iterator[list[LakeObject]]:
    """Cut a window into what is read with one request each: an object of its own, or neighbours inside one file.

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


def _continues(span: Sequence[LakeObject], item: LakeObject) -> bool:
    first, last = span[0], span[-1]
    if None in (first.offset, item.offset) or split_member(first.uri) is None or split_member(item.uri) is None:
        return False
    if (file_of(item), item.etag) != (file_of(first), first.etag):
        return False
    if _is_parquet(file_of(item)):
        return True
    assert first.offset is not None
    assert last.offset is not None
    assert item.offset is not None
    gap = item.offset - (last.offset + (last.size or 0))
    return gap <= GAP_BYTES and item.offset + (item.size or 0) - first.offset <= SPAN_BYTES


class MemberReader:
    """Reads spans of members; for any number of threads."""

    def __init__(self) -> None:
        """Remember no footer yet."""
        self._requests = 0
        self._lock = threading.Lock()
        self._columns: OrderedDict[tuple[str, str, str | None], ImageColumn] = OrderedDict()

    def read(self, store: Store, key: str, span: Sequence[LakeObject]) -> list[Blob | BadMember]:
        """Return the bytes of each image of a span, with the etag of its file, or what is wrong with it.

        Args:
            store: The store of the file.
            key: The file's key there.
            span: Of `member_spans`.

        Raises:
            Changed: the file is another version than was listed.
            StoreError: the store refused, or fewer bytes came than the file has.
        """
        if split_member(span[0].uri) is None:
            self._count(len(span))
            return [_damage(store, key, item) for item in span]
        if _is_parquet(key):
            return self._read_rows(store, key, span)
        self._count(any(item.size for item in span))
        return _read_span(store, key, span)

    def take_requests(self) -> int:
        """Return how many requests were made since the last call of this."""
        with self._lock:
            requests, self._requests = self._requests, 0
        return requests

    def _count(self, requests: int) -> None:
        with self._lock:
            self._requests += requests

    def _read_rows(self, store: Store, key: str, span: Sequence[LakeObject]) -> list[Blob | BadMember]:
        named = [_row_of(item) for item in span]
        try:
            images = self._column(store, key, named[0][0], span[0].etag)
            wanted = {row for _, row in named}
            self._count(images.groups(wanted))
            found = dict(images.read(wanted))
        except RayDetrError as error:
            if len(span) == 1:
                return [BadMember("unreadable", str(error))]
            middle = len(span) // 2  # other row groups may be whole
            return [*self._read_rows(store, key, span[:middle]), *self._read_rows(store, key, span[middle:])]
        return [_blob_or_bad(found.get(row), item) for item, (_, row) in zip(span, named, strict=True)]

    def _column(self, store: Store, key: str, column: str, etag: str | None) -> ImageColumn:
        """Return a file's column, of which the footer is read once."""
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
        size = store.head(key).size
        if size is None or size >= stop:
            raise StoreDown(
                f"{without_secrets(join_uri(store.uri, key))} was cut off: {len(data):,} of {stop - start:,} bytes "
                "arrived. Check proxies and the network, then run again."
            )
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
    """Return what is wrong with a file from a place on; raises again what it was refused for when it was listed."""
    place = item.offset or 0
    if place == REFUSED:
        store.get_range(key, 0, _HEADER_BYTES)
        return BadMember(
            "fetch_failed",
            "the file could not be read when it was listed, but it can be now. Run again to label its images",
        )
    if _is_parquet(key):
        return BadMember("unreadable", "the file is damaged: it cannot be read as Parquet, and none of its images was")
    after = store.get_range(key, place, _HEADER_BYTES, if_match=item.etag)
    if len(after) < _HEADER_BYTES:
        sentence = f"the archive is cut off: it ends at byte {place + len(after):,} without an end mark"
        return BadMember("truncated", f"{sentence}. Images before it have rows of their own")
    if place == 0:
        return BadMember("unreadable", "this is not a tar archive, or a compressed one: it has no valid tar header")
    sentence = f"the archive is damaged at byte {place:,}, where a header should be"
    return BadMember("unreadable", f"{sentence}. Images before it have rows of their own, those behind have none")


def _blob_or_bad(data: bytes | None, item: LakeObject) -> Blob | BadMember:
    return BadMember("empty", "the row holds no image") if data is None else Blob(data, item.etag)


def _row_of(item: LakeObject) -> tuple[str, int]:
    found = split_member(item.uri)
    place = None if found is None else split_name(found[1])
    assert place is not None, "checked where spans are cut, and named by the listing"
    return place


def _is_parquet(uri: str) -> bool:
    return uri.lower().endswith(PARQUET_SUFFIX)
