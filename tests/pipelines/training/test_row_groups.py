"""Row groups by number: dealt to workers without loss, and read through a store that fails now and then."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError
from pipelines.shards.reader import read_index
from pipelines.store import Denied, Store, StoreDown, StoreError, open_store
from pipelines.training.row_groups import RowGroups, evaluation_images

IDS = list(range(100, 121))


class Failing:
    """A store whose reads fail a number of times."""

    def __init__(self, store: Store, error: StoreError, times: int) -> None:
        self._store, self._error, self.times = store, error, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if self.times:
            self.times -= 1
            raise self._error
        return self._store.get_range(key, start, length)


class Stepped(SystemClock):
    """A clock that runs only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += max(seconds, 0.01)


def groups_of(folder: str) -> RowGroups:
    store = open_store(folder)
    return RowGroups(store, read_index(store))


def failing(folder: str, error: StoreError, times: int) -> RowGroups:
    store = open_store(folder)
    return RowGroups(Failing(store, error, times), read_index(store), outage_seconds=30.0)


def test_row_groups_are_numbered_through_all_shards(drawn_shards: str) -> None:
    groups = groups_of(drawn_shards)

    assert groups.rows == (4, 3, 5, 4, 1, 4)
    assert [image.image_id for number in range(6) for image in groups.read(number)] == IDS
    assert [groups.name(number).rpartition("/")[2] for number in (1, 2, 5)] == [
        "shard-00000.parquet",
        "shard-00001.parquet",
        "shard-00002.parquet",
    ]


def test_sizes_are_those_of_the_images(drawn_shards: str) -> None:
    groups = groups_of(drawn_shards)

    assert groups.sizes() == [[(image.height, image.width) for image in groups.read(number)] for number in range(6)]


def test_ids_are_those_of_the_images(drawn_shards: str) -> None:
    groups = groups_of(drawn_shards)

    assert groups.image_ids() == [
        [image.image_id for image in groups.read(number)] for number in range(len(groups.rows))
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 6, 8])
def test_all_workers_together_evaluate_each_image_once(drawn_shards: str, workers: int) -> None:
    groups = groups_of(drawn_shards)

    shares = [[image.image_id for image in evaluation_images(groups, worker, workers)] for worker in range(workers)]

    assert sorted(chain.from_iterable(shares)) == IDS


def test_a_worker_beyond_the_last_is_refused(drawn_shards: str) -> None:
    with pytest.raises(ValueError, match="worker 3 is not one of 3"):
        next(evaluation_images(groups_of(drawn_shards), 3, 3))


def test_a_store_that_comes_back_costs_a_wait(drawn_shards: str) -> None:
    clock = Stepped()

    images = failing(drawn_shards, StoreDown("no answer"), times=3).read(0, clock=clock)

    assert [image.image_id for image in images] == IDS[:4]
    assert clock.seconds > 0


def test_a_store_that_stays_away_stops_the_run_in_a_sentence(drawn_shards: str) -> None:
    clock = Stepped()

    with pytest.raises(RayDetrError, match=r"no answer\. Run the same command again"):
        failing(drawn_shards, StoreDown("no answer."), times=10**6).read(0, clock=clock)

    assert clock.seconds >= 30


def test_what_no_waiting_mends_stops_the_run_at_once(drawn_shards: str) -> None:
    groups = failing(drawn_shards, Denied("refused"), times=2)
    clock = Stepped()

    with pytest.raises(RayDetrError, match="refused"):
        groups.read(0, clock=clock)
    with pytest.raises(RayDetrError, match="refused"):
        groups.sizes()

    assert clock.seconds == 0
