"""A sealed run: what it published stays, and whatever of it is alive can publish nothing any more."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling.labelled_keys import read_labelled
from pipelines.labelling.manifest import PlannedSegment, read_manifest, read_shard, segment_key
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, publish_group, verify_run, write_sealed_file
from pipelines.labelling.run import End, Run, RunRequest, find_unfinished, finish_run, read_end, read_state
from pipelines.labelling.seal import is_seal_begun, seal_run
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store, StoreDown
from pipelines.table.files import table_file_key
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, decode, read_metadata, rows_to_table, table_schema
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run

NOW = datetime(2026, 11, 22, tzinfo=UTC)
LAKE = [LakeObject(f"s3://b/{number:03d}", "e") for number in range(14)]


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 4 shards: 14 images make four."""
    monkeypatch.setattr("pipelines.labelling.cutting.SEGMENT_SHARDS", 4)
    monkeypatch.setattr("pipelines.labelling.manifest.SEGMENT_SHARDS", 4)


def start(table: Store, tail: str) -> tuple[Run, bool]:
    return start_run(table, RunRequest("detr@1", "1", {}, 1, {}), now=NOW, tail=tail)


def plan(table: Store, run: Run, kept: pa.Schema = NO_COLUMNS) -> Iterator[PlannedSegment]:
    lake = [replace(item, kept=(None,) * len(kept)) for item in LAKE]

    def stream(after: str | None) -> Iterator[LakeObject]:
        return (item for item in lake if after is None or item.uri > after)

    labelled = read_labelled(table, "detr@1", threads=1)
    return write_plan(table, run.run_id, Listing((stream,), kept), labelled.contains, shard_images=1)


def label(table: Store, run: Run, segment: PlannedSegment) -> None:
    for shard in segment.shards:
        rows = [
            Row(item.uri, item.etag, detections=Detected([], (), [], []))
            for item in read_shard(table, run.run_id, shard)
        ]
        origin = Origin("detr@1", 0.5, run.run_id, shard, NOW)
        commit_part(table, run.run_id, shard, rows_to_table(rows, origin=origin), token=run.run_id)


def rows(table: Store) -> list[str]:
    return [uri for entry in table.list("data/") for uri in decode(table.get(entry.key).data)["uri"].to_pylist()]


def test_a_sealed_run_keeps_what_it_published_and_the_next_labels_the_rest() -> None:
    store = memory_store()
    old, _ = start(store, "0001")
    first, second, *_ = plan(store, old)
    for segment in (first, second):
        label(store, old, segment)
    publish_group(store, old, first)

    assert seal_run(store, old, now=NOW) == End("sealed", NOW, {})
    new, resumed = start(store, "0002")
    for segment in plan(store, new):
        label(store, new, segment)
        publish_group(store, new, segment)

    assert not resumed
    assert sorted(rows(store)) == [item.uri for item in LAKE]
    assert len(list(store.list(f"data/{old.run_id}-"))) == 4


def test_a_seal_does_not_read_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store()
    old, _ = start(store, "0001")
    segments = list(plan(store, old))
    for segment in segments[:3]:
        label(store, old, segment)
        publish_group(store, old, segment)
    read: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key, **options: (read.append(key), get(key, **options))[1])

    seal_run(store, old, now=NOW)

    assert [key for key in read if key.startswith("data/")] == []
    assert len(list(store.list("data/"))) == len(segments) == 4


def test_a_zombie_of_a_sealed_run_can_publish_nothing() -> None:
    table = memory_store()
    old, _ = start(table, "0001")
    first, second, *_ = plan(table, old)
    label(table, old, first)
    seal_run(table, old, now=NOW)
    before = {entry: table.get(entry.key) for entry in table.list("data/")}

    label(table, old, second)  # a part is nothing that a reader sees
    for segment in (first, second):
        with pytest.raises(RayDetrError, match=f"run {old.run_id} of memory://store was sealed by another command"):
            publish_group(table, old, segment)
    with pytest.raises(RayDetrError, match="was sealed"):
        verify_run(table, old.run_id, "flat", read_manifest(table, old.run_id))
    with pytest.raises(RayDetrError, match="was sealed"):
        finish_run(table, old.run_id, now=NOW, totals={})

    assert {entry: table.get(entry.key) for entry in table.list("data/")} == before
    assert rows(table) == []


def test_a_zombie_that_still_plans_can_plan_nothing() -> None:
    table = memory_store()
    old, _ = start(table, "0001")
    planner = plan(table, old)
    next(planner)

    seal_run(table, old, now=NOW)

    with pytest.raises(RayDetrError, match="was sealed"):
        next(planner)
    assert [planned.ending for planned in read_manifest(table, old.run_id)] == [None, "sealed"]
    assert len(list(table.list("data/"))) == 1


def test_a_run_that_planned_nothing_can_be_sealed() -> None:
    table = memory_store()
    old, _ = start(table, "0001")
    planner = plan(table, old)

    seal_run(table, old, now=NOW)

    with pytest.raises(RayDetrError, match="was sealed"):
        next(planner)
    assert read_state(table, old.run_id) == "sealed"


