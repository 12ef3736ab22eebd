"""One start of a run, without trouble: what it plans, shows, asks and leaves; trouble is simulated elsewhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.caps import Meter
from pipelines.errors import CapReached, RayDetrError, UsageError
from pipelines.labelling.config import Selection, SkipLabelled
from pipelines.labelling.driver import RunResult, run_labelling
from pipelines.labelling.job import Environment, LabellingJob, Workforce
from pipelines.labelling.manifest import Counts, PlannedSegment, read_manifest
from pipelines.labelling.outcome import Failed, Lost, Outcome, ShardReport, Work
from pipelines.labelling.publish import part_key
from pipelines.labelling.run import Run, RunRequest, find_unfinished, latest_run, read_end
from pipelines.labelling.segments import ShardsLost
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import StoreDown
from pipelines.table.schema import NO_COLUMNS, Totals
from pipelines.watchdog import Watchdog
from tests.memory_store import MemoryStore
from tests.simulation.world import Inline, LazyPlan, World, Writer, small_segments


@pytest.fixture(autouse=True)
def few_shards_a_segment() -> Iterator[None]:
    with small_segments():
        yield


class Stages(Watchdog):
    """Writes down which stages there were, and how often each moved."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: dict[str, int] = {}
        self.details: dict[str, Callable[[], str]] = {}

    @contextmanager
    def stage(self, name: str, *, detail: Callable[[], str] = str) -> Iterator[Callable[..., None]]:
        self.details[name] = detail
        self.moves.setdefault(name, 0)

        def moved(took_seconds: float = 0.0) -> None:
            self.moves[name] += 1

        yield moved


@dataclass
class Start:
    """A start whose every dealing with the outside is written down."""

    world: World
    selection: Selection = field(default_factory=Selection)
    plan: type[LazyPlan] = LazyPlan
    shown: list[Any] = field(default_factory=list)
    asked: int = 0
    watchdog: Stages = field(default_factory=Stages)
    shards: list[list[int]] = field(default_factory=list)
    isolated: list[bool] = field(default_factory=list)

    loses: int | Sequence[int] = ()
    loses_always: bool = False
    dies: bool = False
    refuses: str | None = None
    precision: str = "fp32"
    spread: int = 1
    configuration: dict[str, object] = field(default_factory=dict)
    relabel: bool = False
    meter: Meter = field(default_factory=Meter)
    modified_since: float | None = None
    on_shard: Callable[[str, ShardReport], None] = lambda _run_id, _report: None
    did: list[str] = field(default_factory=list)
    writer: Writer = field(init=False)

    def run(self, *, new_run: bool = False, model: str = "detr@1") -> RunResult:
        self.writer = Writer(self.world, model=model)
        self.world.clock.seconds += 1
        return run_labelling(
            LabellingJob(
                self.world.objects,
                RunRequest(model, model, self.configuration | self._recorded_time, None, {}),
                Listing((self.listed,), NO_COLUMNS, self.modified_since),
                self.selection,
                self,
                new_run=new_run,
                relabel=self.relabel,
            ),
            Environment(
                clock=self.world.clock,
                tail="0001",
                publisher=Inline(),
                plan_ahead=self.plan,
                threads=1,
                check_lease=self.ask,
                meter=self.meter,
                watchdog=self.watchdog,
                show=self.shown.append,
                on_shard=self.on_shard,
            ),
        )

    def listed(self, after: str | None) -> Iterator[LakeObject]:
        """List the lake's images; of 003.jpg is known that it was modified at second 3."""
        for item in self.writer._list(after):
            name = item.uri[-7:-4]
            yield replace(item, modified=float(name)) if name.isdecimal() else item

    @property
    def _recorded_time(self) -> dict[str, object]:
        time = self.modified_since
        return {} if time is None else {"modified_since": datetime.fromtimestamp(time, UTC).isoformat()}

    def ask(self) -> None:
        self.asked += 1

    def prepare(self) -> None:
        self.did.append("prepare")

    def try_model(self) -> None:
        self.did.append("try the model")
        if self.refuses == "model":
            raise RayDetrError("the model does not load there.")

    def workforce(self) -> Workforce:
        self.did.append("workforce")
        if self.refuses == "workforce":
            raise RayDetrError("99 actors do not fit.")
        return Workforce(shard_images=2, spread=self.spread, precision=self.precision)

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        self.did.append(f"label in {run.precision}")
        self.shards.append(list(shards))
        self.isolated.append(isolated)
        if self.dies:
            yield Failed("the power went.")
            return
        loses = (self.loses,) if isinstance(self.loses, int) else self.loses
        for shard in shards:
            if shard in loses and (self.loses_always or not isolated):
                yield Lost("the network failed", shard, f"s3://lake/{2 * shard:03d}.jpg")
        shards = [shard for shard in shards if shard not in loses or (isolated and not self.loses_always)]
        for outcome in self.writer.label(run, shards, isolated=isolated):
            assert isinstance(outcome, ShardReport)
            self.world.clock.seconds += 2
            yield replace(outcome, errors={"missing": 1}, changed=2)

    def why_no_shard(self) -> str:
        return "no GPU is free"


