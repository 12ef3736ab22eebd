"""Encoded bytes -> upright RGB -> the size that the model sees."""

from __future__ import annotations

import platform
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detr.images import MAX_PIXELS
from detr.images.header import read_header
from detr.images.heic import decode_heic
from detr.images.library import load_image_library
from detr.images.pillow import decode_picture, open_picture
from detr.images.results import (
    EmptyImage,
    Header,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    TooExtreme,
    TruncatedImage,
    UnreadableImage,
    UnsupportedImage,
)
from detr.size_rule import SizeRule, resize_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_PIXELS",
    "EmptyImage",
    "Header",
    "ImageError",
    "ImageTooLarge",
    "NotAnImage",
    "SizeRule",
    "TooExtreme",
    "TruncatedImage",
    "UnreadableImage",
    "UnsupportedImage",
    "decode",
    "read_header",
    "resize",
    "resize_shape",
]

load_image_library()

_RGB = 3  # torchvision.io.ImageReadMode.RGB


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = True, check_scale: bool = True) -> Tensor:
    """Return the upright picture, `(3, H, W)` uint8 RGB, as a view of (H, W, 3) memory: `resize` is fastest on that.

    Of an animation, the first frame is decoded; of an icon, the largest picture. Alpha is dropped, not blended; 16 bits
    are scaled to 8; colour profiles are ignored. The size is that of `read_header`. Thread-safe.

    Args:
        data: the encoded file.
        max_pixels: larger pictures are refused after reading the header.
        upright: False returns the pixels as stored and ignores EXIF: if EXIF's orientation is 5 or more, height and
            width are exchanged compared with the header. Boxes drawn on such pixels are valid for these only. HEIC is
            upright in either case: decoding includes the rotation, and EXIF's orientation is informative only.
        check_scale: False returns nearly black colours of 16 bits and grey of 32 bits without refusing them for
            possibly having fewer bits. Shards of earlier versions contain such pictures.

    Raises:
        ImageError: a subclass names the problem.
        MemoryError: this machine has too little free memory for the picture; another one may have enough.
    """
    header = read_header(data, max_pixels=max_pixels)
    if header.format == "JPEG":
        stored = _decode_jpeg(data)
    elif header.format == "HEIC":
        stored = decode_heic(data, header)
    else:
        stored = decode_picture(open_picture(header.format, data), data, check_scale=check_scale)
    image = _upright(stored, header.orientation if upright else 1)
    shape = (header.height, header.width) if upright or header.orientation < 5 else (header.width, header.height)
    if image.shape[1:] != shape:
        raise UnreadableImage(
            f"its header says {shape[1]} x {shape[0]} pixels (width x height), but its picture has "
            f"{image.shape[2]} x {image.shape[1]}: the file is inconsistent"
        )
    return image


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Return `(3, height, width)` uint8 of `image`, `(3, H, W)` uint8: bilinear, antialiased when it shrinks.

    Within 1 grey level of `PIL.Image.resize(BILINEAR)`, which the original used, and equal to
    `torchvision.transforms.v2.functional.resize` bit by bit.
    """
    # Channels-last takes 1.8 ms for a COCO photograph, (3, H, W) memory 5.6; `decode` returns it, so this does not
    # copy.
    pixels = image[None].contiguous(memory_format=torch.channels_last)
    if pixels.shape[-2:] == (height, width):
        return pixels[0]
    pixels = _as_batch(pixels)
    if _resizes_uint8():
        return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0]
    resized = F.interpolate(pixels.float(), (height, width), mode="bilinear", antialias=True)
    return resized.round_().to(torch.uint8)[0]


@cache
def _resizes_uint8() -> bool:
    """Return whether torch resizes uint8 with vector instructions on this CPU; otherwise its result is less exact."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


def _as_batch(pixels: Tensor) -> Tensor:
    """Return one channels-last image `(1, 3, H, W)` with the strides of a batch of several.

    torch returns the result of `interpolate` in channels-last memory only if the first stride is channels-last (pytorch
    issue 68430); otherwise it copies the result.
    """
    return pixels.as_strided(pixels.shape, (pixels.numel(), *pixels.stride()[1:]))


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Return `(H, W, 3)` as stored: every JPEG that `read_header` lets through, also CMYK and arithmetic coding."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # a copy, because torch warns about read-only memory
    try:
        # the operator itself: torchvision's Python package takes a second to import (detr/images/library.py)
        image: Tensor = torch.ops.image.decode_jpeg(encoded, _RGB, False)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if "allocate memory" in reason:
            raise MemoryError(reason) from error
        if "truncated" in reason:
            raise TruncatedImage("the JPEG is truncated: its picture is incomplete") from error
        raise UnreadableImage(f"the JPEG is damaged: {reason}") from error
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels)  # no copy: torchvision returns a view of such memory


def _upright(stored: NDArray[np.uint8], orientation: int) -> Tensor:
    """Turn `(H, W, 3)` pixels as stored by EXIF's orientation; return them as `(3, H, W)` in channels-last memory."""
    # As units of three bytes: 12 megapixels are turned in 27 ms; 80 by torch's flip, 84 by Pillow (Zen 3, one thread)
    pixels = stored.view("V3")[..., 0]
    if orientation >= 5:
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    turned = np.ascontiguousarray(pixels).view(np.uint8).reshape(*pixels.shape, 3)
    return torch.from_numpy(turned).permute(2, 0, 1)