def test_a_planner_that_is_faster_than_the_seal_is_closed_behind() -> None:
    table, kept = memory_store(), pa.schema([("night", pa.string())])
    old, _ = start(table, "0001")
    planner = plan(table, old, kept)

    class Slow:
        """A store that lets the planner write once more before each file of the manifest that ends it."""

        uri, list, head, get, get_range = table.uri, table.list, table.head, table.get, table.get_range

        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            if key.endswith(".plan") and len(list_segments(table, old)) < 2:
                next(planner)
            return table.put(key, data, create=create)

    seal_run(Slow(), old, now=NOW)  # type: ignore[arg-type]

    assert list_segments(table, old) == [None, None, "sealed"]
    with pytest.raises(RayDetrError, match="was sealed"):
        next(planner)
    files = [decode(table.get(entry.key).data) for entry in table.list("data/")]
    assert [file.schema.remove_metadata() for file in files] == [table_schema(kept)] * 2


def list_segments(table: Store, run: Run) -> Sequence[str | None]:
    return [planned.ending for planned in read_manifest(table, run.run_id)]


class Dying:
    """A store that takes some writes and then none."""

    def __init__(self, inner: Store, writes: int) -> None:
        self._inner, self._left = inner, writes
        self.uri, self.list, self.head = inner.uri, inner.list, inner.head
        self.get, self.get_range, self.delete = inner.get, inner.get_range, inner.delete

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        if self._left == 0:
            raise StoreDown("no answer")
        self._left -= 1
        return self._inner.put(key, data, create=create, if_match=if_match)


@pytest.mark.parametrize("writes", range(6))  # one more than it needs
def test_a_seal_that_was_interrupted_anywhere_is_completed_by_the_next(writes: int) -> None:
    table = memory_store()
    old, _ = start(table, "0001")
    planner = plan(table, old)
    next(planner)
    second, _ = next(planner), next(planner)
    label(table, old, second)
    publish_group(table, old, second)

    if writes < 5:
        with pytest.raises(StoreDown):
            seal_run(Dying(table, writes), old, now=NOW)
        assert find_unfinished(table) == old
        assert is_seal_begun(table, old.run_id) == (writes > 0)
    else:
        seal_run(Dying(table, writes), old, now=NOW)

    assert seal_run(table, old, now=NOW.replace(hour=1)).state == "sealed"
    assert read_end(table, old.run_id) is not None
    assert rows(table) == [item.uri for item in LAKE[4:8]]
    assert start(table, "0002")[0].number == 2


