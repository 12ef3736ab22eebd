"""Parser of the boxes of AVIF and HEIC, which describe a picture's parts (ISO/IEC 23008-12)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from detr.images.results import TruncatedImage, UnreadableImage

if TYPE_CHECKING:
    from collections.abc import Iterator


MOST_PIECES = 100_000  # of all items; a phone's photograph has about 50


@dataclass(slots=True)
class Meta:
    """The items of a file, from its meta box."""

    primary: int = 0
    exif_item: int | None = None
    places: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # item -> offsets and lengths in the file
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)  # kind and content
    assigned: dict[int, list[int]] = field(default_factory=dict)  # item -> indices from 1
    references: list[tuple[bytes, int, int]] = field(default_factory=list)  # kind, from item, to item

    def properties_of(self, item: int) -> list[tuple[bytes, bytes]]:
        """Return kind and content of each property of an item, in the order in which they apply."""
        indices = (index for index in self.assigned.get(item, []) if 0 < index <= len(self.properties))
        return [self.properties[index - 1] for index in indices]


def exif_of(data: bytes, meta: Meta) -> bytes | None:
    """Return the EXIF block as found in the file."""
    if meta.exif_item not in meta.places:
        return None
    offset, length = meta.places[meta.exif_item][0]
    item = data[offset : offset + length]
    return item[4 + int.from_bytes(item[:4]) :]  # the first four bytes are the offset of the block


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
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
            raise UnreadableImage("a box of the file is shorter than its own header")
        if start + size > end:
            is_known = all(32 < letter < 127 for letter in kind)
            raise TruncatedImage(f"the file ends inside a box{f' {kind.decode()}' if is_known else ''}")
        yield kind, start + head, start + size
        start += size


def read_meta(data: bytes) -> Meta:
    """Return the contents of the meta box.

    Raises:
        ImageError: the boxes are damaged, or the file is truncated.
    """
    try:
        return _read_meta(data)
    except (struct.error, IndexError) as error:
        raise UnreadableImage("the boxes of the file are damaged") from error


def _read_meta(data: bytes) -> Meta:
    meta = Meta()
    for kind, start, end in boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, first, last in boxes(data, start + 4, end):
            if inner == b"pitm":
                meta.primary = struct.unpack_from(">L" if data[first] else ">H", data, first + 4)[0]
            elif inner == b"iinf":
                meta.exif_item = _exif_item(data, first, last)
            elif inner == b"iref":
                meta.references = list(_references(data, first, last))
            elif inner == b"iloc":
                meta.places = _places(data, first)
            elif inner == b"iprp":
                for piece, begin, finish in boxes(data, first, last):
                    if piece == b"ipco":
                        meta.properties = [(name, data[a:b]) for name, a, b in boxes(data, begin, finish)]
                    elif piece == b"ipma":
                        meta.assigned |= _assigned(data, begin)
    return meta


def _references(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, from and to of each reference between items."""
    width = 4 if data[start] else 2
    for kind, first, last in boxes(data, start + 4, end):
        item = int.from_bytes(data[first : first + width])
        for place in range(first + width + 2, last - width + 1, width):
            yield kind, item, int.from_bytes(data[place : place + width])


def _exif_item(data: bytes, start: int, end: int) -> int | None:
    """Return the id of the item that is an EXIF block."""
    head = 6 if data[start] == 0 else 8
    for kind, first, _ in boxes(data, start + head, end):
        wide = data[first] == 3
        item, _, item_type = struct.unpack_from(">LH4s" if wide else ">HH4s", data, first + 4)
        if kind == b"infe" and item_type == b"Exif":
            return int(item)
    return None


def _places(data: bytes, start: int) -> dict[int, list[tuple[int, int]]]:
    """Return offset and length of the pieces of each item in the file."""
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
    left = MOST_PIECES
    for _ in range(number(widths)):
        item = number(widths)
        in_file = version == 0 or number(2) & 15 == 0
        number(2)  # data is in this file
        base = number(base_size)
        pieces = []
        for _ in range(number(2)):
            left -= 1  # a piece may be empty, so the length of the file does not limit their number
            if position > len(data) or left < 0:
                raise UnreadableImage("the list of item locations (iloc) in the file is damaged")
            if version:
                number(index_size)
            pieces.append((base + number(offset_size), number(length_size)))
        if position > len(data):
            raise UnreadableImage("the list of item locations (iloc) in the file is damaged")
        if pieces and in_file:
            places[item] = pieces
    return places


def _assigned(data: bytes, start: int) -> dict[int, list[int]]:
    """Return the properties assigned to each item."""
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
