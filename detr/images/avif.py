"""AVIF: its size, turning and EXIF without decoding."""

from __future__ import annotations

import re
import struct

from detr.images.isobmff import exif_of, read_meta
from detr.images.results import Header, UnreadableImage, upright_header

# EXIF's orientation by quarter turns to the left and the mirroring after them: none, vertical, horizontal.
_ORIENTATIONS = {0: (1, 4, 2), 1: (8, 5, 7), 2: (3, 2, 4), 3: (6, 7, 5)}
_EXIF_ENTRY = re.compile(rb"(infe(?:\x02.{3}.{4}|\x03.{3}.{6}))Exif", re.DOTALL)


def read_avif(data: bytes) -> Header:
    """Return the header of the primary picture, rotated and mirrored by the container; EXIF must not be applied.

    Raises:
        ImageError: there is no such picture, or the file is truncated.
    """
    meta = read_meta(data)
    size, turns, mirror = None, 0, 0
    for kind, content in meta.properties_of(meta.primary):
        if kind == b"ispe" and len(content) >= 12:
            size = struct.unpack_from(">LL", content, 4)
        elif kind == b"irot" and content:
            turns = content[0] & 3
        elif kind == b"imir" and content:
            mirror = 1 + (content[0] & 1)
    if size is None:
        raise UnreadableImage("the AVIF does not contain its picture size")
    width, height = size
    return upright_header("AVIF", height, width, exif=exif_of(data, meta), orientation=_ORIENTATIONS[turns][mirror])


def picture_of_avif(data: bytes) -> bytes:
    """Return the file with its EXIF hidden, because Pillow would parse it and warn about errors in it."""
    return _EXIF_ENTRY.sub(rb"\1none", data, count=1)
