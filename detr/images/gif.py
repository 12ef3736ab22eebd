"""GIF: read the size without decoding, and extract the first frame."""

from __future__ import annotations

import struct

from detr.images.results import Header, TruncatedImage, UnreadableImage, upright_header

SIGNATURES = (b"GIF87a", b"GIF89a")
_EXTENSION, _IMAGE = 0x21, 0x2C


def read_gif(data: bytes) -> Header:
    """Return the header: the screen, enlarged if the first frame exceeds it (as in Pillow).

    Raises:
        ImageError: there is no first frame.
    """
    height, width, _ = _first_frame(data)
    return upright_header("GIF", height, width)


def picture_of_gif(data: bytes) -> bytes:
    """Return a GIF that begins with the first frame, on a screen that holds it, without comments and animation."""
    height, width, frame = _first_frame(data)
    screen = data[:6] + struct.pack("<HH", width, height)
    return screen + data[10 : 13 + _palette_bytes(data[10])] + data[frame:]


def _first_frame(data: bytes) -> tuple[int, int, int]:
    """Return height, width, and the offset of the first frame."""
    if len(data) < 13:
        raise TruncatedImage(f"a GIF of {len(data)} bytes ends inside its header")
    screen_width, screen_height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _palette_bytes(flags)
    while position + 10 <= len(data) and data[position] == _EXTENSION:
        position += 2
        while position < len(data) and data[position] != 0:  # blocks, each after its length, up to an empty one
            position += 1 + data[position]
        position += 1
    if position + 10 > len(data):
        raise TruncatedImage("the GIF ends before its first frame")
    if data[position] != _IMAGE:
        raise UnreadableImage("the GIF has no frame at the place of its first frame")
    left, top, width, height = struct.unpack_from("<4H", data, position + 1)
    right, bottom = max(screen_width, left + width), max(screen_height, top + height)
    if max(right, bottom) > 0xFFFF:
        raise UnreadableImage("the first frame of the GIF ends beyond 65535 pixels, the largest screen of the format")
    return bottom, right, position


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 128 else 0
