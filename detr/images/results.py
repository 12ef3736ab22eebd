"""What an image file turns out to be: its header, or the reason why it has no detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from detr.images.exif import read_exif

if TYPE_CHECKING:
    from datetime import datetime


class ImageError(Exception):
    """The bytes are the reason why there are no detections; the same bytes will always fail alike.

    The message says what is wrong and, where there is something, what to do. It does not name the image: only the
    caller knows its uri.
    """

    kind: ClassVar[str]


class EmptyImage(ImageError):
    """There are no bytes."""

    kind = "empty"


class NotAnImage(ImageError):
    """The bytes are no image of any format that we know: a web page, an archive, an error message of a store."""

    kind = "not_an_image"


class UnsupportedImage(ImageError):
    """A format, or a variant of one, that no decoder here can show."""

    kind = "unsupported"


class TruncatedImage(ImageError):
    """The file ends before its picture does."""

    kind = "truncated"


class UnreadableImage(ImageError):
    """The file is damaged, or contradicts itself."""

    kind = "unreadable"


class ImageTooLarge(ImageError):
    """The header claims more pixels than allowed; nothing was decoded."""

    kind = "too_large"


class TooExtreme(ImageError):
    """The picture is so narrow that the size rule would give it a side of no pixels."""

    kind = "too_extreme"


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before a pixel of it is decoded."""

    height: int  # upright, as is width: what `decode` will give
    width: int
    orientation: int  # EXIF's 1..8: how the stored pixels must be turned to stand upright
    format: str  # Pillow's name of the format, such as JPEG or WEBP
    taken_at: datetime | None  # the camera's own clock, without a zone


def upright_header(
    image_format: str, height: int, width: int, *, exif: bytes | None = None, orientation: int | None = None
) -> Header:
    """Return the header of a picture stored as `height` x `width`.

    `exif` is the block as found in the file; what is broken in it is ignored. `orientation` overrules the block's.

    Raises:
        UnreadableImage: a side has no pixels.
    """
    if height <= 0 or width <= 0:
        raise UnreadableImage(f"its header gives it {width} x {height} pixels (width x height)")
    camera_orientation, taken_at = read_exif(exif) if exif else (1, None)
    turned = camera_orientation if orientation is None else orientation
    if turned >= 5:
        height, width = width, height
    return Header(height, width, turned, image_format, taken_at)
