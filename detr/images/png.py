"""PNG: read size and EXIF without decoding, and extract the chunks of the picture."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detr.images.results import Header, Samples, TruncatedImage, UnreadableImage, upright_header

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE_CHUNKS = (b"IHDR", b"PLTE", b"IDAT")
_END = b"\0\0\0\0IEND\xaeB`\x82"
_PIECE = 2**16
_CHANNELS = {2: (3, 3), 4: (1, 2), 6: (3, 4)}  # by colour type: of colour or grey, and with alpha
# Adam7: first column, first row, and distance of columns and rows of each pass
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type


class _Chunk(NamedTuple):
    name: bytes
    start: int  # of its four bytes of length
    end: int  # after its four bytes of checksum


def read_png(data: bytes) -> Header:
    """Return the header; EXIF is read at any position, even after the pixels.

    Raises:
        ImageError: the header is truncated or invalid.
    """
    if len(data) < 33:
        raise TruncatedImage(f"a PNG of {len(data)} bytes ends inside its header")
    if data[12:16] != b"IHDR":
        raise UnreadableImage("the PNG does not begin with its header chunk (IHDR)")
    depth, colour_type = data[24], data[25]
    if depth not in _DEPTHS.get(colour_type, ()):
        raise UnreadableImage(f"a PNG cannot have colour type {colour_type} with {depth} bits: its header is damaged")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    exif = next((data[chunk.start + 8 : chunk.end - 4] for chunk in _chunks(data) if chunk.name == b"eXIf"), None)
    return upright_header("PNG", height, width, exif=exif)


def samples_of_png(data: bytes) -> Samples:
    """Return the meaning of the pixel values; white is the largest value of the significant bits (sBIT chunk)."""
    for chunk in _chunks(data):
        if chunk.name == b"sBIT" and chunk.start + 12 < chunk.end <= len(data):
            bits = data[chunk.start + 8]
            return Samples(data[24], 2**bits - 1 if 1 <= bits <= 16 else None)
    return Samples(data[24])


def is_black_png(data: bytes) -> bool:
    """Return whether all colours of a PNG with 16 bits are 0; alpha is ignored.

    Filters keep zeros as they are, and do not mix channels.

    Raises:
        UnreadableImage: the pixels cannot be unpacked.
    """
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    colours, channels = _CHANNELS[data[25]]
    passes = _PASSES if data[28] else ((0, 0, 1, 1),)
    pieces, held = _unpacked(data), bytearray()
    for x, y, dx, dy in passes:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        row_bytes = 1 + columns * 2 * channels
        while columns > 0 and rows > 0:
            if len(held) < row_bytes:
                piece = next(pieces, b"")
                if not piece:
                    return True
                held += piece
                continue
            whole = min(rows, len(held) // row_bytes)
            rows -= whole
            pixels = np.frombuffer(held[: whole * row_bytes], np.uint8).reshape(whole, row_bytes)[:, 1:]
            if pixels.reshape(-1, 2 * channels)[:, : 2 * colours].any():
                return False
            del held[: whole * row_bytes]
    return True


def picture_of_png(data: bytes) -> bytes:
    """Return a PNG with only the chunks that the pixels need: no text, animation, profile or transparency.

    A text chunk can unpack to gigabytes, and Pillow refuses the whole file for it.

    Raises:
        TruncatedImage: the file ends inside one of these chunks.
        UnreadableImage: a checksum is wrong. libpng and browsers refuse such a file too; Pillow shows it.
    """
    parts = [SIGNATURE]
    for name, start, end in _chunks(data):
        if name not in _PICTURE_CHUNKS:
            continue
        if end > len(data):
            raise TruncatedImage(f"the PNG ends inside its {name.decode()} chunk")
        if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise UnreadableImage(f"the checksum of the PNG's {name.decode()} chunk is wrong: the file is damaged")
        parts.append(data[start:end])
    return b"".join((*parts, _END))


def _unpacked(data: bytes) -> Iterator[bytes]:
    """Yield the filtered rows in pieces: a whole picture may take gigabytes."""
    unpacker = zlib.decompressobj()
    try:
        for name, start, end in _chunks(data):
            for first in range(start + 8, end - 4 if name == b"IDAT" else 0, _PIECE):
                packed = data[first : min(first + _PIECE, end - 4)]
                while packed and not unpacker.eof:
                    yield unpacker.decompress(packed, 16 * _PIECE)
                    packed = unpacker.unconsumed_tail
    except zlib.error as error:
        raise UnreadableImage(f"the pixels of the PNG are damaged: {error}") from error


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks up to the end chunk; the last may be cut."""
    start = len(SIGNATURE)
    while start + 8 <= len(data):
        name = data[start + 4 : start + 8]
        if name == b"IEND":
            return
        end = start + 12 + int.from_bytes(data[start : start + 4])
        yield _Chunk(name, start, end)
        start = end
