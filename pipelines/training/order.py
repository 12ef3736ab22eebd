"""The order of images in an epoch: a function of seed and epoch only, not of the number of workers.

The row groups of all training shards are shuffled, concatenated and cut into equal ranges, one for each *virtual
reader*. A reader shuffles its images within a window of row groups, so that few of them must be in memory, and cuts
them into micro-batches. Step s of the epoch consists of micro-batch s of every reader. The number of readers is fixed
for a run and workers share the readers; therefore any number of workers takes the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int32]

# purposes of random streams, which separate the streams of one seed and epoch
_OF_ROW_GROUPS: Final = 1
_OF_WINDOW: Final = 2
_OF_STEP: Final = 3
_OF_WINDOW_OF_ALL: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class EpochOrder:
    """The micro-batches of an epoch, from `plan_epoch`. Memory: eight bytes per image.

    Args:
        places: `(N, 2)` int32, (row group, row in it) of every image, by reader, in the order of use.
        bounds: For each reader, int64: where its micro-batches begin in `places`, and where the last one ends.
    """

    places: Places
    bounds: tuple[npt.NDArray[np.int64], ...]

    @property
    def readers(self) -> int:
        """Number of virtual readers of the epoch."""
        return len(self.bounds)

    @property
    def steps(self) -> int:
        """Number of steps of the epoch: the largest number of micro-batches of a reader."""
        return max(len(bounds) - 1 for bounds in self.bounds)

    def micro_batch(self, reader: int, step: int) -> Places:
        """Return `(n, 2)`, the (row group, row) of a micro-batch's images; empty if the reader has ended."""
        bounds = self.bounds[reader]
        if step >= len(bounds) - 1:
            return self.places[:0]
        return self.places[bounds[step] : bounds[step + 1]]


@dataclass(frozen=True, slots=True)
class Similar:
    """Settings for grouping images of similar sizes.

    Args:
        sizes: Returns `(n, 2)`, the training height and width of the images at `(n, 2)` indices in this epoch.
        readers: The readers whose images are sorted: those of a worker. It does not use the order of the others.
    """

    sizes: Callable[[Places], npt.NDArray[np.int64]]
    readers: Collection[int]


def plan_epoch(
    rows: Sequence[int],
    *,
    seed: int,
    epoch: int,
    readers: int,
    batch_size: int,
    window_groups: int,
    shapes: Sequence[Sequence[tuple[int, int]]] | None = None,
    similar: Similar | None = None,
) -> EpochOrder:
    """Return the order of an epoch: every image once, in micro-batches of `batch_size`.

    The numbers of images of two readers differ by at most one, so readers with fewer images end one step earlier; only
    the last micro-batch of a reader is short. With `shapes`, images of a micro-batch have the same shape, so there is
    no padding: micro-batches are then cut inside windows, and the last of each shape in each window is short.

    Args:
        rows: Images in each row group, of all concatenated shards.
        seed: Seed of the run, 0 or more.
        epoch: 0 or more.
        readers: Virtual readers; some are empty if there are more readers than images.
        batch_size: Images in a micro-batch.
        window_groups: Row groups whose images a reader shuffles together, and keeps in memory.
        shapes: (height, width) of each image by row group; None mixes shapes.
        similar: Images of a micro-batch have similar sizes, and so do those of all readers in a step: this reduces
            padding and waiting between workers. Windows then have equal numbers of images, independent of the row
            groups. Not with `shapes`.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value, least in (
        ("seed", seed, 0), ("epoch", epoch, 0), ("readers", readers, 1), ("batch size", batch_size, 1),
        ("window", window_groups, 1), ("images in a row group", min(rows, default=0), 0),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}: {value} is not a whole number of {least} or more")
    counts = np.asarray(rows, dtype=np.int64)
    if similar is not None and shapes is not None:
        raise ValueError("shapes: micro-batches have either one shape or similar sizes")
    shape_of = None if shapes is None else _number_shapes(shapes, counts)
    similar_images = _whole_micro_batches(window_groups, counts, batch_size)  # of a window

    shuffled = random_stream(seed, epoch, _OF_ROW_GROUPS).permutation(len(counts))
    sizes = counts[shuffled]
    turn = np.repeat(np.arange(len(counts)), sizes)  # of each image: the position of its row group
    places = np.empty((len(turn), 2), dtype=np.int32)
    places[:, 0] = shuffled[turn]
    places[:, 1] = np.arange(len(places)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if shape_of is not None:  # numbered in the order of `rows`, needed in the shuffled order
        shape_of = shape_of[(np.cumsum(counts) - counts)[places[:, 0]] + places[:, 1]]

    bounds = []
    for reader in range(readers):
        start, end = (len(places) * edge // readers for edge in (reader, reader + 1))
        windows = (turn[start:end] - turn[start : start + 1]) // window_groups
        if similar is not None:
            windows = np.arange(end - start) // similar_images
        edges = [start, *(start + 1 + np.flatnonzero(np.diff(windows))), end] if end > start else [start]
        ends = [np.minimum(np.arange(start, end, batch_size) + batch_size, end)]
        if shape_of is not None:
            ends = []
        for window, (left, right) in enumerate(pairwise(edges)):
            stream = random_stream(seed, epoch, _OF_WINDOW, reader, window)
            order = stream.permutation(right - left)
            if similar is not None and reader in similar.readers:
                common = random_stream(seed, epoch, _OF_WINDOW_OF_ALL, window)
                order = _sort_by_size(order, similar.sizes(places[left:right]), batch_size, common)
            elif shape_of is not None:
                order, lengths = _cut_shapes(order, shape_of[left:right], batch_size, stream)
                ends.append(left + np.cumsum(lengths))
            places[left:right] = places[left:right][order]
        bounds.append(np.concatenate([[start], *ends]).astype(np.int64))
    return EpochOrder(places, tuple(bounds))


def served_readers(worker: int, workers: int, readers: int) -> range:
    """Return the virtual readers of a worker, which it processes sequentially in every step.

    Raises:
        ValueError: there are more workers than readers.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} is not one of {workers}")
    if workers > readers:
        raise ValueError(
            f"an effective batch of {readers} micro-batches cannot be divided among {workers} workers: "
            "lower --batch-size or raise --effective-batch, or use fewer workers."
        )
    return range(worker, readers, workers)