def lake(images: int) -> World:
    return World({f"s3://lake/{number:03d}.jpg": "v0" for number in range(images)})


def uris(world: World) -> list[str]:
    return [row["uri"] for row in world.read()]


def test_a_run_ends_with_what_it_planned_and_did() -> None:
    world = lake(13)

    finished = Start(world).run()

    assert (finished.resumed, finished.segments, finished.images_this_start) == (False, 2, 13)
    assert (finished.changed_this_start, finished.labelling_seconds) == (14, 14.0)  # two a shard
    assert finished.work == Work()  # of a runner that measures nothing
    assert (finished.totals.rows, finished.totals.detections, finished.totals.errors) == (13, 13, {})
    assert (finished.planned.images, finished.planned.shards) == (13, 7)
    assert finished.run == latest_run(world.objects)
    assert finished.run is not None
    end = read_end(world.objects, finished.run.run_id)
    assert end is not None
    seconds = ("fetch", "decode", "network", "busy", "actor")
    work = {f"{kind}_seconds": 0 for kind in seconds} | {"requests": 0, "size_bytes": 0}
    spent = {"node_hours": 0, "cost": None}
    assert (end.state, end.totals) == (
        "finished",
        {
            "rows": 13,
            "detections": 13,
            "errors": {},
            "last_start": work | spent,
            "all_attempts": {"attempts": 1, "images": 13, "seconds": 14.0, "work": work} | spent,
        },
    )
    assert uris(world) == sorted(world.lake)


def test_the_totals_of_a_run_include_its_earlier_attempts() -> None:
    world = lake(13)
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()

    finished = Start(world).run()

    assert finished.run is not None
    end = read_end(world.objects, finished.run.run_id)
    assert end is not None
    totals = end.totals["all_attempts"]
    assert isinstance(totals, dict)
    assert (totals["attempts"], totals["images"]) == (2, 13)


def test_progress_adds_up_and_says_what_is_going_on() -> None:
    world = lake(13)
    start = Start(world)
    start.run()

    assert start.shown[0].stage == "planning"
    assert {one.stage for one in start.shown[1:]} == {"label"}
    last = start.shown[-1]
    assert (last.images, last.images_this_start, last.errors, last.changed) == (13, 13, 7, 14)
    assert last.images_planned == 13
    assert [one.images for one in start.shown] == sorted(one.images for one in start.shown)
    assert start.shown[-1].began == start.shown[1].began == 1.0  # where the clock stood then


def test_a_resumed_run_counts_what_was_there_before() -> None:
    world = lake(13)
    with pytest.raises(RayDetrError, match=r"the power went\. Run the same command again to resume"):
        Start(world, dies=True).run()
    run = find_unfinished(world.objects)
    assert run is not None
    world.objects.put(part_key(run.run_id, 99), b"of no segment, which nobody counts")
    first = Start(world)
    first.run()
    second = Start(world)
    world.lake["s3://lake/new.jpg"] = "v0"

    finished = second.run()

    assert first.shown[0].stage == f"resuming run {run.run_id}"
    assert (finished.images_this_start, finished.planned.labelled) == (1, 13)
    assert second.shown[-1].images == 1


