"""Windows icons: read the largest picture of an icon."""

from __future__ import annotations

import struct

from detr.images.png import SIGNATURE as PNG_SIGNATURE
from detr.images.png import read_png
from detr.images.results import Header, TruncatedImage, UnreadableImage, upright_header

SIGNATURE = b"\0\0\1\0"


def read_icon(data: bytes) -> Header:
    """Return the header of the largest picture.

    Raises:
        ImageError: the file has no image, or it is truncated.
    """
    picture = picture_of_icon(data)
    if picture.startswith(PNG_SIGNATURE):
        header = read_png(picture)
        return upright_header("ICO", header.height, header.width)
    width, height = struct.unpack_from("<ii", picture, 4)
    return upright_header("ICO", abs(height), width)


def picture_of_icon(data: bytes) -> bytes:
    """Return the largest picture as a PNG or as a bitmap without its file header (DIB)."""
    count = int.from_bytes(data[4:6], "little")
    if len(data) < 6 + 16 * count:
        raise TruncatedImage("the icon ends inside its list of pictures")
    entries = list(struct.iter_unpack("<BBBBHHLL", data[6 : 6 + 16 * count]))
    if not entries:
        raise UnreadableImage("the icon has no picture")
    # a side of 0 means 256
    best = max(entries, key=lambda entry: ((entry[0] or 256) * (entry[1] or 256), entry[5]))
    size, offset = best[6], best[7]
    picture = data[offset : offset + size]
    if len(picture) < max(size, 40):
        raise TruncatedImage("the icon ends inside its largest picture")
    if picture.startswith(PNG_SIGNATURE):
        return picture
    # The bitmap's height includes the colours and, after them, a transparency mask of the same height.
    (height,) = struct.unpack_from("<i", picture, 8)
    return picture[:8] + struct.pack("<i", height // 2) + picture[12:]