def step_stream(seed: int, epoch: int, step: int, reader: int) -> np.random.Generator:
    """Return the random stream of one micro-batch, for values that all its images share."""
    return random_stream(seed, epoch, _OF_STEP, step, reader)


def random_stream(seed: int, epoch: int, *purpose: int) -> np.random.Generator:
    """Return an independent random stream for these numbers (0 or more), the same on every machine."""
    # PCG64 by name: numpy may change its default generator
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, *purpose])))


def _whole_micro_batches(window_groups: int, counts: npt.NDArray[np.int64], batch_size: int) -> int:
    """Return the number of images in a window of about this many row groups, in whole micro-batches."""
    images = window_groups * (float(counts.mean()) if len(counts) else 1.0)
    return batch_size * max(1, round(images / batch_size))


def _sort_by_size(
    order: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], batch_size: int, common: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Sort a shuffled window by size, cut it into micro-batches and shuffle them, in the same way for all readers.

    Sorted by height over width, the micro-batches of a window are cut into strips, and the images of each strip are
    sorted by area. If the last micro-batch is short, it remains the last.

    Args:
        order: The shuffled indices.
        sizes: `(n, 2)`, height and width by index.
        batch_size: Images of a micro-batch.
        common: The random stream of this window, common to all readers.
    """
    whole = len(order) - len(order) % batch_size
    chosen, rest = order[:whole], order[whole:]
    chosen = chosen[np.argsort(sizes[chosen, 0] / sizes[chosen, 1], kind="stable")]
    batches = whole // batch_size
    strips = max(1, round(batches**0.5))
    for strip in range(strips):
        start, end = (batch_size * (batches * edge // strips) for edge in (strip, strip + 1))
        own = chosen[start:end]
        chosen[start:end] = own[np.argsort(sizes[own].prod(axis=1), kind="stable")]
    return np.concatenate([chosen.reshape(-1, batch_size)[common.permutation(batches)].ravel(), rest])


def _number_shapes(shapes: Sequence[Sequence[tuple[int, int]]], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return a number for each image in the order of the row groups; equal shapes have equal numbers."""
    if [len(group) for group in shapes] != counts.tolist():
        raise ValueError("shapes: give one (height, width) for each image of each row group")
    flat = np.fromiter(chain.from_iterable(chain.from_iterable(shapes)), dtype=np.int64, count=2 * int(counts.sum()))
    numbers: npt.NDArray[np.int64] = np.unique(flat[::2] << 32 | flat[1::2], return_inverse=True)[1]
    return numbers


def _cut_shapes(
    order: npt.NDArray[np.int64], shape_of: npt.NDArray[np.int64], batch_size: int, stream: np.random.Generator
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Cut a shuffled window into micro-batches of one shape each and shuffle them; also return their lengths.

    Args:
        order: The shuffled indices.
        shape_of: The shape's number by index.
        batch_size: Largest number of images in a micro-batch.
        stream: The random stream of the window.
    """
    order = order[np.argsort(shape_of[order], kind="stable")]
    starts = np.flatnonzero(np.diff(shape_of[order], prepend=-1))  # of the runs of one shape
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    batches = np.split(order, np.flatnonzero(rank % batch_size == 0)[1:])
    batches = [batches[index] for index in stream.permutation(len(batches))]
    return np.concatenate(batches), [len(batch) for batch in batches]