def test_a_run_that_is_resumed_on_another_night_keeps_its_own_time() -> None:
    world = lake(30)  # of which the first attempt plans a segment of 12
    with pytest.raises(RayDetrError):
        Start(world, modified_since=2, dies=True).run()
    run = find_unfinished(world.objects)
    assert run is not None
    assert [segment.images for segment in read_manifest(world.objects, run.run_id)] == [12]

    for other, difference in (
        (Start(world), "none"),
        (Start(world, modified_since=2, configuration={"a": 1}), "a none"),
    ):
        with pytest.raises(UsageError, match=difference):
            other.run()
    resumed = Start(world, modified_since=20)
    finished = resumed.run()

    stage = f"resuming run {run.run_id}, of images modified since 1970-01-01 00:00 UTC"
    assert resumed.shown[0].stage == stage
    assert uris(world) == [f"s3://lake/{number:03d}.jpg" for number in range(2, 30)]
    assert finished.planned.skipped == {"not modified since": 2}
    assert Start(world, modified_since=1).run().images_this_start == 1
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()  # of the whole lake
    with pytest.raises(UsageError, match=r"modified since none, now 1970-01-01T00:00:01\+00:00"):
        Start(world, modified_since=1).run()


def test_the_rest_of_a_plan_has_the_images_since_the_time_of_its_run() -> None:
    class OldestLast(Start):
        def listed(self, after: str | None) -> Iterator[LakeObject]:
            for item in super().listed(after):
                yield replace(item, modified=30 - (item.modified or 0))

    world = lake(30)
    with pytest.raises(RayDetrError):
        OldestLast(world, modified_since=5, dies=True).run()

    finished = OldestLast(world, modified_since=9).run()

    assert (finished.planned.images, finished.planned.skipped) == (26, {"not modified since": 4})


def test_the_rest_of_a_plan_has_the_selection_of_the_command() -> None:
    world, selection = lake(40), Selection(max_images=20)
    with pytest.raises(RayDetrError):
        Start(world, selection=selection, dies=True).run()

    assert Start(world, selection=selection).run().planned.images == 20


def test_the_rest_of_a_plan_has_the_images_without_rows_of_the_settings_of_its_run() -> None:
    world = lake(20)
    Start(world, configuration=LOW).run()
    with pytest.raises(RayDetrError):
        Start(world, configuration=HIGH, relabel=True, dies=True).run()

    finished = Start(world, configuration=HIGH, relabel=True).run()

    assert (finished.planned.images, finished.planned.labelled) == (20, 0)


def test_a_stopped_attempt_is_recorded_under_its_name() -> None:
    world = lake(4)
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()

    (key,) = (entry.key for entry in world.objects.list("_runs/") if "/attempts/" in entry.key)
    assert key.endswith("-0001.json")


def test_each_committed_shard_is_reported_with_its_run() -> None:
    reported: list[tuple[str, int]] = []
    start = Start(lake(13), on_shard=lambda run_id, report: reported.append((run_id, report.shard)))

    finished = start.run()

    assert finished.run is not None
    assert reported == [(finished.run.run_id, shard) for shard in range(7)]


def test_nothing_to_do_is_a_result_without_a_run() -> None:
    world = lake(4)
    Start(world).run()

    assert Start(world).run() == RunResult(None, False, Totals(), Counts(labelled=4), 0, 0, 0, 0.0, Work())


def test_losses_of_one_kind_stop_only_a_command_that_has_labelled_nothing() -> None:
    class TwoWaves(LazyPlan):
        def waves(self) -> Iterator[list[PlannedSegment]]:
            first, *rest = self._plan
            yield [first]  # six shards
            yield rest

    class Lossy(Start):
        first_lost = 0

        def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
            yield from super().label(run, [shard for shard in shards if shard < self.first_lost], isolated=isolated)
            yield from (Lost("NaN", shard) for shard in shards if shard >= self.first_lost)

    at_once, later = Lossy(lake(32), plan=TwoWaves), Lossy(lake(32), plan=TwoWaves)
    later.first_lost = 6

    with pytest.raises(ShardsLost, match=r"was lost 3 times, and so were \d+ others \(NaN\)"):
        later.run()
    with pytest.raises(RayDetrError, match=r"^NaN\. 8 shards were lost in this way, and none was labelled\. Run"):
        at_once.run()


