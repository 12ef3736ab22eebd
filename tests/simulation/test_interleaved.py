"""Writers that stop at any call while others go on, run to their end or seal the run, and are released later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from random import Random

import pytest

from pipelines.errors import RayDetrError
from pipelines.store import StoreError
from tests.simulation.turns import Turns
from tests.simulation.world import Fault, World, Writer, check_whole, small_segments

Leg = tuple[str, int]
"""A writer, and for how many calls it goes on."""

TO_ITS_END = 10_000
IMAGES = 8  # two segments
SEED = 11  # of what is sampled


@pytest.fixture(autouse=True)
def few_shards_a_segment() -> Iterator[None]:
    with small_segments():
        yield


class Script:
    """Chooses whose turn it is by legs that follow each other; the leg of one that is done is passed over."""

    def __init__(self, legs: Sequence[Leg]) -> None:
        self._legs = list(legs)

    def choice(self, ready: Sequence[str]) -> str:
        while self._legs and (self._legs[0][0] not in ready or self._legs[0][1] == 0):
            del self._legs[0]
        if not self._legs:
            return ready[0]
        name, calls = self._legs[0]
        self._legs[0] = (name, calls - 1)
        return name


def run_legs(legs: Sequence[Leg], sealing: frozenset[str], changes: bool) -> World:
    """Let each writer run the command once, in the order of the legs, then run it undisturbed; return what is then."""
    world = World({f"s3://lake/{number:02d}.jpg": "v0" for number in range(IMAGES)})
    writers = [Writer(world, name) for name in sorted({name for name, _ in legs})]
    turns = Turns(Script(legs), {writer.name for writer in writers})  # type: ignore[arg-type]

    def before(name: str, call: str) -> Fault | None:
        turns.wait(name)
        if changes and name == "b" and call.endswith("00000.plan"):
            world.lake["s3://lake/03.jpg"] = "v1"  # what a has planned and b reads
        return None

    def work(writer: Writer) -> None:
        turns.wait(writer.name)
        with suppress(RayDetrError, StoreError):  # sealed by another, with a sentence
            writer.start(new_run=writer.name in sealing)

    world.before_call = before
    turns.run({writer.name: partial(work, writer) for writer in writers})
    world.before_call = lambda _name, _call: None
    last = Writer(world, "z")
    last.start()
    last.start()
    check_whole(world, may_leave_parts=True)
    return world


def calls_of_a_start() -> int:
    world = World({f"s3://lake/{number:02d}.jpg": "v0" for number in range(IMAGES)})
    Writer(world).start()
    return world.calls


with small_segments():
    CALLS = calls_of_a_start()


def check(legs: Sequence[Leg], sealing: frozenset[str] = frozenset(), *, changes: bool = False) -> None:
    try:
        run_legs(legs, sealing, changes)
    except BaseException as error:
        raise AssertionError(f"run_legs({legs!r}, {sealing!r}, {changes!r}): {error!r}") from error


@pytest.mark.slow
@pytest.mark.parametrize("sealing", [frozenset(), frozenset("b")], ids=["the same run", "sealed"])
def test_a_writer_that_stands_still_at_any_call_while_another_runs_to_its_end(sealing: frozenset[str]) -> None:
    for stop in range(CALLS + 1):
        check([("a", stop), ("b", TO_ITS_END), ("a", TO_ITS_END)], sealing, changes=stop % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("sealing", [frozenset(), frozenset("b"), frozenset("ab")], ids=["the same run", "b", "both"])
def test_two_writers_that_take_turns_call_by_call_or_in_longer_legs(sealing: frozenset[str]) -> None:
    for length in range(1, CALLS // 2):
        check([("a", length), ("b", length)] * (2 * CALLS // length), sealing)


@pytest.mark.slow
@pytest.mark.parametrize("sealing", [frozenset(), frozenset("b")], ids=["the same run", "sealed"])
def test_a_writer_that_is_released_at_any_call_of_the_other(sealing: frozenset[str]) -> None:
    random = Random(SEED)  # noqa: S311 - to be repeated
    for stop in range(CALLS + 1):
        release = random.randint(0, CALLS)
        check([("a", stop), ("b", release), ("a", TO_ITS_END), ("b", TO_ITS_END)], sealing)


@pytest.mark.slow
@pytest.mark.parametrize("sealing", [frozenset("b"), frozenset("bc")], ids=["one seals", "two seal"])
def test_three_writers_of_which_two_stand_still_and_are_released_in_any_order(sealing: frozenset[str]) -> None:
    random = Random(SEED)  # noqa: S311 - to be repeated
    for stop in range(CALLS + 1):
        rest = [("a", TO_ITS_END), ("b", TO_ITS_END), ("c", TO_ITS_END)]
        random.shuffle(rest)
        check([("a", stop), ("b", random.randint(0, CALLS)), ("c", random.randint(0, CALLS)), *rest], sealing)
