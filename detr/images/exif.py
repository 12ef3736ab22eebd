"""Read orientation and time of exposure from EXIF blocks. Damaged parts are ignored."""

from __future__ import annotations

import re
import struct
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_ORIENTATION = 274
_CAMERA_DIRECTORY = 34665
_TAKEN_TAGS = (
    36867,
    36868,
)  # DateTimeOriginal, DateTimeDigitized; DateTime (306) is when a program last saved the file
_SHORT, _LONG, _ASCII = 3, 4, 2
_CLOCK = re.compile(rb"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d):(\d\d)")


class ExifEntry(NamedTuple):
    """One directory entry of a TIFF structure, which EXIF uses."""

    tag: int
    kind: int  # 1 byte, 2 ASCII, 3 short, 4 long ...
    values: int  # how many
    value: bytes  # 4 bytes (8 in BigTIFF): the values if they fit, else their offset


def directory_entries(block: bytes, offset: int, order: str, *, big: bool = False) -> Iterator[ExifEntry]:
    """Yield the entries of the directory at `offset` that are complete in `block`.

    `order` is `<` or `>`. `big` is BigTIFF's layout.
    """
    count_format, entry_format = (order + "Q", order + "HHQ8s") if big else (order + "H", order + "HHL4s")
    start = offset + struct.calcsize(count_format)
    if offset < 0 or start > len(block):
        return
    (claimed,) = struct.unpack_from(count_format, block, offset)
    size = struct.calcsize(entry_format)
    count = min(claimed, (len(block) - start) // size)
    for entry in struct.iter_unpack(entry_format, block[start : start + count * size]):
        yield ExifEntry(*entry)


def read_exif(block: bytes) -> tuple[int, datetime | None]:
    """Return orientation (1..8) and the camera's clock at exposure, from a block with or without its `Exif` prefix.

    Orientation is 1 without a valid one. The clock has no zone; None if the camera did not write it.
    """
    if block.startswith(b"Exif\0"):
        block = block[6:]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return 1, None
    (first,) = struct.unpack_from(order + "L", block, 4)
    return read_directory(block, first, order)


def read_directory(block: bytes, offset: int, order: str, *, big: bool = False) -> tuple[int, datetime | None]:
    """Return orientation and clock from the directory at `offset` of a TIFF structure; see `read_exif`."""
    orientation, camera = 1, None
    for entry in directory_entries(block, offset, order, big=big):
        if entry.tag == _ORIENTATION and orientation == 1:
            orientation = _number(entry, order)
        elif entry.tag == _CAMERA_DIRECTORY:
            camera = _offset(entry, order)
    if not 1 <= orientation <= 8:
        orientation = 1
    if camera is None:
        return orientation, None
    clocks = {
        entry.tag: clock
        for entry in directory_entries(block, camera, order, big=big)
        if entry.tag in _TAKEN_TAGS and (clock := _clock(block, entry, order))
    }
    return orientation, next((clocks[tag] for tag in _TAKEN_TAGS if tag in clocks), None)


def _number(entry: ExifEntry, order: str) -> int:
    """Return the value of an entry with one integer, else 0."""
    if entry.values != 1 or entry.kind not in (_SHORT, _LONG):
        return 0
    number: int = struct.unpack_from(order + ("H" if entry.kind == _SHORT else "L"), entry.value)[0]
    return number


def _offset(entry: ExifEntry, order: str) -> int:
    offset: int = struct.unpack(order + ("Q" if len(entry.value) == 8 else "L"), entry.value)[0]
    return offset


def _clock(block: bytes, entry: ExifEntry, order: str) -> datetime | None:
    if entry.kind != _ASCII or not 19 <= entry.values <= 64:
        return None
    offset = _offset(entry, order)
    written = _CLOCK.match(block[offset : offset + 19])
    if written is None:
        return None
    try:
        return datetime.fromisoformat("{}-{}-{}T{}:{}:{}".format(*map(bytes.decode, written.groups())))
    except ValueError:  # cameras without a set clock write 0000:00:00
        return None