def test_shards_that_die_stop_a_run_if_more_images_were_lost_than_are_labelled() -> None:
    class Dying(Start):
        first_lost = 0

        def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
            yield from super().label(run, [shard for shard in shards if shard < self.first_lost], isolated=isolated)

    with pytest.raises(RayDetrError, match=r"and so were 7 others .* None was labelled\. Run the"):
        Dying(lake(16)).run()  # eight shards
    world = lake(32)
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()
    run = find_unfinished(world.objects)
    assert run is not None
    before = Dying(world)
    before.first_lost = 8
    with pytest.raises(ShardsLost):
        before.run()
    with pytest.raises(ShardsLost, match="and so were 7 others"):  # as many as an earlier command has labelled
        Dying(world).run()


def test_rows_of_earlier_starts_are_shown_as_done() -> None:
    world = lake(4)
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()
    run = find_unfinished(world.objects)
    assert run is not None
    list(Writer(world).label(run, [0], isolated=False))

    start = Start(world)
    start.run()

    assert start.shards == [[1]]
    assert (start.shown[1].images, start.shown[1].images_this_start) == (2, 0)
    assert (start.shown[-1].images, start.shown[-1].images_this_start) == (4, 2)


def test_a_shard_whose_process_died_is_run_again_alone_and_isolated() -> None:
    start = Start(lake(13), loses=1)
    start.run()

    assert start.shards == [[0, 1, 2, 3, 4, 5], [1], [6]]
    assert start.isolated == [False, True, False]


def test_a_shard_that_cannot_be_labelled_keeps_no_later_wave_from_its_rows() -> None:
    start = Start(lake(31), loses=(1, 7), loses_always=True)

    with pytest.raises(RayDetrError) as stopped:
        start.run()

    assert str(stopped.value) == (
        "shard 1 of run 20261126-000001-0001 was lost 3 times, and so was 1 other (the network failed; image "
        "s3://lake/002.jpg). 4 images are not labelled. 20 labelled images of the same table files are not published "
        "yet. All other images are published; run the same command again to retry."
    )
    assert uris(start.world) == [f"s3://lake/{number:03d}.jpg" for number in range(24, 31)]
    again = Start(start.world)
    again.run()

    assert again.shards == [[1], [7]]
    assert len(uris(start.world)) == 31


def test_a_limit_ends_a_run_at_once_though_shards_were_lost() -> None:
    class Limited(Start):
        def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
            yield from super().label(run, shards, isolated=isolated)
            if 6 in shards:
                meter.reached.set()

    start, meter = Limited(lake(40), loses=1, loses_always=True), Meter()
    start.meter = meter

    with pytest.raises(CapReached, match=r" 22 of more than 36 planned images of run \S+ are labelled, 22 of them by"):
        start.run()

    assert [shards[0] for shards in start.shards] == [0, 1, 1, 6]


def test_a_lake_of_which_no_shard_can_be_labelled_is_not_tried_to_its_end() -> None:
    class Dying(Start):
        def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
            self.shards.append(list(shards))
            yield from ()  # each process dies

    start = Dying(lake(100))

    with pytest.raises(RayDetrError, match=r"was lost 3 times, and so were 11 others .* None was labelled\. Run the"):
        start.run()

    assert [len(shards) for shards in start.shards] == [6] * 6


def test_a_limit_behind_the_end_of_the_plan_names_its_images() -> None:
    class Planned(LazyPlan):
        def waves(self) -> Iterator[list[PlannedSegment]]:
            self.is_complete = True
            yield from super().waves()

    class Limited(Start):
        def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
            yield from super().label(run, shards, isolated=isolated)
            meter.reached.set()

    start, meter = Limited(lake(4), plan=Planned, loses=1, loses_always=True), Meter()
    start.meter = meter

    with pytest.raises(CapReached, match=r" 2 of 4 planned images of run \S+ are labelled"):
        start.run()


@pytest.mark.parametrize("is_planned", [False, True])
def test_progress_says_whether_the_plan_is_whole(is_planned: bool) -> None:
    class Planned(LazyPlan):
        def waves(self) -> Iterator[list[PlannedSegment]]:
            self.is_complete = is_planned
            yield from super().waves()

    start = Start(lake(4), plan=Planned)
    start.run()

    assert {one.is_planned for one in start.shown[1:]} == {is_planned}


def test_the_watchdog_knows_each_stage_and_what_may_be_the_reason() -> None:
    start = Start(lake(13))
    start.run()

    assert list(start.watchdog.moves) == [
        "reading the table", "planning", "labelling", "counting published rows",
    ]  # fmt: skip
    assert start.watchdog.moves["labelling"] == 7  # by shard
    assert start.watchdog.moves["planning"] >= 1
    assert start.watchdog.details["labelling"]() == "no GPU is free"


