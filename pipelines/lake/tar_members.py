"""The images inside a tar archive, found by reading its headers only."""

from __future__ import annotations

import io
import struct
import tarfile
from collections import Counter
from typing import Final

from pipelines.lake.lake_object import DUPLICATE, NOT_UTF8
from pipelines.lake.members import MemberIndex, member_index
from pipelines.lake.skipping import is_image_name, skip_reason
from pipelines.store import Store

# Why members are left out, beside the reasons of `skip_reason`.
NOT_NAMED: Final = "member without an image's name"
LINK: Final = "link"
SPARSE: Final = "sparse file"

_BLOCK = tarfile.BLOCKSIZE
_DAMAGE: Final = (tarfile.TarError, ValueError, LookupError, ArithmeticError, TypeError, struct.error)  # of tarfile
_LEAST_READ: Final = 4 << 10
_FIRST_READ: Final = 64 << 10
_MOST_READ: Final = 8 << 20
_MOST_HEADER: Final = 1 << 20  # a longer one is damage, or was made to fill the memory
# Up to so many bytes are read through rather than left out by another request: an answer of S3 takes some 20 ms, in
# which 1 MiB comes; of a disk it takes 10 us.
_READ_THROUGH: Final = 1 << 20
_READ_THROUGH_LOCAL: Final = 16 << 10


def read_tar_index(store: Store, key: str, size: int, *, etag: str | None = None) -> MemberIndex:
    """Return the images inside a tar archive: regular files whose names end as those of images do.

    Other members are counted. Of members with the same name the last one counts, as when the archive is unpacked; the
    others are counted as duplicates. Reading ends at the first damaged header, or where the archive is cut off.
    Needs about 200 bytes of memory for each image.

    Args:
        store: The store of the archive.
        key: Its key there.
        size: Its bytes.
        etag: Its version, where known.

    Raises:
        Changed: the archive is another version.
        StoreError: the store refused.
    """
    file = _Headers(store, key, size, etag)
    found: dict[str, tuple[int, int]] = {}
    skipped: Counter[str] = Counter()
    place = 0
    is_whole = False
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                if archive.offset <= place:
                    raise tarfile.ReadError("a negative size")
                place = archive.offset
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                _add(member, found, skipped)
        file.seek(place)
        is_whole = file.read(_BLOCK) == bytes(_BLOCK)  # tarfile takes a damaged header for the end
    except _DAMAGE:
        pass  # the place tells
    return member_index(
        list(found),
        [offset for offset, _ in found.values()],
        [size for _, size in found.values()],
        skipped=skipped,
        damaged_at=None if is_whole else min(place, size),
    )


def _add(member: tarfile.TarInfo, found: dict[str, tuple[int, int]], skipped: Counter[str]) -> None:
    if member.isdir():
        return
    name = member.name.removeprefix("./").lstrip("/")
    reason = skip_reason(name)
    if reason is None and not is_image_name(name):
        reason = NOT_NAMED
    elif reason is None and not _is_utf8(name):
        reason = NOT_UTF8
    elif reason is None and not member.isreg():
        reason = LINK
    elif reason is None and member.issparse():
        reason = SPARSE
    elif reason is None:
        reason = DUPLICATE if name in found else None
        found[name] = (member.offset_data, member.size)
    if reason is not None:
        skipped[reason] += 1


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Headers(io.RawIOBase):
    """An archive as a file of which headers are read, with few requests: see `_READ_THROUGH`."""

    def __init__(self, store: Store, key: str, size: int, etag: str | None) -> None:
        self._store, self._key, self._size, self._etag = store, key, size, etag
        self._position = 0
        self._start, self._held = 0, b""
        self._length = _FIRST_READ
        self._read_through = _READ_THROUGH_LOCAL if store.uri.startswith("file:") else _READ_THROUGH

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int | None = -1) -> bytes:
        wanted = max(self._size - self._position, 0) if length is None or length < 0 else length
        if wanted > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {wanted:,} bytes")
        first = self._position - self._start
        if first < 0 or first + wanted > len(self._held):
            self._fetch(wanted)
            first = 0
        data = self._held[first : first + wanted]
        self._position += len(data)
        return data

    def _fetch(self, wanted: int) -> None:
        left_out = self._position - (self._start + len(self._held))
        if self._held:
            is_near = left_out <= self._read_through
            self._length = min(2 * self._length, _MOST_READ) if is_near else _LEAST_READ
        self._start = self._position
        length = max(wanted, self._length)
        self._held = (
            self._store.get_range(self._key, self._position, length, if_match=self._etag)
            if self._position < self._size
            else b""
        )
