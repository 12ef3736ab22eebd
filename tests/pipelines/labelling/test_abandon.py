"""Abandoning a run: what it published stays, nothing of it is written any more, and a live run is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from pipelines.clock import SystemClock
from pipelines.errors import LeaseHeld, RayDetrError
from pipelines.labelling.abandon import Abandoned, abandon_run
from pipelines.labelling.lease import LEASE_KEY, acquire
from pipelines.labelling.manifest import PlannedSegment, read_shard
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, publish_group
from pipelines.labelling.run import Run, RunRequest, finish_run, read_state
from pipelines.labelling.writer_process import this_process
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, rows_to_table
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def start(table: Store, run_id: str) -> tuple[Run, list[PlannedSegment]]:
    """Begin a run whose one segment has a part for each of its two shards."""
    run, _ = start_run(table, RunRequest("detr@1", "1", {}, 2, {}, run_id=run_id), now=NOW, tail="0001")

    def stream(after: str | None) -> Iterator[LakeObject]:
        return (LakeObject(f"s3://b/{number}", "e") for number in range(3))

    listing = Listing((stream,), NO_COLUMNS)
    segments = list(
        write_plan(table, run_id, listing, lambda objects: [False] * len(objects), shard_images=run.shard_images)
    )
    for shard in segments[0].shards:
        rows = [
            Row(item.uri, item.etag, detections=Detected([], (), [], [])) for item in read_shard(table, run_id, shard)
        ]
        origin = Origin("detr@1", 0.5, run_id, shard, NOW)
        commit_part(table, run_id, shard, rows_to_table(rows, origin=origin), token="t")
    return run, segments


def abandon(table: Store, run_id: str | None = None) -> Abandoned | None:
    return abandon_run(table, run_id, token="a", clock=SystemClock())


def test_an_abandoned_run_is_sealed_and_its_parts_are_removed(store: Store) -> None:
    run, (segment,) = start(store, "night-1")

    done = abandon(store, "night-1")

    assert done is not None
    assert (done.run_id, done.end.state, done.parts) == ("night-1", "sealed", 2)
    assert read_state(store, "night-1") == "sealed"
    with pytest.raises(RayDetrError, match="was sealed"):
        publish_group(store, run, segment)
    assert start_run(store, RunRequest("other@1", "1", {}, 2, {}), now=NOW, tail="0002")[0].number == 2


def test_where_nothing_is_unfinished_nothing_is_written() -> None:
    table = memory_store()
    assert abandon(table) is None
    start(table, "night-1")
    finish_run(table, "night-1", now=NOW, totals={})
    before = list(table.list())

    assert abandon(table) is None
    assert abandon(table, "night-1") is None
    with pytest.raises(RayDetrError, match=r"table memory://store has no run night-2\. `ray-detr runs` lists"):
        abandon(table, "night-2")
    assert list(table.list()) == before


def test_another_run_than_the_named_one_is_not_abandoned() -> None:
    table = memory_store()
    start(table, "night-1")
    finish_run(table, "night-1", now=NOW, totals={})
    start(table, "night-2")

    assert abandon(table, "night-1") is None
    assert read_state(table, "night-2") == "labelling"


def test_a_run_whose_table_is_being_written_is_left_alone_and_its_holder_named() -> None:
    table = memory_store()
    start(table, "night-1")
    acquire(table, this_process(), token="b", now=SystemClock().now())

    with pytest.raises(LeaseHeld, match="is being written by another process"):
        abandon(table)
    assert read_state(table, "night-1") == "labelling"


def test_the_lease_is_given_up_behind_it() -> None:
    table = memory_store()
    start(table, "night-1")

    abandon(table)

    assert b'"is_released": true' in table.get(LEASE_KEY).data
