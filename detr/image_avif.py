"""AVIF: its size, turning and EXIF without decoding (ISO/IEC 23008-12, the image file format of boxes)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from detr.image_file import Header, TruncatedImage, UnreadableImage, upright_header

if TYPE_CHECKING:
    from collections.abc import Iterator

# EXIF's orientation by quarter turns to the left and the mirror after them: none, top with bottom, left with right.
_ORIENTATIONS = {0: (1, 4, 2), 1: (8, 5, 7), 2: (3, 2, 4), 3: (6, 7, 5)}
_EXIF_ENTRY = re.compile(rb"(infe(?:\x02.{3}.{4}|\x03.{3}.{6}))Exif", re.DOTALL)


@dataclass(slots=True)
class _Meta:
    """What the meta box says."""

    primary: int = 0
    exif_item: int | None = None
    places: dict[int, tuple[int, int]] = field(default_factory=dict)  # item -> offset and length in the file
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)  # kind and content
    assigned: dict[int, list[int]] = field(default_factory=dict)  # item -> indices from 1


def read_avif(data: bytes) -> Header:
    """Return the header of the primary picture, turned and mirrored as the file says; its EXIF must not turn it again.

    Raises:
        ImageError: there is no such picture, or the file is cut.
    """
    try:
        meta = _read_meta(data)
    except (struct.error, IndexError) as error:
        raise UnreadableImage("the boxes of the AVIF are damaged") from error
    size, turns, mirror = None, 0, 0
    for index in meta.assigned.get(meta.primary, []):
        kind, content = meta.properties[index - 1] if 0 < index <= len(meta.properties) else (b"", b"")
        if kind == b"ispe" and len(content) >= 12:
            size = struct.unpack_from(">LL", content, 4)
        elif kind == b"irot" and content:
            turns = content[0] & 3
        elif kind == b"imir" and content:
            mirror = 1 + (content[0] & 1)
    if size is None:
        raise UnreadableImage("the AVIF does not contain its picture size")
    width, height = size
    return upright_header("AVIF", height, width, exif=_exif(data, meta), orientation=_ORIENTATIONS[turns][mirror])


def picture_of_avif(data: bytes) -> bytes:
    """Return the file with its EXIF hidden: Pillow would parse it, and warn about what is broken there."""
    return _EXIF_ENTRY.sub(rb"\1none", data, count=1)


def _exif(data: bytes, meta: _Meta) -> bytes | None:
    if meta.exif_item not in meta.places:
        return None
    offset, length = meta.places[meta.exif_item]
    item = data[offset : offset + length]
    return item[4 + int.from_bytes(item[:4]) :]  # the first four bytes say how far away the block is


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of each box; a box without a size goes to the end."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">L4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        elif size == 0:
            size = end - start
        if size < head:
            raise UnreadableImage("a box of the AVIF is shorter than its own head")
        if start + size > end:
            raise TruncatedImage(f"the AVIF ends inside its box {kind!r}")
        yield kind, start + head, start + size
        start += size


def _read_meta(data: bytes) -> _Meta:
    meta = _Meta()
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, first, last in _boxes(data, start + 4, end):
            if inner == b"pitm":
                meta.primary = struct.unpack_from(">L" if data[first] else ">H", data, first + 4)[0]
            elif inner == b"iinf":
                meta.exif_item = _exif_item(data, first, last)
            elif inner == b"iloc":
                meta.places = _places(data, first)
            elif inner == b"iprp":
                for piece, begin, finish in _boxes(data, first, last):
                    if piece == b"ipco":
                        meta.properties = [(name, data[a:b]) for name, a, b in _boxes(data, begin, finish)]
                    elif piece == b"ipma":
                        meta.assigned |= _assigned(data, begin)
    return meta


def _exif_item(data: bytes, start: int, end: int) -> int | None:
    """Return the id of the item that is an EXIF block."""
    head = 6 if data[start] == 0 else 8
    for kind, first, _ in _boxes(data, start + head, end):
        wide = data[first] == 3
        item, _, item_type = struct.unpack_from(">LH4s" if wide else ">HH4s", data, first + 4)
        if kind == b"infe" and item_type == b"Exif":
            return int(item)
    return None


def _places(data: bytes, start: int) -> dict[int, tuple[int, int]]:
    """Return where each item begins in the file, and its length; items in pieces count by their first."""
    version = data[start]
    offset_size, length_size = divmod(data[start + 4], 16)
    base_size, index_size = divmod(data[start + 5], 16)
    position = start + 6
    widths = 4 if version == 2 else 2

    def number(size: int) -> int:
        nonlocal position
        position += size
        return int.from_bytes(data[position - size : position])

    places = {}
    for _ in range(number(widths)):
        item = number(widths)
        in_file = version == 0 or number(2) & 15 == 0
        number(2)  # the file that holds it: this one
        base = number(base_size)
        pieces = []
        for _ in range(number(2)):
            if version:
                number(index_size)
            pieces.append((base + number(offset_size), number(length_size)))
        if position > len(data):
            raise UnreadableImage("the list of places of the AVIF is damaged")
        if pieces and in_file:
            places[item] = pieces[0]
    return places


def _assigned(data: bytes, start: int) -> dict[int, list[int]]:
    """Return the properties of each item."""
    version, wide = data[start], data[start + 3] & 1
    (count,) = struct.unpack_from(">L", data, start + 4)
    position = start + 8
    assigned = {}
    for _ in range(count):
        (item,) = struct.unpack_from(">L" if version else ">H", data, position)
        position += 4 if version else 2
        properties = data[position]
        position += 1
        step = 2 if wide else 1
        places = range(position, position + properties * step, step)
        # the highest bit says whether the property is essential
        assigned[item] = [int.from_bytes(data[place : place + step]) & (0x7FFF if wide else 0x7F) for place in places]
        position = places.stop
    return assigned
