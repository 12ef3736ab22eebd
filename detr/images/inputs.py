"""Image inputs of `Detector`, and conversion to encoded bytes or pixels."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from detr.images.decoding import ImageError

AnyImage = (
    bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO | Image.Image | Tensor | npt.NDArray[np.uint8]
)


_NOT_IN_TIFF = {"HSV": "RGB", "RGBa": "RGBA", "La": "LA"}  # modes of PIL images, and one with the same colours


def is_image(value: object) -> TypeGuard[AnyImage]:
    """Return whether a value is one image, not several or something else."""
    return isinstance(
        value, (bytes, bytearray, memoryview, str, os.PathLike, Image.Image, Tensor, np.ndarray)
    ) or callable(getattr(value, "read", None))


def not_an_image(value: object) -> TypeError:
    """Return the error for a value of an unsupported type."""
    return TypeError(
        f"{type(value).__name__} is not an image; give encoded bytes, a path, an open binary file, a PIL image, a "
        "uint8 (3, H, W) RGB tensor or a uint8 (H, W, 3) NumPy RGB array, or a list of these"
    )


def encoded_or_tensor(image: AnyImage) -> bytes | Tensor:
    """Return the encoded bytes of an image, or its pixels as an upright uint8 `(3, H, W)` RGB tensor.

    Raises:
        TypeError: the type is not supported.
        ValueError: a tensor or an array does not have the shape or dtype of an image.
        OSError: its file cannot be read.
    """
    if isinstance(image, (str, os.PathLike)):
        return Path(image).read_bytes()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image array must be uint8 (H, W, 3) RGB, not {image.dtype} {image.shape}")
        # copied if torch cannot use the array's memory: negative strides, or read-only
        return torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _NOT_IN_TIFF:
            upright = upright.convert(_NOT_IN_TIFF[upright.mode])
        if upright.mode == "RGB":
            return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
        # other modes are encoded first: the decoder handles depth, palettes and transparency
        buffer = io.BytesIO()
        upright.save(buffer, "TIFF", compression="raw")  # not as the file that it comes from
        return buffer.getvalue()
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"an image tensor must be uint8 (3, H, W), not {image.dtype} {tuple(image.shape)}")
        return image
    if not callable(getattr(image, "read", None)):
        raise not_an_image(image)
    data = image.read()
    if not isinstance(data, bytes):
        raise TypeError(f"an image file must be opened in binary mode ('rb'); read() gave {type(data).__name__}")
    return data


@contextmanager
def naming(image: AnyImage) -> Iterator[None]:
    """Prefix the message of an `ImageError` with the path of the image, if it has one."""
    try:
        yield
    except ImageError as error:
        if isinstance(image, (str, os.PathLike)):
            raise type(error)(f"{image}: {error}") from error
        raise
