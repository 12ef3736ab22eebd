"""Group near-equal boxes of one folder and class into places, independent of the order of the rows.

Each cell of near-equal boxes is represented by its mean. The cell whose neighbourhood (IoU) has most boxes is the first
place, the mean of that neighbourhood; its boxes are removed, and so on. A place is the neighbourhood of one box, never
a chain of neighbours, so that a moving box does not form a place. Sides are integers, so that sums do not depend on the
order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.marks.matching import Corners, pieces

Integers = npt.NDArray[np.int64]

_PIECE = 20_000  # cells whose neighbours are searched at a time
_MOST_PAIRS = 2_000_000  # pairs of cells and possible neighbours at a time: about 130 MB
_COMPARED = 30_000  # pairs compared at a time, which fit into a core's cache
_MANY_PAIRS = 2_000_000  # from which finer bins are faster


@dataclass(frozen=True, slots=True)
class Cells:
    """N cells of near-equal boxes of one folder and class.

    Attributes:
        boxes: `(N, 4)`: their mean xmin, ymin, xmax, ymax, in whole units.
        counts: `(N,)`: number of boxes of each.
    """

    boxes: Integers
    counts: Integers


def places_of(cells: Cells, *, iou: float, least: int) -> Integers:
    """Return the boxes of the places with at least `least` boxes, `(K, 4)`, the largest place first.

    Memory: about 130 MB, and four bytes for each pair of a cell with enough boxes in its neighbourhood and one of its
    neighbours. Time: comparing each cell with nearby ones whose neighbourhood may have enough boxes. The output does
    not depend on the order of the input.

    Args:
        cells: of one folder and class.
        iou: least overlap of a place's box with the boxes of its neighbourhood.
        least: number of boxes.
    """
    order = np.lexsort(cells.boxes.T[::-1])
    boxes, counts = cells.boxes[order], cells.counts[order]
    owners, starts, neighbours = _neighbours(boxes, counts, iou, least)
    of_owners = dict(zip(owners.tolist(), range(len(owners)), strict=True))
    totals = np.add.reduceat(counts[neighbours], starts[:-1]) if len(owners) else starts[:0]
    is_free = np.ones(len(boxes), np.bool_)
    heap = list(zip((-totals).tolist(), owners.tolist(), strict=True))
    heapq.heapify(heap)
    chosen = []
    while heap:
        total, cell = heapq.heappop(heap)
        place = of_owners[cell]
        near = neighbours[starts[place] : starts[place + 1]]
        near = near[is_free[near]]
        now = int(counts[near].sum())
        if now < least:
            continue
        if now < -total:  # some of its boxes were removed meanwhile; totals only decrease
            heapq.heappush(heap, (-now, cell))
            continue
        chosen.append((boxes[near] * counts[near, None]).sum(axis=0) // now)  # the middle, where later boxes lie
        is_free[near] = False
    return np.array(chosen, np.int64).reshape(-1, 4)


def _neighbours(
    boxes: Integers, counts: Integers, iou: float, least: int
) -> tuple[Integers, Integers, npt.NDArray[np.int32]]:
    """Return cells whose neighbourhood has `least` boxes, and the cells that overlap the box of each one enough.

    Returns:
        The cells, rising; where the neighbours of each one begin, and their end; the neighbours, among them the cell.
    """
    bins = _Bins(boxes, iou, 1)
    asked, pairs = _with_enough(bins, np.arange(len(boxes)), counts, least)
    if pairs.sum() > _MANY_PAIRS:
        bins = _Bins(boxes, iou, 2)
        asked, pairs = _with_enough(bins, asked, counts, least)
    owners, lengths, neighbours = [asked[:0]], [asked[:0]], [np.empty(0, np.int32)]
    for piece in pieces(pairs, _MOST_PAIRS):
        part = asked[piece]
        one, other = bins.near(part, iou)
        has_enough = np.bincount(one, counts[other], len(part)) >= least
        is_kept = has_enough[one]
        pairs_kept = np.sort(one[is_kept] * len(boxes) + other[is_kept])
        owners.append(part[has_enough])
        lengths.append(np.bincount(one, minlength=len(part))[has_enough])
        neighbours.append((pairs_kept % len(boxes)).astype(np.int32))
    starts = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
    return np.concatenate(owners), starts, np.concatenate(neighbours)


def _with_enough(bins: _Bins, cells: Integers, counts: Integers, least: int) -> tuple[Integers, Integers]:
    """Return the cells whose neighbourhood may have `least` boxes, rising, and how many neighbours each may have."""
    weights = np.concatenate(([0], np.cumsum(counts[bins.order])))
    is_asked = np.zeros(len(counts), np.bool_)
    is_asked[cells] = True
    ordered = bins.order[is_asked[bins.order]]
    most, pairs = np.zeros((2, len(counts)), np.int64)
    for start in range(0, len(ordered), _PIECE):
        part = ordered[start : start + _PIECE]  # neighbouring cells, which is faster
        for first, stop in bins.ranges(part):
            most[part] += weights[stop] - weights[first]
            pairs[part] += stop - first
    asked = np.flatnonzero(is_asked & (most >= least))
    return asked, pairs[asked]


class _Bins:
    """Boxes sorted by bins of width, height and middle across, then by middle down, to find those that overlap enough.

    Of two boxes let `a` be (sum of widths) / (shared width) - 2, and `b` the same of heights. Then 1 / IoU - 1 is at
    least a + b. So with an IoU of t or more, a + b is at most 1 / t - 1; widths differ by a factor of 1 + a at most,
    and middles by a / 2 of either width; so do heights. What bins tell of `a` narrows the range of middles.
    """

    def __init__(self, boxes: Integers, iou: float, parts: int) -> None:
        self._parts = parts  # bins that the widths of neighbours may differ by
        self._excess = 1 / iou - 1 + 1e-9  # a + b at most; a little more, for what is rounded
        factor = max(1 / iou, 1.05) * 1.0001  # wider than necessary, for rounding and for 63 bits
        self._factor = factor ** (1 / self._parts)
        self._step = max((factor - 1) / 2, 1e-3) / self._parts  # of the width
        self._sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1).astype(np.float64)
        self._across = (boxes[:, 0] + boxes[:, 2]) / 2
        self._across -= self._across.min()
        self._down = boxes[:, 1] + boxes[:, 3]  # twice the middle, so that it is a whole number
        self._down -= self._down.min()
        self._bins = 1 + np.floor(np.log(self._sizes) / np.log(self._factor)).astype(np.int64)
        self._tallest = 2 * self._parts + 1 + self._bins[:, 1].max()
        self._widest = 3 * self._parts + 3 + int(self._across.max() / self._step)  # steps, of the smallest box
        self._lowest = 1 + self._down.max()
        keys = self._keys(self._bins, self._steps(self._bins[:, 0], self._across)) + self._down
        self.order = np.argsort(keys, kind="stable")
        self._sorted = keys[self.order]
        self._corners = Corners.of(boxes[self.order])  # in this order, in which compared boxes are adjacent
        self._places = np.empty_like(self.order)
        self._places[self.order] = np.arange(len(boxes))

    def ranges(self, cells: Integers) -> Iterator[tuple[Integers, Integers]]:
        """Yield ranges in `order`, first and end for each of some cells, that together have all their neighbours."""
        near = range(-self._parts, self._parts + 1)
        width, height = self._sizes[cells].T
        across, down = self._across[cells], self._down[cells]
        for wider in near:
            wide = self._bins[cells, 0] + wider
            steps = self._steps(wide, across)
            a_of_width = self._least_excess(width, wide)
            edge = self._step * self._factor ** wide.astype(np.float64)
            for aside in near:
                low = (steps + aside - self._parts) * edge
                apart = np.maximum(0, np.maximum(low - across, across - low - edge))
                left = self._excess - np.maximum(a_of_width, 2 * apart / width)
                for taller in near:
                    tall = self._bins[cells, 1] + taller
                    is_possible = left >= self._least_excess(height, tall)
                    reach = 1 + np.floor(np.where(is_possible, left, 0) * height).astype(np.int64)
                    keys = self._keys(np.stack([wide, tall], axis=1), steps + aside)
                    first = np.searchsorted(self._sorted, keys + np.maximum(down - reach, 0), "left")
                    stop = np.searchsorted(self._sorted, keys + np.minimum(down + reach, self._lowest - 1), "right")
                    yield first, np.where(is_possible, stop, first)

    def near(self, cells: Integers, iou: float) -> tuple[Integers, Integers]:
        """Return pairs of a place in `cells` and a cell whose box overlaps that of the former enough."""
        ones, firsts, lengths = [], [], []
        for first, stop in self.ranges(cells):
            one = np.flatnonzero(stop > first)
            ones.append(one)
            firsts.append(first[one])
            lengths.append((stop - first)[one])
        one, first, length = np.concatenate(ones), np.concatenate(firsts), np.concatenate(lengths)
        found = []
        for piece in pieces(length, _COMPARED):
            starts = np.cumsum(length[piece]) - length[piece]
            owner = np.repeat(one[piece], length[piece])
            place = np.arange(len(owner)) - np.repeat(starts - first[piece], length[piece])
            is_near = self._corners.iou(self._places[cells[owner]], place) >= iou
            found.append((owner[is_near], self.order[place[is_near]]))
        owners, others = zip(*found, strict=True) if found else ((one,), (one,))
        return np.concatenate(owners), np.concatenate(others)

    def _least_excess(self, sizes: npt.NDArray[np.float64], bins: Integers) -> npt.NDArray[np.float64]:
        """Return the least `a` of boxes of these sizes with boxes of these bins; of each bin the sizes are known."""
        upper = self._factor ** bins.astype(np.float64)
        ratio = np.maximum(upper / self._factor / sizes, sizes / upper)
        least: npt.NDArray[np.float64] = np.maximum(ratio * (1 - 1e-9) - 1, 0)
        return least

    def _steps(self, wide: Integers, across: npt.NDArray[np.float64]) -> Integers:
        """Return in which step of its bin each middle lies, from `_parts` on."""
        upper = self._factor ** wide.astype(np.float64)
        steps: Integers = self._parts + np.floor(across / (self._step * upper)).astype(np.int64)
        return steps

    def _keys(self, bins: Integers, steps: Integers) -> Integers:
        """Return the least number of both bins and a step; the middle down is added, so that it is a range."""
        sizes = (bins[:, 0] + self._parts) * self._tallest + bins[:, 1] + self._parts
        keys: Integers = (sizes * self._widest + steps) * self._lowest
        return keys
