"""What a table with many runs costs: how many requests each further run adds to a night, to `runs`, to verification."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pipelines.labelling.config import Selection
from pipelines.labelling.model_names import with_recorded_name
from pipelines.labelling.past_settings import PastSettings
from pipelines.labelling.run_summaries import summarise_runs
from pipelines.labelling.verify import verify_table
from pipelines.models import ModelInfo
from pipelines.store import Blob
from tests.memory_store import MemoryStore
from tests.simulation.world import World, Writer, WriterStore

FEW, MANY = 6, 16
MODEL = ModelInfo("detr@1", "detr@1", ())


def nights(count: int) -> World:
    """Return a table of so many runs, each over the image that has arrived since the one before."""
    world = World({})
    for night in range(count):
        world.lake[f"s3://lake/{night:04d}.jpg"] = "1"
        assert Writer(world, f"{night:x}").start().totals.rows == 1
    return world


def requests_a_run(do: Callable[[World, WriterStore], object]) -> float:
    """Return how many requests something does more for each run that the table has more."""
    found = []
    for count in (FEW, MANY):
        world = nights(count)
        before = world.calls
        do(world, WriterStore(world, "reader"))
        found.append(world.calls - before)
    return (found[1] - found[0]) / (MANY - FEW)


def nothing_to_do(world: World, store: WriterStore) -> None:
    assert Writer(world, "z").start().run is None


def something_to_do(world: World, store: WriterStore) -> None:
    world.lake["s3://lake/new.jpg"] = "1"
    assert Writer(world, "z").start().totals.rows == 1


def any_model(world: World, store: WriterStore) -> None:
    assert Writer(world, "z", model="other").start(selection=Selection(skip_labelled="any")).run is None


def known_settings(world: World, store: WriterStore) -> None:
    past = PastSettings(store, "detr@1", threads=1)
    assert past.guess_precision({"threshold": 0.5}) == "fp32"


def summaries(world: World, store: WriterStore) -> None:
    assert all(one.rows == 1 for one in summarise_runs(store, threads=1))


def verification(world: World, store: WriterStore) -> None:
    assert verify_table(store, clock=world.clock, threads=1).findings == ()


@pytest.mark.parametrize(
    ("do", "most"),
    [
        (nothing_to_do, 1),  # the file of the run's rows
        (something_to_do, 1),
        (known_settings, 0),
        (lambda _, store: with_recorded_name(store, MODEL), 0),
        (any_model, 2),  # and its record: it is of another model
        (summaries, 2),  # its record and its end
        (verification, 8),  # both, the listing and the two files of its plan, its rows, their plan, its rows' versions
    ],
)
def test_a_run_more_in_the_table_adds_no_more_than_the_requests_that_it_needs(
    do: Callable[[World, WriterStore], object], most: int
) -> None:
    assert requests_a_run(do) == most


class Meeting:
    """A store in memory that answers for two runs only once both are asked for."""

    def __init__(self, objects: MemoryStore, name: str) -> None:
        self.uri, self._objects, self._name = objects.uri, objects, name
        self.list, self.head, self.get_range = objects.list, objects.head, objects.get_range
        self._both = threading.Barrier(2, timeout=20)
        self.met = 0

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        if key.endswith(self._name) and self.met < 2:
            self._both.wait()
            self.met += 1
        return self._objects.get(key, most_bytes=most_bytes)


@pytest.mark.parametrize("name", ["end.json", ".parquet"])
def test_runs_are_verified_several_at_once(name: str) -> None:
    world = nights(2)
    store = Meeting(world.objects, name)

    assert verify_table(store, clock=world.clock).findings == ()
    assert store.met == 2


def test_runs_are_summarised_several_at_once() -> None:
    store = Meeting(nights(2).objects, "end.json")

    assert len(list(summarise_runs(store))) == 2
    assert store.met == 2
