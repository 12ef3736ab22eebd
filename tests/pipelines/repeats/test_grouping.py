"""Places of near-equal boxes: the same as by comparing every pair, and no chance places in large folders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.marks.matching import Corners
from pipelines.repeats import grouping
from pipelines.repeats.grouping import Cells, places_of
from pipelines.report.overlaps import box_iou


def scattered(count: int, seed: int) -> Cells:
    """Return cells of all sizes, many near others, some without an area."""
    random = np.random.default_rng(seed)
    low = random.uniform(0, 60_000, (count, 2))
    sizes = np.exp(random.uniform(0, 10, (count, 2)))
    boxes = np.concatenate([low, low + sizes], axis=1)
    near = boxes[random.integers(0, count, count)]
    near = near + random.normal(0, 0.06, (count, 4)) * (near[:, 2:] - near[:, :2])[:, [0, 1, 0, 1]]
    whole = np.unique(np.concatenate([boxes, near]).astype(np.int64), axis=0)
    whole[:, 2:] = np.maximum(whole[:, 2:], whole[:, :2])
    return Cells(whole, random.integers(1, 9, len(whole)))


@pytest.mark.parametrize("least", [1, 6])
@pytest.mark.parametrize("many", [0, 10**9], ids=["fine bins", "wide bins"])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.85, 0.9, 1.0])
def test_neighbours_are_those_of_every_pair(iou: float, many: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_PIECE", 50)
    monkeypatch.setattr(grouping, "_MOST_PAIRS", 900)
    monkeypatch.setattr(grouping, "_COMPARED", 70)
    monkeypatch.setattr(grouping, "_MANY_PAIRS", many)
    cells = scattered(300, seed=int(100 * iou))
    is_near = box_iou(cells.boxes, cells.boxes) >= iou
    has_enough = is_near @ cells.counts >= least

    owners, starts, neighbours = grouping._neighbours(cells.boxes, cells.counts, iou, least)

    assert owners.tolist() == np.flatnonzero(has_enough).tolist()
    assert np.split(neighbours, starts[1:-1])[0].dtype == np.int32
    found = np.stack([np.repeat(owners, np.diff(starts)), neighbours], axis=1)
    assert found.tolist() == np.argwhere(is_near & has_enough[:, None]).tolist()
    assert len(found) > (len(cells.boxes) // 2 if least == 1 else 10)


def crowded(count: int, seed: int = 0) -> Cells:
    """Return cells of one object in each picture, anywhere around the middle, where all boxes have many near ones."""
    random = np.random.default_rng(seed)
    sizes, middles = random.uniform(0.25, 0.45, (count, 2)), random.normal(0.5, 0.12, (count, 2))
    boxes = np.concatenate([middles - sizes / 2, middles + sizes / 2], axis=1)
    return Cells((boxes * 100_000).astype(np.int64), np.ones(count, np.int64))


def test_in_a_crowded_folder_few_pairs_are_compared_and_only_those_of_places_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def counting(self: Corners, one: Any, other: Any) -> Any:
        compared.append(len(one))
        return compare(self, one, other)

    compare = Corners.iou
    monkeypatch.setattr(Corners, "iou", counting)
    monkeypatch.setattr(grouping, "_COMPARED", 50_000)
    monkeypatch.setattr(grouping, "_MANY_PAIRS", 0)
    cells = crowded(12_000)  # whose neighbourhoods have up to 52 boxes; 12 are the mean

    owners, _, neighbours = grouping._neighbours(cells.boxes, cells.counts, 0.85, 50)
    assert (len(owners), len(neighbours)) == (2, 102)
    assert max(compared) <= 50_000
    assert sum(compared) < 300_000  # of 144 million; bins of width, height and middle alone leave 3.4 million
    compared.clear()
    assert places_of(cells, iou=0.85, least=1000).tolist() == []
    assert sum(compared) == 0


def places_by_every_pair(cells: Cells, iou: float, least: int) -> list[list[int]]:
    """The largest neighbourhood of free boxes is a place; of equal ones the first; until none has enough."""
    order = np.lexsort(cells.boxes.T[::-1])
    boxes, counts = cells.boxes[order], cells.counts[order].copy()
    is_near, places = box_iou(boxes, boxes) >= iou, []
    while True:
        totals = is_near @ counts
        first = int(totals.argmax())
        if totals[first] < least:
            return places
        weights = np.where(is_near[first], counts, 0)
        places.append(((boxes * weights[:, None]).sum(axis=0) // totals[first]).tolist())
        counts[is_near[first]] = 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("iou", "least"), [(0.5, 1), (0.7, 9), (0.85, 12)])
def test_places_are_those_of_comparing_every_pair(seed: int, iou: float, least: int) -> None:
    cells = scattered(150, seed) if seed % 2 else crowded(300, seed)

    assert places_of(cells, iou=iou, least=least).tolist() == places_by_every_pair(cells, iou, least)


def test_places_do_not_depend_on_the_order_of_cells() -> None:
    cells = scattered(400, seed=1)
    order = np.random.default_rng(2).permutation(len(cells.counts))
    shuffled = Cells(cells.boxes[order], cells.counts[order])

    places = places_of(cells, iou=0.7, least=12)
    assert len(places) > 3
    assert places.tolist() == places_of(shuffled, iou=0.7, least=12).tolist()


def test_the_largest_place_comes_first_and_lies_in_its_middle() -> None:
    boxes = np.array([[1000, 1000, 3000, 3000], [1020, 1000, 3020, 3000], [9000, 9000, 9900, 9900]])
    cells = Cells(boxes, np.array([30, 10, 20]))

    assert places_of(cells, iou=0.85, least=20).tolist() == [[1005, 1000, 3005, 3000], [9000, 9000, 9900, 9900]]
    assert places_of(cells, iou=0.85, least=41).tolist() == []
