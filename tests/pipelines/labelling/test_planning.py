"""The plan while it is being made: waves of what is durable, and its failures where the run sees them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling import planning
from pipelines.labelling.manifest import ListingPosition, PlannedSegment
from pipelines.labelling.planning import Planner
from pipelines.lake.lake_object import Listed
from pipelines.lake.listing import Listing
from pipelines.table.schema import NO_COLUMNS
from tests.waiting import wait_until


def segment(index: int, shards: int = 64, images: int = 10) -> PlannedSegment:
    return PlannedSegment(index, (images,) * shards, ListingPosition())


def listing_of(*listed: Listed) -> Listing:
    return Listing((lambda after: iter(listed),), NO_COLUMNS)


def test_a_small_plan_is_one_wave() -> None:
    planner = Planner(iter([segment(0), segment(1), segment(2, shards=3)]), wave_shards=4_000)

    assert [[one.index for one in wave] for wave in planner.waves()] == [[0, 1, 2]]
    assert (planner.images_planned, planner.is_complete) == (1_310, True)


def test_nothing_to_label_gives_no_wave() -> None:
    planner = Planner(iter(()), wave_shards=4_000)

    assert list(planner.waves()) == []
    assert (planner.images_planned, planner.is_complete) == (0, True)


def test_a_wave_ends_when_it_has_enough_shards() -> None:
    planner = Planner((segment(index) for index in range(5)), wave_shards=128)

    assert [[one.index for one in wave] for wave in planner.waves()] == [[0, 1], [2, 3], [4]]


def test_the_first_wave_begins_while_the_rest_is_being_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PLANNING_AHEAD_SECONDS", 0.05)
    first_is_labelled = threading.Event()

    def plan() -> Iterator[PlannedSegment]:
        yield segment(0)
        assert first_is_labelled.wait(10)
        yield segment(1)
        yield segment(2)

    planner = Planner(plan(), wave_shards=4_000)
    waves = planner.waves()

    assert [one.index for one in next(waves)] == [0]
    assert not planner.is_complete
    first_is_labelled.set()
    wait_until(lambda: planner.is_complete)
    assert [one.index for one in next(waves)] == [1, 2]
    assert list(waves) == []


def test_what_stops_the_planning_is_raised_in_the_run_when_what_is_planned_is_labelled() -> None:
    def plan() -> Iterator[PlannedSegment]:
        yield segment(0)
        raise RayDetrError("the listing cannot go on")

    planner = Planner(plan(), wave_shards=64)
    waves = planner.waves()

    assert [one.index for one in next(waves)] == [0]
    with pytest.raises(RayDetrError, match="the listing cannot go on"):
        next(waves)
    assert not planner.is_complete


def test_a_run_that_stops_does_not_leave_a_planner_behind() -> None:
    listed: list[int] = []
    is_left = threading.Event()

    def plan() -> Iterator[PlannedSegment]:
        for index in range(1_000_000):
            if index == 2:
                assert is_left.wait(10)
            listed.append(index)
            yield segment(index)

    def run(planner: Planner) -> None:
        for _ in planner.waves():
            raise RayDetrError("the lake is gone")

    planner = Planner(plan(), wave_shards=64)
    with pytest.raises(RayDetrError):
        run(planner)
    is_left.set()

    wait_until(lambda: not planner._thread.is_alive())
    assert len(listed) <= 3
