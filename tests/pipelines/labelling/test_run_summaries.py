"""What the runs of a table are said to be, in each of their states."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling.manifest import PlannedSegment, read_shard, segment_key
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, publish_group, verify_run
from pipelines.labelling.run import Run, RunRequest, finish_run, run_key
from pipelines.labelling.run_summaries import RunSummary, summarise_last_runs, summarise_runs
from pipelines.labelling.seal import seal_run
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, rows_to_table
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run

FP32 = '{"precision":"fp32"}'
NOW = datetime(2026, 11, 22, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
FOUND = Detected([1, 1], ("dog", "dog"), [0.5, 0.5], [[0, 0, 1, 1]] * 2)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 2 shards of 2 images."""
    monkeypatch.setattr("pipelines.labelling.cutting.SEGMENT_SHARDS", 2)
    monkeypatch.setattr("pipelines.labelling.manifest.SEGMENT_SHARDS", 2)


def start(table: Store, run_id: str) -> Run:
    return start_run(table, RunRequest("detr@1", "1", {}, 2, {}, run_id=run_id), now=NOW, tail="0001")[0]


def plan(table: Store, run: Run, images: int = 7) -> Iterator[PlannedSegment]:
    def stream(after: str | None) -> Iterator[LakeObject]:
        return (LakeObject(f"s3://b/{run.run_id}/{number}", "e") for number in range(images))

    listing = Listing((stream,), NO_COLUMNS)
    return write_plan(table, run.run_id, listing, lambda objects: [False] * len(objects), shard_images=2)


def publish(table: Store, run: Run, segment: PlannedSegment) -> None:
    """Publish a segment; the first image of each shard cannot be read."""
    for shard in segment.shards:
        rows = [
            Row(item.uri, item.etag, error_kind="truncated") if not place else Row(item.uri, "e", detections=FOUND)
            for place, item in enumerate(read_shard(table, run.run_id, shard))
        ]
        origin = Origin("detr@1", 0.5, run.run_id, shard, NOW)
        commit_part(table, run.run_id, shard, rows_to_table(rows, origin=origin), token="t")
    publish_group(table, run, segment)


def test_a_sealed_run_with_a_damaged_plan_does_not_hide_the_other_runs(caplog: pytest.LogCaptureFixture) -> None:
    table = memory_store()
    first = start(table, "z")
    published, second = plan(table, first)
    publish(table, first, published)
    table.put(segment_key("z", 0), b"torn")
    table.delete(run_key("z", "plan/complete.json"))

    with pytest.raises(RayDetrError, match=r"00000\.plan is damaged"):
        list(summarise_runs(table))
    seal_run(table, first, now=LATER)

    assert [(run.run_id, run.state, run.images_planned, run.rows) for run in summarise_runs(table)] == [
        ("z", "sealed", second.images, 4)
    ]
    assert "Its images are not counted as planned" in caplog.text


def test_runs_are_reported_oldest_first_with_their_states_and_what_readers_see_of_them(store: Store) -> None:
    first = start(store, "z")
    segments = list(plan(store, first))
    for segment in segments:
        publish(store, first, segment)
    totals = verify_run(store, "z", "flat", segments)
    finish_run(store, "z", now=LATER, totals={"rows": 7, "detections": 6, "errors": dict(totals.errors)})
    second = start(store, "y")
    publish(store, second, next(plan(store, second)))
    seal_run(store, second, now=LATER)
    third = start(store, "x")
    publish(store, third, list(plan(store, third))[1])

    assert list(summarise_runs(store)) == [
        RunSummary("z", "finished", "detr@1", NOW, LATER, 7, 7, 6, {"truncated": 4}, FP32),
        RunSummary("y", "sealed", "detr@1", NOW, LATER, 4, 4, 4, {"truncated": 2}, FP32),
        RunSummary("x", "labelling", "detr@1", NOW, None, 7, 3, 2, {"truncated": 2}, FP32),
    ]


def test_ended_runs_without_images_do_not_count_among_the_last_ones() -> None:
    table = memory_store()
    for name, rows in (("a", 1), ("b", 1), ("c", 0), ("d", 1)):
        start(table, name)
        finish_run(table, name, now=LATER, totals={"rows": rows, "detections": 0, "errors": {}})

    found, older = summarise_last_runs(table, 2)

    assert ([run.run_id for run in found], older) == (["b", "d"], 1)
    assert summarise_last_runs(table, 9)[1] == 0


def test_a_run_that_is_still_planned_is_reported_with_what_there_is_of_its_plan() -> None:
    table = memory_store()
    planner = plan(table, start(table, "z"))
    next(planner)

    assert list(summarise_runs(table)) == [RunSummary("z", "planning", "detr@1", NOW, None, 4, 0, 0, {}, FP32)]


def test_a_table_without_runs_has_none() -> None:
    assert list(summarise_runs(memory_store())) == []


def test_a_finished_run_whose_record_does_not_say_what_it_wrote_is_named() -> None:
    table = memory_store()
    start(table, "z")
    finish_run(table, "z", now=NOW, totals={"rows": -1})

    with pytest.raises(RayDetrError, match=rf"{run_key('z', 'end.json')} is damaged"):
        list(summarise_runs(table))
