"""The pictures of a report: fetched from their addresses, reduced, and embedded as text in the page."""

from __future__ import annotations

import base64
import io
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from pipelines.lake.members import split_member
from pipelines.report.examples import Example
from pipelines.store import (
    Misconfigured,
    NotFound,
    StoreDown,
    StoreError,
    Stores,
    split_uri,
    without_known_secrets,
    without_secrets,
)
from pipelines.store.uris import LOCAL_ROOT

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CHANGED: Final = "The image has changed since it was labelled."
MOST_BYTES: Final = 3_400_000  # of all pictures as base64
MOST_PIXELS: Final = 640  # of the longer side
LEAST_PIXELS: Final = 96
QUALITY: Final = 70
LEAST_QUALITY: Final = 5
THREADS: Final = 4
LARGEST_FILE: Final = 256 * 1024**2
MOST_FAILURES: Final = 2  # of a bucket or server without an answer between them; then it counts as down
LARGE_PIXELS: Final = 50_000_000  # larger pictures are decoded one at a time

Used = TypeVar("Used")


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


def load_pictures(
    examples: Iterable[Example],
    stores: Stores,
    show: Callable[[int, int], None] = lambda _done, _all: None,
    *,
    most_bytes: int | None = None,
) -> list[Picture]:
    """Return the picture of each example, in order; in total at most `most_bytes` of text (3.4 MB).

    A picture that is missing, or not in the labelled version, has no `source` but a reason. Memory: `THREADS` pictures
    of at most 50 megapixels, and one larger one.

    Args:
        examples: what to show; each image once.
        stores: stores of the images.
        show: called with the numbers of pictures that are done, and of all.
        most_bytes: of all pictures together.
    """
    chosen = list(examples)
    budget, reader = picture_budget(len(chosen), most_bytes), PictureReader(stores)
    pictures = []
    with ThreadPoolExecutor(THREADS) as threads:
        for picture in threads.map(lambda one: _load(one, reader, budget), chosen):
            pictures.append(picture)
            show(len(pictures), len(chosen))
    return pictures


def picture_budget(count: int, most_bytes: int | None = None) -> int:
    """Return the largest number of characters for each of this many pictures."""
    return (MOST_BYTES if most_bytes is None else most_bytes) // max(1, count)


def picture_of(uri: str, pixels: Tensor, budget: int) -> Picture:
    """Return a picture of the page.

    Args:
        uri: its address, without secrets.
        pixels: `(3, height, width)` uint8 RGB.
        budget: largest number of characters.
    """
    height, width = pixels.shape[1:]
    return Picture(uri, encode_picture(to_image(pixels, MOST_PIXELS), budget), width, height)


def encode_picture(image: Image.Image, budget: int, *, most_pixels: int = MOST_PIXELS) -> str:
    """Return a picture as a `data:` address with at most this many characters and pixels of its longer side."""
    data = shrink(image, budget * 3 // 4 - 100, most_pixels)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def shrink(image: Image.Image, most_bytes: int, most_pixels: int = MOST_PIXELS) -> bytes:
    """Return a WebP file of a picture, with limits for its longer side in pixels and for its bytes.

    From 96 pixels on, the quality is reduced instead. A picture of 96 pixels with the least one may exceed the limit
    of bytes.
    """
    small, longest, quality = image, most_pixels, QUALITY
    while True:
        small = _fitted(small, longest)
        sink = io.BytesIO()
        small.save(sink, "WEBP", quality=quality, method=2)
        size = sink.tell()
        if size <= most_bytes or quality <= LEAST_QUALITY:
            return sink.getvalue()
        if max(small.size) > LEAST_PIXELS:
            longest = max(LEAST_PIXELS, int(max(small.size) * 0.95 * math.sqrt(max(1, most_bytes) / size)))
        else:
            quality //= 2


def _fitted(image: Image.Image, longest: int) -> Image.Image:
    """Return a picture with at most this many pixels in its longer side, itself if it has not more."""
    if max(image.size) <= longest:
        return image
    factor = longest / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, reducing_gap=2.0)  # without a second picture of the full size


def _load(example: Example, reader: PictureReader, budget: int) -> Picture:
    shown = without_known_secrets(example.uri)

    def small(pixels: Tensor) -> tuple[str, int, int]:
        return encode_picture(to_image(pixels, MOST_PIXELS), budget), pixels.shape[2], pixels.shape[1]

    read, problem = reader.read(example, small)
    if read is None:
        return Picture(shown, None, example.width or 0, example.height or 0, problem)
    return Picture(shown, *read)


def to_image(pixels: Tensor, longest: int) -> Image.Image:
    """Return `(3, height, width)` uint8 RGB as a picture with at most this many pixels in its longer side.

    It is reduced before it becomes a picture of Pillow, which takes four bytes for each pixel.
    """
    from PIL import Image

    from detr.images.decoding import resize

    height, width = pixels.shape[1:]
    factor = min(1.0, longest / max(height, width))
    if factor < 1:
        pixels = resize(pixels, max(1, round(height * factor)), max(1, round(width * factor)))
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


class PictureReader:
    """Reads pictures in several threads, at most one above 50 megapixels at a time.

    After two failures of a bucket or server without an answer between them, its further pictures are not asked for.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores, self._large, self._lock = stores, threading.Lock(), threading.Lock()
        self._failures: Counter[str] = Counter()  # of each place, since it last answered

    def read(self, example: Example, use: Callable[[Tensor], Used]) -> tuple[Used | None, str | None]:
        """Return what `use` makes of the upright picture, `(3, H, W)` uint8 RGB, and no problem.

        If it is missing, changed or damaged, the result is None and the reason.
        """
        from detr.images.decoding import ImageError, decode, read_header

        place = _place(example.uri)
        with self._lock:
            if self._failures[place] >= MOST_FAILURES:
                return None, f"The image was not read: {without_secrets(place)} did not answer for other images."
        try:
            blob = self._stores.get(example.uri, most_bytes=LARGEST_FILE)
            self._note_answer(place)
            if _is_changed(example, blob.etag, len(blob.data)):
                return None, CHANGED
            header = read_header(blob.data)
            if example.width is not None and (header.width, header.height) != (example.width, example.height):
                return None, CHANGED  # a store without etags
            with self._large if header.width * header.height > LARGE_PIXELS else nullcontext():
                return use(decode(blob.data)), None
        except NotFound:
            self._note_answer(place)
            return None, "The image no longer exists."
        except (StoreError, ImageError) as error:
            problem = f"The image cannot be read: {without_secrets(str(error))}"
            if isinstance(error, StoreDown | Misconfigured):
                with self._lock:
                    self._failures[place] += 1
            return None, problem

    def _note_answer(self, place: str) -> None:
        with self._lock:
            self._failures[place] = 0


def _place(uri: str) -> str:
    """Return what fails as a whole: the file of a member, a local file, or a bucket or server."""
    member = split_member(uri)
    if member is not None:
        return member[0]
    root, _ = split_uri(uri)
    return uri if root == LOCAL_ROOT else root


def _is_changed(example: Example, etag: str | None, size: int) -> bool:
    if example.etag is not None and etag is not None:
        return example.etag != etag
    return example.size not in (None, size)


def unique(galleries: Sequence[Sequence[Example]]) -> dict[str, Example]:
    """Return the images of some galleries without duplicates, by address."""
    return {example.uri: example for examples in galleries for example in examples}
