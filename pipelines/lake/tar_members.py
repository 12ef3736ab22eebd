"""Find the images inside a tar archive by reading its headers only."""

from __future__ import annotations

import io
import struct
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from pipelines.lake.lake_object import DUPLICATE, NOT_UTF8
from pipelines.lake.members import MemberIndex, member_index
from pipelines.lake.skipping import is_image_name, skip_reason
from pipelines.store import Store, StoreDown, join_uri, without_secrets

# Reasons for skipping members, besides those of `skip_reason`.
NOT_NAMED: Final = "member without an image's name"
LINK: Final = "link"
SPARSE: Final = "sparse file"
BEHIND_END: Final = "data behind an archive's end mark"

_BLOCK = tarfile.BLOCKSIZE
# Errors of tarfile for damaged headers; the last one for thousands of headers that each extend the next.
_DAMAGE: Final = (
    *(tarfile.TarError, ValueError, LookupError, ArithmeticError, TypeError, struct.error),
    RecursionError,
)
_MOST_SIZE: Final = 1 << 62  # no file has more bytes; the index has 64-bit integers
_MOST_PADDING: Final = 16 << 20  # zeros that are read after an end mark in search of another archive
_LEAST_READ: Final = 4 << 10
_FIRST_READ: Final = 64 << 10
_MOST_READ: Final = 8 << 20
_MOST_HEADER: Final = 1 << 20  # a longer one is damaged, or an attack on memory
# Gaps up to this size are read instead of making another request: a response of S3 takes about 20 ms, in which 1 MiB is
# transferred; a disk takes 10 us.
_READ_THROUGH: Final = 1 << 20
_READ_THROUGH_LOCAL: Final = 16 << 10


def read_tar_index(store: Store, key: str, size: int, *, etag: str | None = None) -> MemberIndex:
    """Return the images inside a tar archive: regular files with the extension of an image.

    Other members are counted. Of members with the same name the last one counts, as when the archive is unpacked; the
    others are counted as duplicates. Reading ends at the first damaged header, or where the archive is cut off. It
    continues after an end mark if another archive follows, as in `cat a.tar b.tar`. Needs about 200 bytes of memory for
    each image.

    Args:
        store: The store of the archive.
        key: Its key there.
        size: Its bytes.
        etag: Its version, if known.

    Raises:
        Changed: the archive is another version.
        StoreError: the store refused, or returned fewer bytes than the archive has.
    """
    file = _Headers(store, key, size, etag)
    members = _Members()
    start: int | None = 0
    damaged_at = None
    while start is not None:
        place = _read_archive(file, start, members)
        file.seek(place)
        if file.read(_BLOCK) == bytes(_BLOCK):  # tarfile treats a damaged header as the end
            start = _next_archive(file, size)
        elif 0 < place == start:  # nothing was read: there is no further archive
            members.skipped[BEHIND_END] += 1
            start = None
        else:
            start, damaged_at = None, min(place, size)
    return member_index(
        list(members.found),
        [offset for offset, _ in members.found.values()],
        [size for _, size in members.found.values()],
        skipped=members.skipped,
        damaged_at=damaged_at,
    )


@dataclass(slots=True)
class _Members:
    """The images found so far, with offset and size by name, and the number of skipped members by reason."""

    found: dict[str, tuple[int, int]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, member: tarfile.TarInfo) -> None:
        if member.isdir():
            return
        name = _unpacked_name(member.name)
        reason = skip_reason(name)
        if reason is None and not is_image_name(name):
            reason = NOT_NAMED
        elif reason is None and not _is_utf8(name):
            reason = NOT_UTF8
        elif reason is None and member.islnk() and _unpacked_name(member.linkname) == name:
            reason = LINK  # a link to itself: GNU tar writes it for a file that was named twice
        elif reason is None:
            if self.found.pop(name, None) is not None:
                self.skipped[DUPLICATE] += 1
            if not member.isreg():
                reason = LINK
            elif member.issparse():
                reason = SPARSE
            else:
                self.found[name] = (member.offset_data, member.size)
        if reason is not None:
            self.skipped[reason] += 1


def _read_archive(file: _Headers, start: int, members: _Members) -> int:
    """Add the members of the archive at `start`; return the offset of its end mark or of a damaged header."""
    file.seek(start)
    place = start
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                if archive.offset <= place or not 0 <= member.size < _MOST_SIZE:
                    raise tarfile.ReadError(f"a size of {member.size}")
                place = archive.offset
                archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps all of them
                members.add(member)
    except _DAMAGE:
        pass  # the position decides
    return place


def _next_archive(file: _Headers, size: int) -> int | None:
    """Return the offset of the first nonzero block after an end mark; None if the padding has no such block."""
    stop = min(size, file.tell() + _MOST_PADDING)
    while (place := file.tell()) < stop:
        data = file.read(min(_MOST_HEADER, size - place))
        if not data:
            return None
        zeros = len(data) - len(data.lstrip(b"\0"))
        if zeros < len(data):
            return place + zeros // _BLOCK * _BLOCK
    return None


def _unpacked_name(name: str) -> str:
    """Return a member's name after unpacking with GNU tar: without `.` and everything up to the last `..`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    above = max((place for place, part in enumerate(parts) if part == ".."), default=-1)
    return "/".join(parts[above + 1 :])


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Headers(io.RawIOBase):
    """An archive as a file from which headers are read with few requests; see `_READ_THROUGH`."""

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
        self._start, self._held = self._position, b""
        length = min(max(wanted, self._length), self._size - self._position)
        if length <= 0:
            return
        self._held = self._store.get_range(self._key, self._position, length, if_match=self._etag)
        if len(self._held) < length:
            size = self._store.head(self._key).size
            if size is None or size >= self._position + length:  # otherwise it is shorter than listed
                raise StoreDown(
                    f"{without_secrets(join_uri(self._store.uri, self._key))} was cut off: {len(self._held):,} of "
                    f"{length:,} bytes arrived. Check proxies and the network, then run again."
                )
