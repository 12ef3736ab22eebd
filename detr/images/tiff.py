"""TIFF: read size and orientation without decoding, and make a copy with only the first picture."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from detr.images.exif import ExifEntry, directory_entries, read_directory
from detr.images.results import (
    Header,
    Samples,
    TruncatedImage,
    UnreadableImage,
    UnsupportedImage,
    upright_header,
)

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# bytes of one value of each kind
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}
_REDUCED, _WIDTH, _HEIGHT, _STRIP_OFFSETS, _TILE_OFFSETS, _SUB_DIRECTORIES, _DNG = 254, 256, 257, 273, 324, 330, 50706
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_BITS, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT = 258, 262, 281, 339
_SAMPLE_TAGS = (_BITS, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _UNSIGNED, _SHORT = 0, 1, 1, 3
# Tags that describe how pixels are stored: layout, palette, compression and its tables; single values first.
_SINGLE = {_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT}
_SINGLE |= {259, 262, 266, 277, 278, 284, 292, 293, 317, 332, 512, 513, 514, 515, 531}
_PICTURE = _SINGLE | {_STRIP_OFFSETS, _TILE_OFFSETS}
_PICTURE |= {258, 279, 320, 325, 338, 339, 347, 517, 518, 519, 520, 521, 529, 530, 532}
_COMPRESSION, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP, _PLANAR, _EXTRA_SAMPLES = 259, 277, 278, 284, 338
_LAYOUT_TAGS = {_WIDTH, _HEIGHT, _STRIP_OFFSETS, _COMPRESSION, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP, _PLANAR}
_LAYOUT_TAGS |= {_EXTRA_SAMPLES}
_TILE_PIXELS = 2**26  # tiles are always decoded whole; no known one has 65,536 x 1,024


class _Layout(NamedTuple):
    order: str  # of bytes, for struct
    big: bool  # BigTIFF: 64-bit offsets
    offset: int  # of the first directory


def read_tiff(data: bytes) -> Header:
    """Return the header of the first picture.

    Raises:
        UnsupportedImage: a camera's raw file, whose first picture is a thumbnail.
        ImageError: the directory is truncated or invalid.
    """
    order, big, offset = _layout(data)
    numbers = {
        entry.tag: _integers(data, entry, order)[0]
        for entry in _directory(data)
        if entry.tag in (_REDUCED, _WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _SUB_DIRECTORIES, _DNG)
    }
    if _DNG in numbers or data[8:10] == b"CR" or (numbers.get(_REDUCED) == 1 and _SUB_DIRECTORIES in numbers):
        raise UnsupportedImage("camera raw files cannot be decoded here; convert it to JPEG or TIFF first")
    if _WIDTH not in numbers or _HEIGHT not in numbers:
        raise UnreadableImage("the TIFF does not contain its picture size")
    if numbers.get(_TILE_WIDTH, 1) * numbers.get(_TILE_HEIGHT, 1) > _TILE_PIXELS:
        raise UnreadableImage("the TIFF has tiles larger than any picture")
    orientation, taken_at = read_directory(data, offset, order, big=big)
    header = upright_header("TIFF", numbers[_HEIGHT], numbers[_WIDTH], orientation=orientation)
    return Header(header.height, header.width, orientation, "TIFF", taken_at)


def samples_of_tiff(data: bytes) -> Samples:
    """Return the meaning of the pixel values; white is MaxSampleValue.

    Raises:
        ImageError: a tag is truncated, or not a number.
    """
    order, _, _ = _layout(data)
    entries = {entry.tag: entry for entry in reversed(_directory(data)) if entry.tag in _SAMPLE_TAGS}
    first = {tag: _first_integer(data, entry, order) for tag, entry in entries.items()}
    white = max(_integers(data, entries[_MAX_SAMPLE_VALUE], order)) if _MAX_SAMPLE_VALUE in entries else None
    return Samples(first.get(_BITS, 1), white, first.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def is_black_tiff(data: bytes) -> bool:
    """Return whether all colours of an uncompressed TIFF with 16 bits are 0; alpha is ignored.

    True if its pixels are compressed, or stored in tiles or by channel: they are not read here.

    Raises:
        ImageError: a tag is truncated, or not a number.
    """
    order, _, _ = _layout(data)
    entries = {entry.tag: entry for entry in reversed(_directory(data)) if entry.tag in _LAYOUT_TAGS}
    first = {tag: _first_integer(data, entry, order) for tag, entry in entries.items()}
    if first.get(_COMPRESSION, 1) != 1 or first.get(_PLANAR, 1) != 1 or _STRIP_OFFSETS not in entries:
        return True
    height, channels = first[_HEIGHT], first.get(_SAMPLES_PER_PIXEL, 1)
    colours = channels - (entries[_EXTRA_SAMPLES].values if _EXTRA_SAMPLES in entries else 0)
    rows_each = min(first.get(_ROWS_PER_STRIP, height), height)
    for number, offset in enumerate(_integers(data, entries[_STRIP_OFFSETS], order)):
        pixels = min(rows_each, height - number * rows_each) * first[_WIDTH]
        if pixels <= 0 or offset + 2 * pixels * channels > len(data):
            break
        values = np.frombuffer(data, np.uint16, pixels * channels, offset).reshape(-1, channels)
        if values[:, :colours].any():
            return False
    return True


def picture_of_tiff(data: bytes) -> bytes:
    """Return the file with a directory that has only the tags of the first picture.

    Pillow warns about tags that a picture does not need, applies the orientation in some of its code paths, and reads
    other directories. Its warnings can be disabled for the whole process only. Grey of 16 bits in which 0 is white is
    described as grey in which 0 is black: Pillow does not invert it, and cannot open it in big-endian files.

    Raises:
        TruncatedImage: the values of a tag, or the pixels, are beyond the end of the file.
        UnreadableImage: tags contradict each other.
    """
    order, big, offset = _layout(data)
    kept: dict[int, ExifEntry] = {}
    value_bytes = 0
    for entry in _directory(data):
        if entry.tag not in _PICTURE or entry.tag in kept:
            continue
        value_bytes += len(_values(data, entry, order))
        if entry.tag in _SINGLE and entry.values != 1:
            raise UnreadableImage(f"tag {entry.tag} of the TIFF has {entry.values} values instead of one")
        if entry.tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and max(_integers(data, entry, order)) >= len(data):
            raise TruncatedImage("the TIFF is truncated: its pixels are incomplete")
        kept[entry.tag] = entry
    if value_bytes > len(data):
        raise UnreadableImage("the tags of the TIFF refer to more bytes than it has")
    first = {tag: _first_integer(data, kept[tag], order) for tag in _SAMPLE_TAGS if tag in kept}
    has_16_bits = first.get(_BITS) == 16 and first.get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED
    if has_16_bits and first.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        black_is_zero = struct.pack(order + "H", _BLACK_IS_ZERO).ljust(8 if big else 4, b"\0")
        kept[_PHOTOMETRIC] = ExifEntry(_PHOTOMETRIC, _SHORT, 1, black_is_zero)
    entries = b"".join(struct.pack(order + ("HHQ8s" if big else "HHL4s"), *kept[tag]) for tag in sorted(kept))
    count = struct.pack(order + ("Q" if big else "H"), len(kept))
    # Overwrites the old one, which is never shorter: if the file grew, a truncated strip would continue into the
    # addition.
    directory = b"".join((count, entries, b"\0" * (8 if big else 4)))
    return b"".join((data[:offset], directory, data[offset + len(directory) :]))


def _layout(data: bytes) -> _Layout:
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    if len(data) < (16 if big else 8):
        raise TruncatedImage(f"a TIFF of {len(data)} bytes ends inside its header")
    offset = struct.unpack_from(order + "Q", data, 8)[0] if big else struct.unpack_from(order + "L", data, 4)[0]
    if offset + 2 > len(data):
        raise TruncatedImage("the TIFF ends before the directory of its picture")
    return _Layout(order, big, offset)


def _directory(data: bytes) -> list[ExifEntry]:
    order, big, offset = _layout(data)
    return list(directory_entries(data, offset, order, big=big))


def _values(data: bytes, entry: ExifEntry, order: str) -> bytes:
    """Return the bytes of an entry's values."""
    size = entry.values * _SIZES.get(entry.kind, 1)
    if size <= len(entry.value):
        return entry.value[:size]
    (offset,) = struct.unpack(order + ("Q" if len(entry.value) == 8 else "L"), entry.value)
    if offset + size > len(data):
        raise TruncatedImage(f"the TIFF ends before the values of its tag {entry.tag}")
    return data[offset : offset + size]


def _integers(data: bytes, entry: ExifEntry, order: str) -> tuple[int, ...]:
    letter = _INTEGERS.get(entry.kind)
    if letter is None or entry.values == 0:
        raise UnreadableImage(f"tag {entry.tag} of the TIFF is not a number")
    return struct.unpack(f"{order}{entry.values}{letter}", _values(data, entry, order))


def _first_integer(data: bytes, entry: ExifEntry, order: str) -> int:
    letter = _INTEGERS.get(entry.kind)
    if letter is None or entry.values == 0:
        raise UnreadableImage(f"tag {entry.tag} of the TIFF is not a number")
    number: int = struct.unpack_from(order + letter, _values(data, entry, order))[0]
    return number
