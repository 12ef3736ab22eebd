"""Runs that a seed makes: up to three writers, with the lease and without, crashes, lost answers, zombies, sealing, a
lake that changes meanwhile.

SIMULATION_SEED=17 python -m pytest tests/simulation/test_seeds.py      one seed again
make simulate                                                           ten thousand
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from random import Random

import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling.lease import LEASE_SECONDS
from pipelines.labelling.run import find_unfinished
from pipelines.labelling.verify import verify_table
from pipelines.store import StoreError
from tests.pipelines.labelling.runs import begin_as_an_earlier_release
from tests.simulation.turns import Turns
from tests.simulation.world import Crash, Fault, World, Writer, check_whole, small_segments

FIRST, COUNT = 0, int(os.environ.get("SIMULATION_SEEDS", "400"))
AT_ONCE = 50  # seeds a test
STARTS = 5  # of each writer, then a last one that is undisturbed
FAULTS: tuple[Fault, ...] = ("crash before", "crash after", "answer lost", "refused")


@pytest.fixture(autouse=True)
def few_shards_a_segment() -> Iterator[None]:
    with small_segments():
        yield


def simulate(seed: int) -> World:
    """Run a world to its end and check it; whatever is raised is a finding."""
    random = Random(seed)  # noqa: S311 - it is to be repeated
    world = World({f"s3://lake/{number:02d}.jpg": "v0" for number in range(random.randint(1, 14))})
    if seed % 3 == 0:
        begin_as_an_earlier_release(world.objects)
    writers = [Writer(world, name) for name in "abc"[: random.choice((1, 1, 2, 2, 3))]]
    turns = Turns(random, {writer.name for writer in writers})
    trouble = random.choice((0.0, 0.01, 0.03, 0.1))
    is_leased = random.random() < 0.5
    if random.random() < 0.25:  # each writer wants another threshold
        for writer, threshold in zip(writers, (0.1, 0.5, 0.9), strict=False):
            writer.threshold, writer.relabels = threshold, random.random() < 0.5

    def before(name: str, call: str) -> Fault | None:
        turns.wait(name)
        world.clock.seconds += random.choice((0.1, 1.0, 10.0, 700.0 if random.random() < trouble else 1.0))
        if random.random() < trouble / 2:
            change(random, world)
        if len(writers) > 1 and random.random() < trouble:
            turns.freeze(name, random.randint(1, 200))
        return random.choice(FAULTS) if random.random() < trouble else None

    def dies(shard: int, isolated: bool) -> str | None:
        return None if isolated or random.random() > trouble else random.choice(("before", "after"))

    def work(writer: Writer) -> None:
        for _ in range(STARTS):
            turns.wait(writer.name)  # what a start draws and when it begins is of the seed, too
            with suppress(Crash, RayDetrError, StoreError):
                writer.start(new_run=random.random() < 0.15)

    world.before_call = before
    for writer in writers:
        writer.dies, writer.is_leased = dies, is_leased  # type: ignore[assignment]
    turns.run({writer.name: partial(work, writer) for writer in writers})
    world.before_call = lambda _name, _call: None
    assert verify_table(world.objects, clock=world.clock).findings == (), "what is unfinished is whole, too"
    world.clock.seconds += LEASE_SECONDS + 1  # whoever holds the lease is dead
    last = Writer(world, "z", is_leased=is_leased, relabels=True)
    unfinished = find_unfinished(world.objects)
    if unfinished is not None:
        last.threshold = float(str(unfinished.configuration["threshold"]))
    last.start()  # resumes what is unfinished, or completes its seal
    last.start()  # and labels what has changed since that was planned
    check_whole(world, threshold=last.threshold, may_leave_parts=True)
    assert all(("/" in key.removeprefix("data/")) == (seed % 3 == 0) for key in world.seen)
    return world


def change(random: Random, world: World) -> None:
    """Add, change or delete an image: its version may be one of before."""
    uri = f"s3://lake/{random.randint(0, 20):02d}.jpg"
    if random.random() < 0.2 and len(world.lake) > 1:
        world.lake.pop(uri, None)
    else:
        world.lake[uri] = f"v{random.randint(0, 2)}"


def seeds() -> list[range]:
    one = os.environ.get("SIMULATION_SEED")
    if one is not None:
        return [range(int(one), int(one) + 1)]
    return [range(start, min(start + AT_ONCE, FIRST + COUNT)) for start in range(FIRST, FIRST + COUNT, AT_ONCE)]


@pytest.mark.slow
@pytest.mark.parametrize("some", seeds(), ids=lambda some: f"{some.start}-{some.stop - 1}")
def test_whatever_happens_each_image_has_one_row_in_the_end(some: range) -> None:
    for seed in some:
        try:
            simulate(seed)
        except BaseException as error:
            raise AssertionError(
                f"seed {seed}: {error!r}\nagain: SIMULATION_SEED={seed} python -m pytest tests/simulation/test_seeds.py"
            ) from error


def test_a_seed_is_replayed_to_the_last_call() -> None:
    for seed in range(10):
        first, second = simulate(seed), simulate(seed)

        assert first.calls == second.calls
        assert list(first.objects.list()) == list(second.objects.list())
