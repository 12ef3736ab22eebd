"""Which images share a batch, and the host memory that they are written into."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")
_Begun = TypeVar("_Begun")

LEFTOVER_PADDING = 1.08  # buckets are joined up to this many times the pixels of their images
MOST_EXACT_SHAPES = 6  # with a grid; more than half of COCO's images are in full batches of its six most frequent
MOST_SHAPES = 12  # of the batches of one call, where the grid is to keep them few and little is padded


@dataclass(frozen=True, slots=True)
class Batch:
    """Indices of images that go through the network together, and the shape (pixels) that they are padded to."""

    indices: tuple[int, ...]
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Pixels of all images with their padding."""
        return len(self.indices) * self.height * self.width


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image ready for the network: `(3, h, w)` after the size rule, and its upright (height, width) before.

    The pixels are uint8, or float32 where the detector normalises as it prepares.
    """

    pixels: Tensor
    height: int
    width: int


@dataclass(slots=True)
class HostBatch:
    """Images of one batch in host memory, each at the top left of its place.

    Attributes:
        pixels: `(B, 3, H, W)` in channels-last memory, uint8, or float32 where a detector normalises as it prepares;
            anything to the right of an image and below it.
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
        """Return a batch of `count` places of `height` x `width` pixels that nothing is written into yet.

        `memory` gives an uninitialised tensor of a shape and dtype.
        """
        pixels = memory((count, height, width, 3), dtype).permute(0, 3, 1, 2)
        return cls(pixels, memory((count, 4), torch.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def is_padded(self) -> bool:
        """Whether an image is smaller than its place."""
        return bool((self.sizes[:, :2].numpy() != self.pixels.shape[2:]).any())

    def write(self, place: int, image: Prepared) -> None:
        """Copy an image into its place. Threads may write different places at once."""
        height, width = image.pixels.shape[1:]
        if height > self.pixels.shape[2] or width > self.pixels.shape[3]:
            raise ValueError(f"{height} x {width} pixels do not fit into {tuple(self.pixels.shape[2:])}")
        if image.pixels.shape == self.pixels.shape[1:] and len(self) == 1 and not self.pixels.is_pinned():
            self.pixels = image.pixels[None]  # on a CPU batches of one image are usual, and need no copy
        else:
            self.pixels[place, :, :height, :width] = image.pixels
        self.sizes[place].numpy()[:] = (height, width, image.height, image.width)

    def part(self, start: int, stop: int) -> "HostBatch":
        """Return the places from `start` to before `stop`, in the same memory."""
        return HostBatch(self.pixels[start:stop], self.sizes[start:stop])

    def only(self, places: Sequence[int]) -> "HostBatch":
        """Return these places, given in rising order, moved together in the same memory."""
        for new, old in enumerate(places):
            if new != old:
                self.pixels[new] = self.pixels[old]
                self.sizes[new] = self.sizes[old]
        return self.part(0, len(places))


def order_batches(shapes: Sequence[tuple[int, int]], *, batch_size: int, grid: int) -> list[Batch]:
    """Cut images into batches of like shape; every image is in exactly one.

    Full batches of one exact shape come first: they need no padding, and so neither masks nor guards. The other images
    are sorted into buckets of shapes rounded up to `grid`; with a grid, buckets of similar aspect are joined until
    there are few shapes, as long as little is padded. What does not fill a batch of its bucket is joined with leftovers
    of similar aspect in the same way. A batch that is not full stays smaller.

    Args:
        shapes: (height, width) in pixels of each image as the network will see it.
        batch_size: images in a batch at most.
        grid: pixels; 32 keeps the number of distinct shapes low (for compiled kernels), 1 pads least.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        by_shape[shape].append(index)
    batches: list[Batch] = []
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    # most frequent first; with a grid only some, since each is one more shape
    frequent = sorted(by_shape.items(), key=lambda item: (-len(item[1]), item[0]))
    for rank, ((height, width), indices) in enumerate(frequent):
        if grid > 1 and rank >= MOST_EXACT_SHAPES:
            buckets[_round_up(height, grid), _round_up(width, grid)] += indices
            continue
        full, rest = _cut(Batch(tuple(indices), height, width), batch_size)
        batches += full
        if rest:
            buckets[_round_up(height, grid), _round_up(width, grid)] += rest.indices
    # widest first, so that neighbours have similar aspects
    ordered = sorted(buckets.items(), key=lambda item: (item[0][0] / item[0][1], item[0]))
    groups = [Batch(tuple(indices), height, width) for (height, width), indices in ordered]
    if grid > 1:
        groups = _join_to_few(groups, shapes, MOST_SHAPES - len({(batch.height, batch.width) for batch in batches}))
    leftovers = []
    for group in groups:
        full, rest = _cut(group, batch_size)
        batches += full
        if rest:
            leftovers.append(rest)
    return batches + _join(leftovers, shapes, batch_size)


def equal_batches(shapes: Sequence[tuple[int, int]], *, batch_size: int) -> list[Batch]:
    """Cut images into batches of exactly one shape each; nothing is ever padded.

    Args:
        shapes: (height, width) in pixels of each image as the network will see it.
        batch_size: images in a batch at most.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        by_shape[shape].append(index)
    batches: list[Batch] = []
    for (height, width), indices in by_shape.items():
        full, rest = _cut(Batch(tuple(indices), height, width), batch_size)
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
    """Yield what `begin` returns for each item, in order; `count` later items are begun before it is yielded."""
    begun: deque[_Begun] = deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def _cut(group: Batch, batch_size: int) -> tuple[list[Batch], Batch | None]:
    """Return the full batches of a group, and the rest if there is one."""
    indices = group.indices
    full = len(indices) - len(indices) % batch_size
    cut = [
        Batch(indices[start : start + batch_size], group.height, group.width) for start in range(0, full, batch_size)
    ]
    return cut, Batch(indices[full:], group.height, group.width) if full < len(indices) else None


def _join_to_few(groups: Sequence[Batch], shapes: Sequence[tuple[int, int]], most: int) -> list[Batch]:
    """Join neighbours, those first that pad least, until there are `most` or all others would pad too much."""
    joined = list(groups)
    while len(joined) > max(most, 1):
        pairs = [(_joined(one, other, shapes), place) for place, (one, other) in enumerate(pairwise(joined))]
        padded = [
            (both.pixels - joined[place].pixels - joined[place + 1].pixels, place, both)
            for both, place in pairs
            if both is not None
        ]
        if not padded:
            break
        _, place, both = min(padded, key=lambda item: item[:2])
        joined[place : place + 2] = [both]
    return joined


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
    """Return two batches as one; None if that pads too much."""
    both = Batch(one.indices + other.indices, max(one.height, other.height), max(one.width, other.width))
    own = sum(shapes[index][0] * shapes[index][1] for index in both.indices)
    return both if both.pixels <= LEFTOVER_PADDING * own else None


def _round_up(pixels: int, grid: int) -> int:
    return -(-pixels // grid) * grid
