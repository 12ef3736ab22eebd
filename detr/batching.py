"""Grouping of images into batches, and the host memory that holds them."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")
_Begun = TypeVar("_Begun")

LEFTOVER_PADDING = 1.08  # leftovers are joined up to this many times the pixels of their images


@dataclass(frozen=True, slots=True)
class Batch:
    """Indices of the images of one batch, and the shape in pixels that they are padded to."""

    indices: tuple[int, ...]
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Pixels of all images with their padding."""
        return len(self.indices) * self.height * self.width


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image ready for the network: `(3, h, w)` after resizing, and its upright (height, width) before it.

    The pixels are uint8, or float32 if the detector normalises in `prepare`.
    """

    pixels: Tensor
    height: int
    width: int


@dataclass(slots=True)
class HostBatch:
    """Images of one batch in host memory, each at the top left of its slot.

    Attributes:
        pixels: `(B, 3, H, W)` in channels-last memory, uint8, or float32 if the detector normalises in `prepare`;
            undefined to the right of an image and below it.
        sizes: int64 `(B, 4)`: the height and width of each image in `pixels`, then its upright height and width.
    """

    pixels: Tensor
    sizes: Tensor

    @classmethod
    def allocate(
        cls,
        count: int,
        height: int,
        width: int,
        memory: Callable[[tuple[int, ...], torch.dtype], Tensor],
        *,
        dtype: torch.dtype = torch.uint8,
    ) -> "HostBatch":
        """Return an uninitialised batch of `count` slots of `height` x `width` pixels.

        `memory` returns an uninitialised tensor of a shape and dtype.
        """
        pixels = memory((count, height, width, 3), dtype).permute(0, 3, 1, 2)
        return cls(pixels, memory((count, 4), torch.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def is_padded(self) -> bool:
        """Whether an image is smaller than its slot."""
        return bool((self.sizes[:, :2].numpy() != self.pixels.shape[2:]).any())

    def write(self, place: int, image: Prepared) -> None:
        """Copy an image into its slot. Threads may write different slots concurrently."""
        height, width = image.pixels.shape[1:]
        if height > self.pixels.shape[2] or width > self.pixels.shape[3]:
            raise ValueError(f"{height} x {width} pixels do not fit into {tuple(self.pixels.shape[2:])}")
        if image.pixels.shape == self.pixels.shape[1:] and len(self) == 1 and not self.pixels.is_pinned():
            self.pixels = image.pixels[None]  # on a CPU batches of one image are usual, and need no copy
        else:
            self.pixels[place, :, :height, :width] = image.pixels
        self.sizes[place].numpy()[:] = (height, width, image.height, image.width)

    def part(self, start: int, stop: int) -> "HostBatch":
        """Return slots `start` to `stop` (exclusive) as a view of the same memory."""
        return HostBatch(self.pixels[start:stop], self.sizes[start:stop])

    def only(self, places: Sequence[int]) -> "HostBatch":
        """Return these slots, given in ascending order, moved to the front of the same memory."""
        for new, old in enumerate(places):
            if new != old:
                self.pixels[new] = self.pixels[old]
                self.sizes[new] = self.sizes[old]
        return self.part(0, len(places))


def order_batches(shapes: Sequence[tuple[int, int]], *, batch_size: int) -> list[Batch]:
    """Group images of similar shape into batches; every image is in exactly one.

    Full batches of one exact shape come first: they need no padding, and so neither masks nor guards. Images that do
    not fill a batch of their shape are joined with leftovers of similar aspect, as long as there is little padding.
    Batches that are not full are not filled up.

    Args:
        shapes: (height, width) in pixels of each image as the network will see it.
        batch_size: largest number of images in a batch.
    """
    batches: list[Batch] = []
    leftovers: list[Batch] = []
    # widest first, so that neighbours have similar aspects
    for group in sorted(_by_shape(shapes), key=lambda group: (group.height / group.width, group.height)):
        full, rest = _cut(group, batch_size)
        batches += full
        leftovers += [rest] if rest else []
    return batches + _join(leftovers, shapes, batch_size)


def equal_batches(shapes: Sequence[tuple[int, int]], *, batch_size: int) -> list[Batch]:
    """Group images into batches of exactly one shape each; no image is padded.

    Args:
        shapes: (height, width) in pixels of each image as the network will see it.
        batch_size: largest number of images in a batch.
    """
    batches: list[Batch] = []
    for group in _by_shape(shapes):
        full, rest = _cut(group, batch_size)
        batches += full + ([rest] if rest else [])
    return batches


def pad(images: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Copy uint8 `(3, h, w)` images into one zeroed `(B, 3, height, width)`, to the top left.

    Returns:
        The batch in channels-last memory, and `(B, 2)` int64 of each image's own (height, width).
    """
    batch = torch.zeros((len(images), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch, torch.tensor([image.shape[1:] for image in images])


def ahead(items: Iterable[_Item], begin: Callable[[_Item], _Begun], count: int) -> Iterator[_Begun]:
    """Yield `begin(item)` for each item, in order, after `begin` was called for the next `count` items."""
    begun: deque[_Begun] = deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def _by_shape(shapes: Sequence[tuple[int, int]]) -> list[Batch]:
    """Return all images of each exact shape, in order of its first image."""
    indices: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        indices[shape].append(index)
    return [Batch(tuple(these), height, width) for (height, width), these in indices.items()]


def _cut(group: Batch, batch_size: int) -> tuple[list[Batch], Batch | None]:
    """Return the full batches of a group, and the remaining images if there are any."""
    indices = group.indices
    full = len(indices) - len(indices) % batch_size
    cut = [
        Batch(indices[start : start + batch_size], group.height, group.width) for start in range(0, full, batch_size)
    ]
    return cut, Batch(indices[full:], group.height, group.width) if full < len(indices) else None


def _join(leftovers: Sequence[Batch], shapes: Sequence[tuple[int, int]], batch_size: int) -> list[Batch]:
    """Join neighbours while they fit into one batch and the padding stays small."""
    joined: list[Batch] = []
    for batch in leftovers:
        both = _joined(joined[-1], batch, shapes) if joined else None
        if both is not None and len(both.indices) <= batch_size:
            joined[-1] = both
        else:
            joined.append(batch)
    return joined


def _joined(one: Batch, other: Batch, shapes: Sequence[tuple[int, int]]) -> Batch | None:
    """Return two batches joined into one; None if that pads too much."""
    both = Batch(one.indices + other.indices, max(one.height, other.height), max(one.width, other.width))
    own = sum(shapes[index][0] * shapes[index][1] for index in both.indices)
    return both if both.pixels <= LEFTOVER_PADDING * own else None