def test_the_lease_is_asked_for_at_every_wave_and_shard() -> None:
    start = Start(lake(13))
    start.run()

    assert start.asked == 2 + 7


@pytest.mark.parametrize(
    ("selection", "expected"),
    [(Selection(max_images=3), ["s3://lake/000.jpg", "s3://lake/001.jpg", "s3://lake/002.jpg"]), (Selection(), 13)],
)
def test_the_first_images_or_all_are_labelled(selection: Selection, expected: Any) -> None:
    world = lake(13)
    Start(world, selection).run()

    assert uris(world) == expected if isinstance(expected, list) else len(uris(world)) == expected


def test_a_sample_is_drawn_by_its_seed() -> None:
    drawn = []
    for seed in (0, 0, 1, 2):
        world = lake(50)
        Start(world, Selection(sample=5, seed=seed)).run()
        drawn.append(tuple(uris(world)))

    assert [len(one) for one in drawn] == [5] * 4
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_another_models_rows_and_errors_that_are_tried_again_are_planned() -> None:
    world = World({"s3://lake/0.jpg": "v0", "s3://lake/1.jpg": "truncated 0"})
    Start(world).run()

    assert Start(world).run().planned.images == 0
    assert Start(world, Selection(retry_errors="all")).run().planned.images == 1
    assert Start(world).run(model="detr@2").planned.images == 2


def test_a_small_plan_is_cut_for_as_many_as_work() -> None:
    world = lake(4)
    run = Start(world, spread=4).run().run
    assert run is not None

    shards = [images for segment in read_manifest(world.objects, run.run_id) for images in segment.shard_images]
    assert shards == [1] * 4
    assert find_unfinished(world.objects) is None


def test_a_new_run_seals_the_unfinished_one_and_clears_its_parts() -> None:
    world = lake(4)
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()
    old = find_unfinished(world.objects)
    assert old is not None
    list(Writer(world).label(old, [0], isolated=False))

    finished = Start(world).run(new_run=True)

    end = read_end(world.objects, old.run_id)
    assert end is not None
    assert end.state == "sealed"
    assert not finished.resumed
    assert finished.run is not None
    assert finished.run.number == 2
    assert not [entry.key for entry in world.objects.list(f"_runs/{old.run_id}/parts/")]


def test_a_run_whose_sealing_was_begun_is_sealed_and_not_resumed() -> None:
    world = lake(4)
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()
    old = find_unfinished(world.objects)
    assert old is not None
    world.objects.put(f"_runs/{old.run_id}/sealing.json", b"{}")  # that start died then

    finished = Start(world).run()

    end = read_end(world.objects, old.run_id)
    assert end is not None
    assert finished.run is not None
    assert (end.state, finished.resumed, finished.run.number) == ("sealed", False, 2)


def test_parts_that_a_start_could_not_remove_are_removed_by_the_next_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = lake(4)

    def fail(_: MemoryStore, key: str) -> None:
        raise StoreDown(f"{key}: no answer")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(MemoryStore, "delete", fail)
        run = Start(world).run().run
    assert run is not None
    parts = f"_runs/{run.run_id}/parts/"

    assert f"parts of run {run.run_id} could not be deleted: {parts}0000000.part: no answer" in caplog.text
    assert len(list(world.objects.list(parts))) == 2
    Start(world).run()
    assert list(world.objects.list(parts)) == []


def objects(world: World) -> dict[str, bytes]:
    return {entry.key: world.objects.get(entry.key).data for entry in world.objects.list()}


def test_where_everything_is_labelled_no_run_is_begun_and_no_actor_is_asked_for() -> None:
    world = lake(13)
    Start(world).run()
    before = objects(world)
    again = Start(world)

    finished = again.run()

    assert (finished.run, finished.resumed, finished.segments) == (None, False, 0)
    assert (finished.planned.images, finished.planned.labelled, finished.totals.rows) == (0, 13, 0)
    assert again.did == []
    assert objects(world) == before
    assert [one.stage for one in again.shown] == ["planning"]


def test_a_lake_without_images_begins_no_run() -> None:
    world = lake(0)

    assert Start(world).run().run is None
    assert list(world.objects.list()) == []


