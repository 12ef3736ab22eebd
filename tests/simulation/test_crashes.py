"""A run of twenty shards that fails at any call to the store, in any way, is started again: nothing is lost."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from pipelines.errors import RayDetrError
from pipelines.store import StoreError
from tests.pipelines.labelling.runs import begin_as_an_earlier_release
from tests.simulation.world import Crash, Fault, World, Writer, check_whole, small_segments

FAULTS: tuple[Fault, ...] = ("crash before", "crash after", "answer lost", "refused")
IMAGES = 20  # one a shard
MOST_STARTS = 4
LONG = "SIMULATION_SEEDS" in os.environ  # `make simulate`


def lake(images: int = IMAGES) -> dict[str, str]:
    return {f"s3://lake/{number:03d}.jpg": "e1" for number in range(images)}


def calls_of_a_run() -> int:
    world = World(lake())
    Writer(world).start()
    check_whole(world)
    return world.calls


with small_segments():
    CALLS = calls_of_a_run()


@pytest.fixture(autouse=True)
def few_shards_a_segment() -> Iterator[None]:
    with small_segments():
        yield


def run_until_finished(world: World, writer: Writer) -> None:
    for _ in range(MOST_STARTS):
        try:
            writer.start()
        except Crash:
            continue
        except (RayDetrError, StoreError):
            continue  # a sentence, and the same command again
        writer.start()  # as the next night: it finds nothing to do, and clears up
        return
    raise AssertionError(f"not finished after {MOST_STARTS} starts")


def test_a_run_has_enough_calls_for_this_to_mean_something() -> None:
    assert CALLS > 100


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_at_any_call_loses_nothing_and_doubles_nothing(fault: Fault) -> None:
    for place in range(1, CALLS + 1):
        world = World(lake())
        if place % 2:
            begin_as_an_earlier_release(world.objects)
        world.before_call = lambda _writer, _call, world=world, place=place: fault if world.calls == place else None  # type: ignore[misc]
        writer = Writer(world)
        try:
            run_until_finished(world, writer)
            check_whole(world)
        except AssertionError as error:
            raise AssertionError(f"{fault} at call {place}: {error}") from error
        if fault != "refused":
            assert len(writer.labelled) <= 20 + 1, f"{fault} at call {place}: shards were labelled again"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_always_fails_ends_in_a_sentence_and_is_finished_when_it_works_again(fault: Fault) -> None:
    for place in range(1, CALLS + 1, 1 if LONG else 3):
        world = World(lake())
        broken: list[str] = []

        def before(_writer: str, call: str, world: World = world, place: int = place) -> Fault | None:
            if world.calls == place:
                broken.append(call)  # noqa: B023 - called in this turn of the loop only
            return fault if call in broken else None  # noqa: B023 - called in this turn of the loop only

        world.before_call = before
        writer = Writer(world)
        for _ in range(2):
            try:
                writer.start()
            except (Crash, RayDetrError, StoreError):
                continue
        world.before_call = lambda _writer, _call: None
        try:
            run_until_finished(world, writer)
            check_whole(world)
        except AssertionError as error:
            raise AssertionError(f"{fault} for ever at call {place} ({broken}): {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seal_that_fails_anywhere_is_completed_by_a_start_that_does_not_ask_for_it(fault: Fault) -> None:
    for place in itertools.count(1):
        world = World(lake(8))
        world.before_call = lambda _writer, call: "crash before" if call.startswith("put data/") else None
        with pytest.raises(Crash):
            Writer(world, "a").start()  # labelled, not published
        calls = world.calls
        world.before_call = lambda _writer, _call, world=world, last=calls + place: (  # type: ignore[misc]
            fault if world.calls == last else None
        )
        writer = Writer(world, "b")
        try:
            writer.start(new_run=True)
            if world.calls < calls + place:
                return  # the whole start without a failure
        except (Crash, RayDetrError, StoreError):
            pass
        try:
            run_until_finished(world, writer)
            check_whole(world)
        except AssertionError as error:
            raise AssertionError(f"{fault} at call {place}: {error}") from error
