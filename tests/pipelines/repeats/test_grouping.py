"""Places of near-equal boxes: the same as by comparing every pair, and no chance places in large folders."""

from __future__ import annotations

import numpy as np
import pytest

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


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.85, 0.9, 1.0])
def test_neighbours_are_those_of_every_pair(iou: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_PIECE", 50)
    cells = scattered(300, seed=int(100 * iou))
    expected = np.argwhere(box_iou(cells.boxes, cells.boxes) >= iou)

    found = np.stack(grouping._neighbours(cells.boxes, cells.counts, iou, 1), axis=1)

    assert found.tolist() == expected.tolist()
    assert len(expected) > len(cells.boxes) // 2


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