def test_a_new_run_where_nothing_is_unfinished_and_nothing_is_new_does_nothing() -> None:
    world = lake(4)
    Start(world).run()
    again = Start(world)

    assert again.run(new_run=True).run is None
    assert again.did == []


def test_the_first_run_connects_while_it_looks_and_a_later_one_when_it_has_found_something() -> None:
    world = lake(4)
    first, resumed, later = Start(world, dies=True), Start(world), Start(world)
    with pytest.raises(RayDetrError):
        first.run()
    resumed.run()
    world.lake["s3://lake/new.jpg"] = "v0"
    later.run()

    assert first.did == ["prepare", "workforce", "label in fp32"]
    assert resumed.did == ["prepare", "label in fp32", "workforce"]  # the end of the plan was not written yet
    assert later.did == ["workforce", "label in fp32"]


def test_a_cluster_that_cannot_hold_the_actors_is_reported_before_a_run_begins() -> None:
    world = lake(4)

    with pytest.raises(RayDetrError, match="99 actors do not fit"):
        Start(world, refuses="workforce").run()

    assert list(world.objects.list()) == []


def test_a_run_is_sealed_only_when_the_model_has_been_loaded_where_actors_are() -> None:
    world = lake(4)
    with pytest.raises(RayDetrError):
        Start(world, dies=True).run()
    before = objects(world)

    with pytest.raises(RayDetrError, match="does not load there"):
        Start(world, refuses="model").run(new_run=True)
    assert objects(world) == before

    start = Start(world)
    start.run(new_run=True)
    assert start.did == ["try the model", "workforce", "label in fp32"]


def test_the_precision_of_a_run_is_that_of_its_beginning() -> None:
    world = lake(13)
    with pytest.raises(RayDetrError):
        Start(world, dies=True, precision="bf16").run()
    resumed = Start(world, precision="fp32")

    finished = resumed.run()

    assert finished.run is not None
    assert (finished.resumed, finished.run.precision) == (True, "bf16")
    assert resumed.did[-1] == "label in bf16"


@pytest.mark.parametrize("is_finished", [True, False])
def test_what_another_start_labels_between_the_look_and_the_beginning_is_not_labelled_twice(is_finished: bool) -> None:
    world = lake(13)

    class Slow(Start):
        """While it connects another start works on the same table."""

        others: int = 0

        def workforce(self) -> Workforce:
            self.others += 1
            if self.others == 1:
                other = Start(world, dies=not is_finished)
                try:
                    other.run()
                except RayDetrError:
                    assert not is_finished
                world.lake["s3://lake/new.jpg"] = "v0"
            return super().workforce()

    start = Slow(world)
    finished = start.run()

    assert finished.run is not None
    if is_finished:
        assert (finished.resumed, finished.run.number, finished.planned.labelled) == (False, 2, 13)
    else:
        assert (finished.resumed, finished.run.number) == (True, 1)
    assert uris(world) == sorted(world.lake)
    assert find_unfinished(world.objects) is None


def test_another_start_that_is_not_what_was_asked_for_is_refused_after_the_look() -> None:
    world = lake(13)

    class Slow(Start):
        def workforce(self) -> Workforce:
            with pytest.raises(RayDetrError, match="the power went"):
                Start(world, dies=True).run(model="detr@2")
            return super().workforce()

    with pytest.raises(RayDetrError, match=r"used another configuration \(model detr@2, now detr@1\)"):
        Slow(world).run()


def test_a_listing_is_read_once_though_it_is_looked_at_before_the_run_begins() -> None:
    world = lake(13)
    listings: list[str | None] = []

    class Counting(Writer):
        def _list(self, after: str | None) -> Iterator[LakeObject]:
            listings.append(after)
            return super()._list(after)

    Counting(world).start()

    assert listings == [None]
    assert uris(world) == sorted(world.lake)


LOW, HIGH = {"threshold": 0.05, "classes": None}, {"threshold": 0.5, "classes": [["cat", None], ["ant", 0.9]]}
OTHER_SETTINGS = (
    r"table memory://table was labelled by detr@1 with other settings \(threshold 0\.05, now 0\.5; "
    r"classes all, now ant=0\.9 cat=0\.5\)\. Use the old values .* with SQL .* another --table, or --relabel"
)


def settings_of(world: World) -> list[tuple[str, str]]:
    return sorted((row["uri"][-7:], row["settings"]) for row in world.read())


