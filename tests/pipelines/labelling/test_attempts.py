"""What is recorded when an attempt of a run ends by itself, and what the totals of all attempts are."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.caps import Caps, Meter
from pipelines.errors import CapReached, RayDetrError
from pipelines.labelling.attempts import Attempt, Spent, read_attempts, total
from pipelines.labelling.config import Selection
from pipelines.labelling.driver import RunResult, run_labelling
from pipelines.labelling.job import Environment, LabellingJob
from pipelines.labelling.outcome import Outcome, ShardReport, Work
from pipelines.labelling.run import Run, RunRequest, latest_run, read_end
from pipelines.labelling.run_summaries import summarise_runs
from pipelines.labelling.seal import seal_run
from pipelines.lake.listing import Listing
from pipelines.store import Store, StoreDown
from pipelines.table.schema import NO_COLUMNS
from tests.memory_store import MemoryStore
from tests.simulation.world import Crash, Inline, LazyPlan, World, Writer, check_whole, small_segments

NIGHT = 86_400.0


@pytest.fixture(autouse=True)
def few_shards_a_segment() -> Iterator[None]:
    with small_segments():
        yield


@dataclass
class Night:
    """A process of a lake of 20 images that does something after a segment of six; each segment takes an hour."""

    world: World
    meter: Meter
    then: Callable[[], object] = lambda: None
    check_lease: Callable[[], None] = lambda: None
    quick: Store | None = None

    def __post_init__(self) -> None:
        self.writer = Writer(self.world)
        self.writer.label = self.label  # type: ignore[method-assign]

    def run(self) -> RunResult:
        return run_labelling(
            LabellingJob(
                self.world.objects,
                RunRequest("detr@1", "detr@1", {"threshold": 0.5}, 1, {}),
                Listing((self.writer._list,), NO_COLUMNS),
                Selection(),
                self.writer,
            ),
            Environment(
                clock=self.world.clock,
                tail="0001",
                publisher=Inline(),
                plan_ahead=LazyPlan,
                threads=1,
                quick=self.quick,
                check_lease=self.check_lease,
                meter=self.meter,
            ),
        )

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        for outcome in Writer.label(self.writer, run, shards, isolated=isolated):
            assert isinstance(outcome, ShardReport)
            yield replace(outcome, requests=2, size_bytes=5, fetch_seconds=0.5)
        self.world.clock.sleep(3600)
        self.meter.look()
        self.then()


def lake() -> World:
    return World({f"s3://lake/{number:02d}.jpg": "v0" for number in range(20)})


def night(world: World, caps: Caps | None = None, then: Callable[[], object] = lambda: None) -> Night:
    world.clock.sleep(NIGHT)
    meter = Meter(caps, world.clock)
    meter.count_nodes(lambda: 2)
    return Night(world, meter, then)


def stop(error: BaseException) -> Callable[[], object]:
    def then() -> None:
        raise error

    return then


def test_a_run_over_several_capped_nights_says_what_each_was_and_what_all_cost() -> None:
    world = lake()
    by_cost = Caps(max_cost=1, price_per_hour=3)
    with pytest.raises(CapReached):
        night(world, by_cost).run()
    with pytest.raises(CapReached):
        night(world, Caps(max_minutes=1, price_per_hour=3)).run()

    (summary,) = summarise_runs(world.objects)
    first, second = summary.attempts
    began = datetime(2026, 11, 27, tzinfo=UTC)
    assert first == Attempt(
        began,
        began + timedelta(hours=1),
        "max_cost",
        "the cost limit of 1 (--max-cost) is reached, after 2 node hours at 3",
        images=6,
        work=Work(fetch_seconds=3.0, requests=12, size_bytes=30),
        nodes=2,
        node_hours=2.0,
        cost=6.0,
    )
    assert (second.reason, second.images, second.cost) == ("max_minutes", 6, 6.0)
    assert summary.spent == total([first, second])

    night(world, Caps(price_per_hour=3)).run()

    (summary,) = summarise_runs(world.objects)
    assert summary.state == "finished"
    assert summary.attempts == ()
    assert summary.spent == Spent(3, 20, 4 * 3600.0, Work(fetch_seconds=10.0, requests=40, size_bytes=100), 8.0, 24.0)
    check_whole(world)


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (RayDetrError("the power went."), "error", "the power went."),
        (StoreDown("no\nanswer"), "error", "no answer"),
        (StoreDown("/caf\udce9: no answer"), "error", "/caf\\udce9: no answer"),
        (KeyError("s3://key:secret@lake"), "error", "KeyError"),
        (KeyboardInterrupt(), "interrupted", ""),
        (SystemExit(143), "terminated", ""),
        (SystemExit(15), "terminated", ""),
    ],
)
def test_the_record_says_what_ended_the_attempt(error: BaseException, reason: str, message: str) -> None:
    world = lake()

    with pytest.raises(type(error)) as raised:
        night(world, then=stop(error)).run()

    assert raised.value is error
    (attempt,) = read_attempts(world.objects, unfinished(world))
    assert (attempt.reason, attempt.message, attempt.images, attempt.cost) == (reason, message, 6, None)


def test_a_process_that_dies_leaves_no_record() -> None:
    world = lake()
    with pytest.raises(Crash):
        night(world, then=stop(Crash())).run()

    assert read_attempts(world.objects, unfinished(world)) == ()


def test_who_has_lost_the_lease_records_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = lake()
    tonight = night(world, then=lambda: setattr(tonight, "check_lease", lost))
    lost = stop(RayDetrError("this process has lost its lease."))
    tonight.check_lease = lambda: None if world.clock.seconds < NIGHT + 3600 else lost()  # type: ignore[assignment]

    with pytest.raises(RayDetrError, match="lost its lease"):
        tonight.run()

    assert read_attempts(world.objects, unfinished(world)) == ()
    assert "has no record of how this attempt ended: this process has lost its lease" in caplog.text


def test_a_record_that_cannot_be_written_is_said_and_changes_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Quick(MemoryStore):
        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            assert create
            raise StoreDown(f"{key}: no answer")

    world = lake()
    tonight = night(world, then=stop(KeyboardInterrupt()))
    tonight.quick = Quick("memory://table")

    with pytest.raises(KeyboardInterrupt):
        tonight.run()

    assert "has no record of how this attempt ended: _runs/20261127-000000-0001/attempts/" in caplog.text
    night(world).run()
    check_whole(world)


def test_totals_that_cannot_be_read_do_not_keep_a_run_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    world = lake()
    with pytest.raises(KeyboardInterrupt):
        night(world, then=stop(KeyboardInterrupt())).run()
    run_id = unfinished(world)
    (key,) = [entry.key for entry in world.objects.list(f"_runs/{run_id}/attempts/")]
    for damaged in (b"{", world.objects.get(key).data.replace(b"interrupted", b"bored"), b'{"cost": 1}'):
        world.objects.put(key, damaged)
        assert list(summarise_runs(world.objects))[0].attempts == ()  # noqa: RUF015
    assert f"{key} is damaged or of a later release" in caplog.text

    night(world).run()

    (summary,) = summarise_runs(world.objects)
    assert summary.spent is not None
    assert (summary.spent.attempts, summary.spent.images) == (1, 14)


def test_records_of_other_releases_whose_work_has_other_fields_are_read() -> None:
    world = lake()
    with pytest.raises(KeyboardInterrupt):
        night(world, then=stop(KeyboardInterrupt())).run()
    (key,) = [entry.key for entry in world.objects.list(f"_runs/{unfinished(world)}/attempts/")]
    record = json.loads(world.objects.get(key).data)
    del record["work"]["busy_seconds"], record["work"]["actor_seconds"]
    record["work"]["of_a_later_release"] = 1
    world.objects.put(key, json.dumps(record).encode())

    (summary,) = summarise_runs(world.objects)

    assert [(one.images, one.work.busy_share) for one in summary.attempts] == [(6, None)]


def test_a_sealed_run_keeps_its_attempts() -> None:
    world = lake()
    with pytest.raises(KeyboardInterrupt):
        night(world, then=stop(KeyboardInterrupt())).run()
    run = latest_run(world.objects)
    assert run is not None

    seal_run(world.objects, run, now=world.clock.now())

    (summary,) = summarise_runs(world.objects)
    assert (summary.state, [one.reason for one in summary.attempts]) == ("sealed", ["interrupted"])
    night(world).run()
    check_whole(world)


def test_a_run_that_an_earlier_release_finished_has_no_totals() -> None:
    world = lake()
    finished = night(world).run()
    assert finished.run is not None
    key = f"_runs/{finished.run.run_id}/end.json"
    record = json.loads(world.objects.get(key).data)
    assert record["totals"]["all_attempts"]["attempts"] == 1
    totals = record["totals"].pop("all_attempts")
    world.objects.put(key, json.dumps(record).encode())

    assert [one.spent for one in summarise_runs(world.objects)] == [None]

    work = {"fetch_seconds": 3.0, "decode_seconds": 2.0, "network_seconds": 1.0, "requests": 8, "size_bytes": 9}
    record["totals"]["all_attempts"] = totals | {"work": work | {"of_a_later_release": 1}}
    world.objects.put(key, json.dumps(record).encode())
    (summary,) = summarise_runs(world.objects)
    assert summary.spent is not None
    assert summary.spent.work == Work(3.0, 2.0, 1.0, requests=8, size_bytes=9)
    assert summary.spent.work.busy_share is None  # of an earlier release, which did not measure it

    for damaged in ({"attempts": "one"}, "one"):
        record["totals"]["all_attempts"] = damaged
        world.objects.put(key, json.dumps(record).encode())
        with pytest.raises(RayDetrError, match=r"end\.json is damaged: its totals cannot be read"):
            list(summarise_runs(world.objects))


def test_the_cost_is_unknown_if_that_of_an_attempt_is() -> None:
    now = datetime(2026, 11, 27, tzinfo=UTC)
    paid, free = Attempt(now, now, "error", cost=2.0, node_hours=1.0), Attempt(now, now, "error")

    assert total([paid, free]).cost == 2.0  # it had no nodes
    assert total([paid, replace(free, node_hours=1.0)]).cost is None
    assert total([free]).cost is None


def unfinished(world: World) -> str:
    run = latest_run(world.objects)
    assert run is not None
    assert read_end(world.objects, run.run_id) is None
    return run.run_id
