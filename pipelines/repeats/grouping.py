"""Groups near-equal boxes of one folder and class: the places where most boxes lie, whatever the order of the rows.

Each cell of near-equal boxes stands for them by its mean. The cell whose neighbourhood (IoU) has most boxes makes the
first place, the mean of that neighbourhood; its boxes are taken away, and so on. A place is a neighbourhood of one box,
never a chain of neighbours, so that a box that wanders makes no place. Sides are whole numbers, so that sums do not
depend on an order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from pipelines.repeats.matching import paired_iou

Integers = npt.NDArray[np.int64]

_PIECE = 20_000  # cells whose neighbours are searched at once


@dataclass(frozen=True, slots=True)
class Cells:
    """N cells of near-equal boxes of one folder and class.

    Attributes:
        boxes: `(N, 4)`: their mean xmin, ymin, xmax, ymax, in whole units.
        counts: `(N,)`: how many boxes each has.
    """

    boxes: Integers
    counts: Integers


def places_of(cells: Cells, *, iou: float, least: int) -> Integers:
    """Return the boxes of the places that have at least so many boxes, `(K, 4)`, the largest place first.

    Memory: the pairs of neighbours of cells that may have so many. Equal input in any order gives equal output.

    Args:
        cells: of one folder and class.
        iou: least overlap of a place's box with the boxes of its neighbourhood.
        least: number of boxes.
    """
    order = np.lexsort(cells.boxes.T[::-1])
    boxes, counts = cells.boxes[order], cells.counts[order]
    owners, neighbours = _neighbours(boxes, counts, iou, least)
    starts = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(boxes)))))
    totals = np.bincount(owners, counts[neighbours], len(boxes)).astype(np.int64)
    is_free = np.ones(len(boxes), np.bool_)
    heap = [(-int(totals[cell]), cell) for cell in np.flatnonzero(totals >= least).tolist()]
    heapq.heapify(heap)
    chosen = []
    while heap:
        total, cell = heapq.heappop(heap)
        near = neighbours[starts[cell] : starts[cell + 1]]
        near = near[is_free[near]]
        now = int(counts[near].sum())
        if now < least:
            continue
        if now < -total:  # some of its boxes were taken meanwhile; totals only sink
            heapq.heappush(heap, (-now, cell))
            continue
        chosen.append((boxes[near] * counts[near, None]).sum(axis=0) // now)  # the middle, where later boxes lie
        is_free[near] = False
    return np.array(chosen, np.int64).reshape(-1, 4)


def _neighbours(boxes: Integers, counts: Integers, iou: float, least: int) -> tuple[Integers, Integers]:
    """Return pairs of a cell and a cell that overlaps its box enough, sorted; each cell is its own neighbour, too.

    Pairs of cells whose neighbourhood cannot have `least` boxes are left out.
    """
    bins = _Bins(boxes, iou)
    weights = np.concatenate(([0], np.cumsum(counts[bins.order])))
    most = np.zeros(len(boxes), np.int64)
    for first, stop in bins.ranges(np.arange(len(boxes))):
        most += weights[stop] - weights[first]
    asked = np.flatnonzero(most >= least)
    pairs = [np.empty((2, 0), np.int64)]
    for part in (asked[start : start + _PIECE] for start in range(0, len(asked), _PIECE)):
        for first, stop in bins.ranges(part):
            lengths = stop - first
            one = np.repeat(part, lengths)
            places = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths - first, lengths)
            other = bins.order[places]
            is_near = paired_iou(boxes[one], boxes[other]) >= iou
            pairs.append(np.stack([one[is_near], other[is_near]]))
    owners, neighbours = np.concatenate(pairs, axis=1)
    order = np.lexsort((neighbours, owners))
    return owners[order], neighbours[order]


class _Bins:
    """Boxes sorted by bins of width, height and middle, so that boxes that overlap enough lie in adjacent bins.

    With an IoU of t or more, widths differ by a factor of 1/t at most, and middles by (1 - t) / 2t of the width; so do
    heights. A middle is counted in steps that follow from the bin of the width.
    """

    def __init__(self, boxes: Integers, iou: float) -> None:
        self._factor = max(1 / iou, 1.05) * 1.0001  # wider than need be, for what is rounded and for 63 bits
        self._step = max((self._factor - 1) / 2, 1e-3)  # of the width
        self._middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        self._middles -= self._middles.min(axis=0)
        sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
        self._bins = 1 + np.floor(np.log(sizes) / np.log(self._factor)).astype(np.int64)
        self._spans = 3 + self._bins.max(axis=0)
        self._most = 3 + np.floor(self._middles.max(axis=0) / self._step).astype(np.int64)  # steps, of the smallest box
        keys = self._keys(self._bins, self._steps(self._bins, self._middles))
        self.order = np.argsort(keys, kind="stable")
        self._sorted = keys[self.order]

    def ranges(self, cells: Integers) -> Iterator[tuple[Integers, Integers]]:
        """Yield ranges in `order`, first and end for each of some cells, that together have all their neighbours."""
        for across, down in product((-1, 0, 1), repeat=2):
            bins = self._bins[cells] + np.array([across, down])
            steps = self._steps(bins, self._middles[cells])
            for aside in (-1, 0, 1):
                low = self._keys(bins, steps + np.array([aside, -1]))
                yield np.searchsorted(self._sorted, low, "left"), np.searchsorted(self._sorted, low + 2, "right")

    def _steps(self, bins: Integers, middles: npt.NDArray[np.float64]) -> Integers:
        """Return in which step of its bin each middle lies, from 1 on."""
        upper = self._factor ** bins.astype(np.float64)
        steps: Integers = 1 + np.floor(middles / (self._step * upper)).astype(np.int64)
        return steps

    def _keys(self, bins: Integers, steps: Integers) -> Integers:
        """Return one number for both bins and both steps; steps down are the last digits, so that they are a range."""
        sizes = bins[:, 0] * self._spans[1] + bins[:, 1]
        keys: Integers = (sizes * self._most[0] + steps[:, 0]) * self._most[1] + steps[:, 1]
        return keys