def test_each_row_has_the_settings_of_its_run() -> None:
    world = lake(1)
    Start(world, configuration=HIGH, precision="fp16").run()

    assert settings_of(world) == [
        ("000.jpg", '{"classes":{"ant":0.9,"cat":0.5},"precision":"fp16","threshold":0.5}'),
    ]


@pytest.mark.parametrize("is_new", [False, True])
def test_other_settings_on_a_finished_table_are_refused_with_the_difference_and_leave_nothing(is_new: bool) -> None:
    world = lake(3)
    Start(world, configuration=LOW).run()
    if is_new:
        world.lake["s3://lake/new.jpg"] = "v0"
    before = list(world.objects.list())
    start = Start(world, configuration=HIGH)

    with pytest.raises(UsageError, match=OTHER_SETTINGS):
        start.run()

    assert start.did == []  # not even connected
    assert list(world.objects.list()) == before


def test_other_settings_label_the_images_again_where_that_is_asked_for() -> None:
    world = lake(2)
    Start(world, configuration=LOW).run()
    finished = Start(world, configuration=HIGH, relabel=True).run()

    assert finished.planned.images == 2
    low = '{"precision":"fp32","threshold":0.05}'
    high = '{"classes":{"ant":0.9,"cat":0.5},"precision":"fp32","threshold":0.5}'
    assert settings_of(world) == [("000.jpg", high), ("000.jpg", low), ("001.jpg", high), ("001.jpg", low)]
    again = Start(world, configuration=HIGH, relabel=True)
    assert again.run().planned.labelled == 2
    assert again.did == []
    world.lake["s3://lake/new.jpg"] = "v0"
    assert Start(world, configuration=HIGH).run().planned.images == 1


def test_a_promoted_model_labels_only_what_no_model_has_labelled_where_that_is_asked_for() -> None:
    world = lake(2)
    Start(world, configuration=LOW).run()
    any_rows = Selection(skip_labelled="any")
    nothing_new = Start(world, selection=any_rows)
    assert nothing_new.run(model="detr@2").planned.labelled == 2
    assert nothing_new.did == []

    world.lake["s3://lake/new.jpg"] = "v0"
    assert Start(world, selection=any_rows).run(model="detr@2").planned.images == 1
    world.lake["s3://lake/newer.jpg"] = "v0"
    # and of the same model with other settings, which is otherwise refused
    assert Start(world, configuration=HIGH, selection=any_rows).run().planned.images == 1

    assert sorted((row["uri"][-7:], row["model"]) for row in world.read()) == [
        ("000.jpg", "detr@1"), ("001.jpg", "detr@1"), ("new.jpg", "detr@2"), ("wer.jpg", "detr@1"),
    ]  # fmt: skip


def test_a_nightly_run_goes_on_after_somebody_has_labelled_again_with_other_settings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = lake(1)
    Start(world, configuration=LOW).run()
    Start(world, configuration=HIGH, relabel=True).run()
    night = Start(world, configuration=LOW)

    assert night.run().planned.labelled == 1
    assert (night.did, caplog.messages) == ([], [])  # nothing to do, and nothing to say
    world.lake["s3://lake/new.jpg"] = "v0"
    assert Start(world, configuration=LOW).run().planned.images == 1
    low, high = '{"precision":"fp32","threshold":0.05}', settings_of(world)[0][1]
    assert settings_of(world) == [("000.jpg", high), ("000.jpg", low), ("new.jpg", low)]
    assert caplog.messages == [
        "the newest rows of detr@1 in table memory://table have other settings (threshold 0.5, now 0.05; classes "
        "ant=0.9 cat=0.5, now all). This run labels images that have no row with its own settings."
    ]
    with pytest.raises(UsageError, match=r"threshold 0\.05, now 0\.3\)"):  # that nobody has labelled with
        Start(world, configuration={**LOW, "threshold": 0.3}).run()


def test_auto_is_the_precision_of_rows_with_the_same_threshold_not_of_the_newest() -> None:
    world = lake(1)
    Start(world, configuration=LOW, precision="fp16").run()
    Start(world, configuration=HIGH, precision="fp32", relabel=True).run()
    again = Start(world, configuration=LOW, precision="fp32")

    assert again.run().planned.labelled == 1
    assert again.did == []


