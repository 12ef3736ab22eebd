"""Which images share a batch: shape buckets, so that little is padded and few shapes occur."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEFTOVER_PADDING = 1.08  # leftovers of several buckets share a batch up to this many times their own pixels


@dataclass(frozen=True, slots=True)
class Batch:
    """Indices of images that go through the network together, and the shape (pixels) that they are padded to."""

    indices: tuple[int, ...]
    height: int
    width: int


def order_batches(shapes: Sequence[tuple[int, int]], *, batch_size: int, grid: int) -> list[Batch]:
    """Cut images into batches of like shape; every image is in exactly one.

    Buckets are shapes rounded up to `grid`; what does not fill a batch of its bucket is joined with leftovers of
    similar aspect while the padding stays small. A batch that is not full stays smaller.

    Args:
        shapes: (height, width) in pixels of each image as the network will see it.
        batch_size: images in a batch at most.
        grid: pixels; 32 keeps the number of distinct shapes low (for compiled kernels), 1 pads least.
    """
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (height, width) in enumerate(shapes):
        buckets[_round_up(height, grid), _round_up(width, grid)].append(index)
    batches, leftovers = [], []
    # widest first, so that leftovers come out sorted by aspect
    for (height, width), indices in sorted(buckets.items(), key=lambda item: (item[0][0] / item[0][1], item[0])):
        full = len(indices) - len(indices) % batch_size
        batches += [
            Batch(tuple(indices[start : start + batch_size]), height, width) for start in range(0, full, batch_size)
        ]
        if indices[full:]:
            leftovers.append(Batch(tuple(indices[full:]), height, width))
    return batches + _join(leftovers, shapes, batch_size)


def pad(images: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Copy uint8 `(3, h, w)` images into one zeroed `(B, 3, height, width)`, to the top left.

    Returns:
        The batch in channels-last memory, and `(B, 2)` int64 of each image's own (height, width).
    """
    batch = torch.zeros((len(images), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch, torch.tensor([image.shape[1:] for image in images])


def _join(leftovers: Sequence[Batch], shapes: Sequence[tuple[int, int]], batch_size: int) -> list[Batch]:
    """Join neighbours while they fit into one batch and the padding stays small."""
    joined: list[Batch] = []
    for batch in leftovers:
        if joined and len(joined[-1].indices) + len(batch.indices) <= batch_size:
            both = Batch(
                joined[-1].indices + batch.indices,
                max(joined[-1].height, batch.height),
                max(joined[-1].width, batch.width),
            )
            own = sum(shapes[index][0] * shapes[index][1] for index in both.indices)
            if len(both.indices) * both.height * both.width <= LEFTOVER_PADDING * own:
                joined[-1] = both
                continue
        joined.append(batch)
    return joined


def _round_up(pixels: int, grid: int) -> int:
    return -(-pixels // grid) * grid
