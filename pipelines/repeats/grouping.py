"""Groups near-equal boxes of one folder and class: the places where most boxes lie, whatever the order of the rows.

Each cell of near-equal boxes stands for them by its mean. The cell whose neighbourhood (IoU) has most boxes makes the
first place, the mean of that neighbourhood; its boxes are taken away, and so on. A place is a neighbourhood of one box,
never a chain of neighbours, so that a box that wanders makes no place. Sides are whole numbers, so that sums do not
depend on an order.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

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

    Memory: the pairs of neighbours. Equal input in any order gives equal output.

    Args:
        cells: of one folder and class.
        iou: least overlap of a place's box with the boxes of its neighbourhood.
        least: number of boxes.
    """
    order = np.lexsort(cells.boxes.T[::-1])
    boxes, counts = cells.boxes[order], cells.counts[order]
    starts, neighbours = _neighbours(boxes, iou)
    totals = np.add.reduceat(counts[neighbours], starts[:-1]) if len(boxes) else counts
    is_free = np.ones(len(boxes), np.bool_)
    heap = [(-int(totals[cell]), cell) for cell in np.flatnonzero(totals >= least).tolist()]
    heapq.heapify(heap)
    chosen = []
    while heap:
        total, cell = heapq.heappop(heap)
        near = neighbours[starts[cell] : starts[cell + 1]]
        now = int(counts[near[is_free[near]]].sum())
        if now < least:
            continue
        if now < -total:  # some of its boxes were taken meanwhile; totals only sink
            heapq.heappush(heap, (-now, cell))
            continue
        near = near[is_free[near]]
        chosen.append((boxes[near] * counts[near, None]).sum(axis=0) // now)  # the middle, where later boxes lie
        is_free[near] = False
    return np.array(chosen, np.int64).reshape(-1, 4)


def _neighbours(boxes: Integers, iou: float) -> tuple[Integers, Integers]:
    """Return for each cell the cells that overlap its box enough, itself included: starts `(N + 1,)` and cells."""
    # boxes that overlap so much differ on each side by no more than this share of their longer side
    radii = np.ceil((1 - iou) / iou * np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])) + 1
    tree = cKDTree(boxes)
    found, counts = [], [np.zeros(1, np.int64)]
    for first in range(0, len(boxes), _PIECE):
        part = slice(first, first + _PIECE)
        lists = tree.query_ball_point(boxes[part], radii[part], p=np.inf, return_sorted=True)
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        near = np.concatenate([np.asarray(one, np.int64) for one in lists])
        owners = np.repeat(np.arange(len(lists)), lengths)
        is_near = paired_iou(boxes[first + owners], boxes[near]) >= iou
        is_near |= near == first + owners  # a box without an area, too
        found.append(near[is_near])
        counts.append(np.bincount(owners[is_near], minlength=len(lists)))
    return np.cumsum(np.concatenate(counts)), np.concatenate(found) if found else np.empty(0, np.int64)
