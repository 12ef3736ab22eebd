"""Results of reading an image file: its header, or the error that explains why it has no detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from detr.images.exif import read_exif

if TYPE_CHECKING:
    from datetime import datetime


class ImageError(Exception):
    """The bytes cannot be decoded; the same bytes always fail in the same way.

    The message says what is wrong and, if possible, what to do. It does not name the image: only the caller has its
    uri.
    """

    kind: ClassVar[str]


class EmptyImage(ImageError):
    """The file is empty."""

    kind = "empty"


class NotAnImage(ImageError):
    """The bytes are not an image of a known format, but a web page, an archive or an error message of a store."""

    kind = "not_an_image"


class UnsupportedImage(ImageError):
    """No decoder supports this format or variant."""

    kind = "unsupported"


class TruncatedImage(ImageError):
    """The file ends before its picture is complete."""

    kind = "truncated"


class UnreadableImage(ImageError):
    """The file is damaged or inconsistent."""

    kind = "unreadable"


class ImageTooLarge(ImageError):
    """The header claims more pixels than allowed; nothing was decoded."""

    kind = "too_large"


class TooExtreme(ImageError):
    """The picture is so narrow that the size rule would give it a side of no pixels."""

    kind = "too_extreme"


@dataclass(frozen=True, slots=True)
class Header:
    """The properties of an image that are read without decoding it."""

    height: int  # upright, as is width: what `decode` will give
    width: int
    orientation: int  # EXIF's 1..8: the rotation that makes the stored pixels upright
    format: str  # Pillow's name of the format, such as JPEG or WEBP
    taken_at: datetime | None  # the camera's own clock, without a zone


class Samples(NamedTuple):
    """The meaning of a file's pixel values, as far as the file states it."""

    bits: int = 8
    white: int | None = None
    """The largest value, where the file states it."""
    is_inverted: bool = False
    """Whether 0 is white, in grey that Pillow does not invert."""


def upright_header(
    image_format: str, height: int, width: int, *, exif: bytes | None = None, orientation: int | None = None
) -> Header:
    """Return the header of a picture stored as `height` x `width`.

    `exif` is the block as found in the file; damaged parts are ignored. `orientation` overrides the block's.

    Raises:
        UnreadableImage: a side has no pixels.
    """
    if height <= 0 or width <= 0:
        raise UnreadableImage(f"its header says {width} x {height} pixels (width x height)")
    camera_orientation, taken_at = read_exif(exif) if exif else (1, None)
    turned = camera_orientation if orientation is None else orientation
    if turned >= 5:
        height, width = width, height
    return Header(height, width, turned, image_format, taken_at)
