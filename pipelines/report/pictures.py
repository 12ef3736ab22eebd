"""The pictures of a report: fetched from their addresses, reduced, and embedded as text in the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipelines.report.examples import Example
from pipelines.store import NotFound, StoreError, Stores, without_secrets

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CHANGED: Final = "The image has changed since it was labelled."
MOST_BYTES: Final = 3_400_000  # of all pictures as base64: the page stays under 5 MB
MOST_PIXELS: Final = 640  # of the longer side
LEAST_PIXELS: Final = 96
QUALITY: Final = 70
THREADS: Final = 4
LARGEST_FILE: Final = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of the page.

    Attributes:
        uri: its address without secrets.
        source: a `data:` address of a WebP file, or None.
        width: pixels of the upright original, in which boxes are.
        height: pixels of the upright original.
        problem: why the picture is missing; None if it was read.
    """

    uri: str
    source: str | None
    width: int
    height: int
    problem: str | None = None


def load_pictures(examples: Iterable[Example], stores: Stores) -> list[Picture]:
    """Return the picture of each example, in order; in total at most 3.4 MB of text.

    A picture that is missing, or not in the labelled version, has no `source` but a reason.

    Args:
        examples: what to show; each image once.
        stores: stores of the images.
    """
    chosen = list(examples)
    budget = picture_budget(len(chosen))
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(lambda one: _load(one, stores, budget), chosen))


def picture_budget(count: int) -> int:
    """Return the largest number of characters for each of this many pictures."""
    return MOST_BYTES // max(1, count)


def picture_of(uri: str, pixels: Tensor, budget: int) -> Picture:
    """Return a picture of the page.

    Args:
        uri: its address, without secrets.
        pixels: `(3, height, width)` uint8 RGB.
        budget: largest number of characters.
    """
    from PIL import Image

    height, width = pixels.shape[1:]
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return Picture(uri, encode_picture(image, budget), width, height)


def encode_picture(image: Image.Image, budget: int, *, most_pixels: int = MOST_PIXELS) -> str:
    """Return a picture as a `data:` address with at most this many characters and pixels of its longer side."""
    data = shrink(image, budget * 3 // 4 - 100, most_pixels)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def shrink(image: Image.Image, most_bytes: int, most_pixels: int = MOST_PIXELS) -> bytes:
    """Return a WebP file of a picture, with limits for its longer side in pixels and for its bytes.

    A picture of 96 pixels may exceed the limit of bytes.
    """
    small, longest = image.copy(), most_pixels
    while True:
        small.thumbnail((longest, longest))
        sink = io.BytesIO()
        small.save(sink, "WEBP", quality=QUALITY, method=2)
        size = sink.tell()
        if size <= most_bytes or max(small.size) <= LEAST_PIXELS:
            return sink.getvalue()
        longest = max(LEAST_PIXELS, int(max(small.size) * 0.95 * math.sqrt(most_bytes / size)))


def _load(example: Example, stores: Stores, budget: int) -> Picture:
    shown = without_secrets(example.uri)
    image, problem = read_picture(example, stores)
    if image is None:
        return Picture(shown, None, example.width or 0, example.height or 0, problem)
    return Picture(shown, encode_picture(image, budget), *image.size)


def read_picture(example: Example, stores: Stores) -> tuple[Image.Image | None, str | None]:
    """Return the upright image of an example, or None and the reason: missing, changed or damaged."""
    from PIL import Image

    from detr.images.decoding import ImageError, decode

    try:
        blob = stores.get(example.uri, most_bytes=LARGEST_FILE)
        if _is_changed(example, blob.etag, len(blob.data)):
            return None, CHANGED
        pixels = decode(blob.data)
    except NotFound:
        return None, "The image no longer exists."
    except (StoreError, ImageError) as error:
        return None, f"The image cannot be read: {without_secrets(str(error))}"
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if example.width is not None and image.size != (example.width, example.height):  # a store without etags
        return None, CHANGED
    return image, None


def _is_changed(example: Example, etag: str | None, size: int) -> bool:
    if example.etag is not None and etag is not None:
        return example.etag != etag
    return example.size not in (None, size)


def unique(galleries: Sequence[Sequence[Example]]) -> dict[str, Example]:
    """Return the images of some galleries without duplicates, by address."""
    return {example.uri: example for examples in galleries for example in examples}
