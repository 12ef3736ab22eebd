"""Decode all formats except JPEG with Pillow: bytes of a known format -> RGB.

Plugins are called by name and receive only the picture (`picture_of_png` and similar), because `Image.open` and some
plugins warn about sizes and tags, and warnings can be disabled for the whole process only, not for a thread.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile, DibImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.PsdImagePlugin import PsdImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from detr.images.avif import picture_of_avif
from detr.images.gif import picture_of_gif
from detr.images.icon import picture_of_icon
from detr.images.png import SIGNATURE as PNG_SIGNATURE
from detr.images.png import is_black_png, picture_of_png, samples_of_png
from detr.images.results import (
    ImageError,
    ImageTooLarge,
    Samples,
    TruncatedImage,
    UnreadableImage,
    UnsupportedImage,
)
from detr.images.tiff import is_black_tiff, picture_of_tiff, samples_of_tiff

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

_PLUGINS: dict[str, tuple[Callable[[BytesIO], ImageFile], Callable[[bytes], bytes]]] = {
    "AVIF": (AvifImageFile, picture_of_avif),
    "BMP": (BmpImageFile, bytes),
    "DIB": (DibImageFile, bytes),
    "GIF": (GifImageFile, picture_of_gif),
    "JPEG2000": (Jpeg2KImageFile, bytes),
    "PNG": (PngImageFile, picture_of_png),
    "PPM": (PpmImageFile, bytes),
    "PSD": (PsdImageFile, bytes),
    "TIFF": (TiffImageFile, picture_of_tiff),
    "WEBP": (WebPImageFile, bytes),
}
# What Pillow 13 was seen to raise on damaged bytes. Not MemoryError, which is not caused by the file.
_DAMAGE = (
    Image.DecompressionBombError,
    SyntaxError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_SAMPLES: dict[str, Callable[[bytes], Samples]] = {"PNG": samples_of_png, "TIFF": samples_of_tiff}
_IS_BLACK: dict[str, Callable[[bytes], bool]] = {"PNG": is_black_png, "TIFF": is_black_tiff}
_TWELVE_BITS, _SIXTEEN_BITS = 4095, 65535
_DARK = (
    "its largest value is at most {} of 65535, so it is nearly black (in CMYK: white), or it has fewer "
    "than 16 bits: scale the values to 0..65535, or, if it is right as it is, set the TIFF's MaxSampleValue to "
    "65535 or the PNG's sBIT to 16"
)
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
# The value of white: files do not state it, so it is the smallest of these that no value exceeds. Pillow uses integers
# (I) only for 16-bit PPM, already in this scale, and for 32-bit TIFF.
_FULL_SCALES = {"I": (65535.0,), "F": (1.0, 255.0, 65535.0)}


def open_picture(image_format: str, data: bytes) -> ImageFile:
    """Open a picture without decoding it.

    Raises:
        ImageError: the header is damaged or of a variant that Pillow does not support.
    """
    if image_format == "ICO":
        data = picture_of_icon(data)
        image_format = "PNG" if data.startswith(PNG_SIGNATURE) else "DIB"
    plugin, picture_of = _PLUGINS[image_format]
    picture = picture_of(data)
    try:
        return plugin(BytesIO(picture))
    except _DAMAGE as error:
        # The directory of a TIFF is valid here: Pillow cannot show such pixels.
        kind = UnsupportedImage if image_format == "TIFF" else UnreadableImage
        raise _verdict(error, kind(f"Pillow cannot open this {image_format}: {error}")) from error


def decode_picture(image: ImageFile, data: bytes = b"", *, check_scale: bool = True) -> NDArray[np.uint8]:
    """Decode once and return `(H, W, 3)` RGB as stored, not rotated: alpha dropped, 16 bits and floats scaled to 8.

    Grey values of 10 or 12 bits in 16 are scaled by the file's value of white (`MaxSampleValue`, `sBIT`).

    An image whose decoding failed must not be decoded again: Pillow 13 then succeeds, with half a picture.

    Args:
        image: of `open_picture`.
        data: the encoded file, which may state the value of white.
        check_scale: see `detr.images.decoding.decode`.

    Raises:
        ImageError: the picture is truncated, damaged, or its values have no known scale.
    """
    image_format = image.format
    try:
        if image_format == "TIFF":
            # Created here, because the plugin's own code warns above 89 megapixels.
            image.im = Image.new(image.mode, image.size).im
        image.load()
    except _DAMAGE as error:
        raise _verdict(error, UnreadableImage(f"the pixels of the {image_format} are damaged: {error}")) from error
    if image_format == "PNG" and data and not data.startswith(PNG_SIGNATURE):
        data = picture_of_icon(data)
    samples = _SAMPLES[image_format](data) if data and image_format in _SAMPLES else Samples()
    rgb = to_rgb(image, samples, check_scale=check_scale)
    may_be_dark = samples.bits == 16 and samples.white != _SIXTEEN_BITS and image.mode in EIGHT_BITS
    if check_scale and may_be_dark and image_format in _IS_BLACK:
        upper = np.asarray(image) if image.mode == "CMYK" else rgb
        if not upper.any() and not _IS_BLACK[image_format](data):
            raise UnsupportedImage(_DARK.format(255))
    return rgb


def _verdict(error: Exception, otherwise: ImageError) -> ImageError | MemoryError:
    """Return our error for an exception of Pillow; often only its text distinguishes them."""
    text = str(error).lower()
    if "out of memory" in text:  # libavif's
        return MemoryError(str(error))
    if isinstance(error, Image.DecompressionBombError):
        return ImageTooLarge("the picture has more pixels than Pillow decodes; scale it down")
    if any(hint in text for hint in ("truncated", "not enough image data", "reached eof")):
        return TruncatedImage("the file is truncated: its picture is incomplete")
    return otherwise


def to_rgb(image: Image.Image, samples: Samples, *, check_scale: bool = True) -> NDArray[np.uint8]:
    """Convert a decoded image to RGB of shape (height, width, 3); alpha is dropped.

    Args:
        image: Of any of Pillow's modes.
        samples: The meaning of the values in the file.
        check_scale: see `detr.images.decoding.decode`.

    Raises:
        UnsupportedImage: its values have no known scale, or Pillow cannot convert its mode.
    """
    if image.mode == "La":  # grey premultiplied by alpha: Pillow converts it to LA only
        image = image.convert("LA")
    mode = image.mode
    if mode in EIGHT_BITS:
        rgb = np.array(image if mode == "RGB" else image.convert("RGB"))
        if samples.bits == 16 and check_scale:
            _check_scale(np.asarray(image) if mode == "CMYK" else rgb, samples.white, image.format)
        return rgb
    grey = np.asarray(image)
    if mode.startswith("I;16"):
        full = _full_scale(grey, samples.white, image.format)
    elif mode in _FULL_SCALES:
        low, high = float(grey.min()), float(grey.max())
        known = next((scale for scale in _FULL_SCALES[mode] if high <= scale), None)
        if known is None or not low >= 0:  # NaN too
            raise UnsupportedImage(
                f"its values run from {low:g} to {high:g}; scale them to 0..65535, or floats to 0..1"
            )
        is_scaled = known < _SIXTEEN_BITS or image.format == "PPM"  # Pillow scales PPM by the file's value of white
        is_scaled |= samples.white is None and not check_scale
        full = known if is_scaled else _full_scale(grey, samples.white, image.format)
    else:
        raise UnsupportedImage(f"Pillow cannot convert {mode} pixels to RGB; convert the image first")
    eight = _scaled(grey, full)
    return np.repeat((255 - eight if samples.is_inverted else eight)[..., None], 3, axis=2)


def _check_scale(eight: NDArray[np.uint8], white: int | None, image_format: str | None) -> None:
    """Refuse colours of 16 bits that have fewer bits; Pillow has kept only the upper 8.

    Args:
        eight: the upper 8 bits of each value.
        white: the value in the file, None if it has none.
        image_format: of the file.

    Raises:
        UnsupportedImage: the picture would have nearly one colour, and it is not known whether that is correct.
    """
    limit = _TWELVE_BITS if white is None else white
    if image_format == "PNG" and limit < _SIXTEEN_BITS:
        limit = min(limit, _TWELVE_BITS)  # values are scaled up in the standard: those of 13 to 15 bits may be dark
    if limit < _SIXTEEN_BITS and 0 < int(eight.max()) <= limit >> 8:
        raise UnsupportedImage(_DARK.format(limit))


def _full_scale(grey: NDArray[np.generic], white: int | None, image_format: str | None) -> float:
    """Return the value of white in grey of 16 bits, or in integers and floats of 32 bits up to 65535.

    Args:
        grey: the values.
        white: the value in the file, None if it has none.
        image_format: of the file.

    Raises:
        UnsupportedImage: the picture would be nearly black, and it is not known whether that is correct.
    """
    high = int(grey.max())
    if white is None and 0 < high <= _TWELVE_BITS:
        raise UnsupportedImage(
            f"its largest value is {high} of 65535, so it is nearly black, or it has fewer than 16 bits without "
            "declaring so: scale the values to 0..65535, or set the TIFF's MaxSampleValue or the PNG's sBIT"
        )
    if white is None or high > white:
        return float(_SIXTEEN_BITS)
    # PNG writers that follow the standard scale values up: dark values are then multiples of this
    step = 65536 // (white + 1)
    is_scaled_up = image_format == "PNG" and not np.any(np.asarray(grey) % step)
    return float(_SIXTEEN_BITS) if is_scaled_up else float(white)


def _scaled(grey: NDArray[np.generic], full: float) -> NDArray[np.uint8]:
    return (grey.astype(np.float32) * np.float32(255 / full) + np.float32(0.5)).astype(np.uint8)