@pytest.mark.parametrize("spoilt", [(0,), (1,), (2,), (3,), (4,), (3, 4), (0, 1, 2, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("data", [None, b"", b"PAR1 torn"], ids=["missing", "empty", "damaged"])
def test_a_run_with_a_spoilt_plan_is_sealed_and_keeps_what_it_published(
    spoilt: tuple[int, ...], data: bytes | None
) -> None:
    table = memory_store()
    old, _ = start(table, "0001")
    segments = list(plan(table, old))
    assert len(segments) == 4  # and the end
    label(table, old, segments[1])
    publish_group(table, old, segments[1])
    label(table, old, segments[3])
    keys = [segment_key(old.run_id, index) for index in range(5)]
    saved = {key: table.get(key).data for key in keys}
    for index in spoilt:
        table.delete(keys[index])
        if data is not None:
            table.put(keys[index], data)

    assert seal_run(table, old, now=NOW) == End("sealed", NOW, {})

    assert rows(table) == [item.uri for item in LAKE[4:8]]
    for key, whole in saved.items():  # restored for a process that still works on the run
        table.put(key, whole)
    for segment in segments[:1] + segments[2:]:
        with pytest.raises(RayDetrError, match="was sealed"):
            publish_group(table, old, segment)
    new, resumed = start(table, "0002")
    assert not resumed
    for segment in plan(table, new):
        label(table, new, segment)
        publish_group(table, new, segment)
    assert sorted(rows(table)) == [item.uri for item in LAKE]


@pytest.mark.parametrize("has_published", [False, True])
def test_files_of_a_sealed_run_have_the_kept_columns_though_no_plan_can_be_read(*, has_published: bool) -> None:
    table, kept = memory_store(), pa.schema([("night", pa.string())])
    runs = [start(table, "0001")[0]]
    if not has_published:
        seal_run(table, runs[0], now=NOW)
        write_sealed_file(table, runs[0], 0, kept)
        runs.append(start(table, "0002")[0])
    else:
        write_sealed_file(table, runs[0], 3, kept)
    table.put(segment_key(runs[-1].run_id, 0), b"torn")

    seal_run(table, runs[-1], now=NOW)

    schemas = {decode(table.get(entry.key).data).schema.remove_metadata() for entry in table.list("data/")}
    assert schemas == {table_schema(kept)}


@pytest.mark.parametrize("names", [["SIZE"], ["uri"], ["night", "Night"]])
def test_a_plan_with_column_names_that_no_table_can_have_is_sealed(names: list[str]) -> None:
    table, kept = memory_store(), pa.schema([(f"kept {number}", pa.string()) for number in range(len(names))])
    run, _ = start(table, "0001")
    for segment in plan(table, run, kept):
        key = segment_key(run.run_id, segment.index)
        planned, sink = pq.read_table(io.BytesIO(table.get(key).data)), io.BytesIO()
        pq.write_table(planned.rename_columns([*planned.column_names[: -len(names)], *names]), sink, row_group_size=1)
        table.put(key, sink.getvalue())

    with pytest.raises(RayDetrError, match="is damaged: it does not have the columns of a plan"):
        read_shard(table, run.run_id, 0)
    assert seal_run(table, run, now=NOW) == End("sealed", NOW, {})

    files = [decode(table.get(entry.key).data).schema.remove_metadata() for entry in table.list("data/")]
    assert files
    assert set(files) == {table_schema()}


@pytest.mark.parametrize(("name", "kept"), [("SIZE", []), ("night", ["night"])])
def test_columns_that_no_table_can_have_are_not_kept_from_a_damaged_file(name: str, kept: list[str]) -> None:
    table = memory_store()
    run, _ = start(table, "0001")
    sink = io.BytesIO()
    pq.write_table(pa.schema([*table_schema(), pa.field(name, pa.string())]).empty_table(), sink)
    table.put(table_file_key(run.run_id, 3, run.layout), sink.getvalue())

    seal_run(table, run, now=NOW)

    expected = table_schema(pa.schema([(column, pa.string()) for column in kept]))
    for index in range(3):
        assert (
            decode(table.get(table_file_key(run.run_id, index, run.layout)).data).schema.remove_metadata() == expected
        )


def test_files_of_the_run_decide_before_others_and_damaged_ones_are_passed_over() -> None:
    table = memory_store()
    older, _ = start(table, "0001")
    seal_run(table, older, now=NOW)
    run, _ = start(table, "0002")
    for run_id, segment, name in ((older.run_id, 0, "camera"), (run.run_id, 3, "night")):
        sink = io.BytesIO()
        pq.write_table(table_schema(pa.schema([(name, pa.string())])).empty_table(), sink)
        table.put(table_file_key(run_id, segment, run.layout), sink.getvalue())
    table.put(table_file_key(run.run_id, 2, run.layout), b"torn")

    seal_run(table, run, now=NOW)

    file = decode(table.get(table_file_key(run.run_id, 0, run.layout)).data)
    assert file.schema.remove_metadata() == table_schema(pa.schema([("night", pa.string())]))


def test_a_plan_of_a_later_release_is_refused_before_anything_is_sealed() -> None:
    table = memory_store()
    old, _ = start(table, "0001")
    list(plan(table, old))
    key = segment_key(old.run_id, 0)
    table.put(key, table.get(key).data.replace(b'"version": 1', b'"version": 9'))

    with pytest.raises(RayDetrError, match="version 9"):
        seal_run(table, old, now=NOW)
    assert not is_seal_begun(table, old.run_id)


def test_the_record_of_a_begun_seal_says_when_it_began() -> None:
    table = memory_store()
    run, _ = start(table, "0001")

    seal_run(table, run, now=NOW)

    record = b'{\n  "sealed_at": "2026-11-22T00:00:00+00:00"\n}\n'
    assert table.get(f"_runs/{run.run_id}/sealing.json").data == record


def test_a_sealed_file_names_its_run_and_segment() -> None:
    table = memory_store()
    run, _ = start(table, "0001")
    write_sealed_file(table, run, 3, NO_COLUMNS)

    (entry,) = table.list("data/")
    metadata = read_metadata(pq.ParquetFile(pa.BufferReader(table.get(entry.key).data)))
    assert {name: metadata[name] for name in ("run_id", "segment", "sealed")} == {
        "run_id": run.run_id,
        "segment": "3",
        "sealed": "true",
    }


def test_a_plan_is_ended_behind_a_table_file_beyond_its_end() -> None:
    table = memory_store()
    run, _ = start(table, "0001")
    assert len(list(plan(table, run))) == 4  # the plan ends with number 4
    write_sealed_file(table, run, 6, NO_COLUMNS)

    seal_run(table, run, now=NOW)

    assert [entry.key for entry in table.list(f"_runs/{run.run_id}/plan/")][-2:] == [
        f"_runs/{run.run_id}/plan/00007.plan",
        f"_runs/{run.run_id}/plan/complete.json",
    ]
    assert len(list(table.list("data/"))) == 7


def test_a_run_that_finished_in_the_same_moment_is_finished() -> None:
    table = memory_store()
    old, _ = start(table, "0001")
    for segment in plan(table, old):
        label(table, old, segment)
        publish_group(table, old, segment)
    finish_run(table, old.run_id, now=NOW, totals={"rows": 14})

    assert seal_run(table, old, now=NOW) == End("finished", NOW, {"rows": 14})
    assert len(rows(table)) == 14