def test_an_unfinished_run_that_published_nothing_does_not_decide_the_settings() -> None:
    world = lake(2)
    with pytest.raises(RayDetrError):
        Start(world, configuration=LOW, dies=True).run()

    assert Start(world, configuration=HIGH).run(new_run=True).planned.images == 2


def test_a_run_that_published_something_is_not_sealed_for_other_settings() -> None:
    world = lake(13)  # two segments, of which the first is published
    start = Start(world, configuration=LOW)
    start.label = lambda run, shards, *, isolated: (  # type: ignore[method-assign]
        (one for one in [Failed("the power went.")])
        if 6 in shards
        else Start.label(start, run, shards, isolated=isolated)
    )
    with pytest.raises(RayDetrError):
        start.run()
    run = find_unfinished(world.objects)

    with pytest.raises(UsageError, match=OTHER_SETTINGS):
        Start(world, configuration=HIGH).run(new_run=True)

    assert find_unfinished(world.objects) == run


def test_a_run_is_not_sealed_for_one_in_another_precision_that_is_refused() -> None:
    world = lake(2)
    Start(world, precision="fp16").run()
    world.lake["s3://lake/new.jpg"] = "v0"
    with pytest.raises(RayDetrError, match="the power went"):
        Start(world, precision="fp16", dies=True).run()
    run = find_unfinished(world.objects)
    assert run is not None

    with pytest.raises(UsageError, match=r"\(precision fp16, now fp32\)"):
        Start(world, precision="fp32").run(new_run=True)
    assert find_unfinished(world.objects) == run
    as_the_rows = Start(world, precision="fp32", configuration={"precision": "fp16"})
    assert as_the_rows.run(new_run=True).run is not None
    assert as_the_rows.did[0] == "try the model"  # the cluster was not asked for a precision before the seal
    world.lake["s3://lake/newer.jpg"] = "v0"
    with pytest.raises(RayDetrError, match="the power went"):
        Start(world, precision="fp16", dies=True).run()
    assert Start(world, configuration={"threshold": 0.9}, relabel=True).run(new_run=True).run is not None


@pytest.mark.parametrize(("precision", "skips"), [("fp16", "same"), ("fp32", "any")])
def test_images_are_listed_once_where_settings_do_not_matter(precision: str, skips: SkipLabelled) -> None:
    class Counting(Start):
        listings = 0

        def listed(self, after: str | None) -> Iterator[LakeObject]:
            self.listings += 1
            return super().listed(after)

    world = lake(2)
    Start(world, precision="fp16").run()
    world.lake["s3://lake/new.jpg"] = "v0"
    start = Counting(world, precision=precision, selection=Selection(skip_labelled=skips))

    assert start.run().planned.images == 1
    assert start.listings == 1


def test_auto_is_the_tables_precision_where_there_is_nothing_to_do() -> None:
    world = lake(2)
    Start(world, precision="fp16").run()
    again = Start(world, precision="fp32")

    assert again.run().planned.labelled == 2
    assert again.did == []


def test_auto_that_is_another_precision_than_the_tables_is_refused_before_a_run_is_begun() -> None:
    world = lake(2)
    Start(world, precision="fp16").run()
    world.lake["s3://lake/new.jpg"] = "v0"

    with pytest.raises(UsageError, match=r"\(precision fp16, now fp32\)\. Use the old value to"):
        Start(world, precision="fp32").run()

    assert find_unfinished(world.objects) is None
    assert Start(world, precision="fp32", relabel=True).run().planned.images == 3
    assert Start(world, precision="fp32").run().planned.labelled == 3


def test_an_unfinished_run_of_an_earlier_release_leaves_out_what_has_other_settings() -> None:
    world = lake(3)
    Start(world, configuration=LOW, selection=Selection(max_images=1)).run()
    with pytest.raises(RayDetrError):
        Start(world, configuration=HIGH, relabel=True, dies=True).run()
    run = find_unfinished(world.objects)
    assert run is not None
    for entry in list(world.objects.list(f"_runs/{run.run_id}/plan/")):
        world.objects.delete(entry.key)
    for key in ("_runs/_order/0000002.json", f"_runs/{run.run_id}/run.json"):
        record = json.loads(world.objects.get(key).data)
        del record["tells_settings_apart"], record["layout"]
        world.objects.put(key, json.dumps({**record, "record_version": 2}).encode())

    assert Start(world, configuration=HIGH).run().totals.rows == 2
