"""What a verification finds: every kind of damage by the name of its file, and nothing in a table that is whole."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.concurrently import map_small
from pipelines.errors import RayDetrError
from pipelines.labelling import verify as verify_module
from pipelines.labelling.duplicates import find_duplicate_rows
from pipelines.labelling.manifest import PlannedSegment, read_shard, segment_key
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, part_key, publish_group, remove_parts, verify_run
from pipelines.labelling.run import Run, RunRequest, finish_run
from pipelines.labelling.seal import seal_run
from pipelines.labelling.verify import Verification, verify_table
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store, open_store
from pipelines.table.schema import Detected, Origin, Row, decode, encode, read_metadata, rows_to_table
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run

NOW = datetime(2026, 11, 22, tzinfo=UTC)
KEPT = pa.schema([("station", pa.string())])
FOUND = Detected([1], ("dog",), [0.5], [[0, 0, 1, 1]])
FIRST, SECOND, THIRD = "data/night-1-00000.parquet", "data/night-1-00001.parquet", "data/night-2-00000.parquet"
PLANNED = ["s3://b/night-1/0", "s3://b/night-1/1", "s3://b/night-1/2", "s3://b/night-1/3"]  # of FIRST
PART = part_key("night-3", 1)
ANOTHERS = "has rows whose run, model, settings or shard differ from those of the file"


class Watch:
    """A clock that goes on by so many seconds whenever it is looked at."""

    def __init__(self, step: float = 0.0) -> None:
        self._step, self._seconds = step, 0.0

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        self._seconds += self._step
        return self._seconds

    def sleep(self, seconds: float) -> None:
        self._seconds += seconds


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 2 shards of 2 images."""
    monkeypatch.setattr("pipelines.labelling.cutting.SEGMENT_SHARDS", 2)
    monkeypatch.setattr("pipelines.labelling.manifest.SEGMENT_SHARDS", 2)


def start(table: Store, run_id: str) -> Run:
    return start_run(table, RunRequest("detr@1", "1", {}, 2, {}, run_id=run_id), now=NOW, tail="0001")[0]


def plan(table: Store, run: Run, names: Sequence[str], shard_images: int = 2) -> list[PlannedSegment]:
    def stream(after: str | None) -> Iterator[LakeObject]:
        return (LakeObject(name, "e", None, ("north",)) for name in names)

    listing = Listing((stream,), KEPT)
    return list(
        write_plan(table, run.run_id, listing, lambda objects: [False] * len(objects), shard_images=shard_images)
    )


def commit(table: Store, run: Run, shards: Sequence[int], found: Detected = FOUND) -> None:
    """Commit shards, of which the first image is an error."""
    for shard in shards:
        rows = [
            Row(item.uri, item.etag, detections=found, kept=item.kept)
            if place
            else Row(item.uri, item.etag, error_kind="truncated", kept=item.kept)
            for place, item in enumerate(read_shard(table, run.run_id, shard))
        ]
        origin = Origin("detr@1", 0.5, run.run_id, shard, NOW)
        commit_part(table, run.run_id, shard, rows_to_table(rows, KEPT, origin=origin), token="t")


def whole_run(
    table: Store, run_id: str, names: Sequence[str], *, found: Detected = FOUND, shard_images: int = 2
) -> None:
    run = start(table, run_id)
    segments = plan(table, run, names, shard_images)
    for segment in segments:
        commit(table, run, segment.shards, found)
        publish_group(table, run, segment)
    totals = verify_run(table, run_id, "flat", segments)
    finish_run(table, run_id, now=NOW, totals={"rows": totals.rows, "detections": 0, "errors": {}})
    remove_parts(table, run_id)


def fill(table: Store) -> Store:
    """Make two finished runs, of two files and of one, and an unfinished one that has two parts of its plan."""
    whole_run(table, "night-1", [*PLANNED, "s3://b/night-1/4", "s3://b/night-1/5", "s3://b/night-1/6"])
    whole_run(table, "night-2", ["s3://b/night-2/0", "s3://b/night-2/1"])
    third = start(table, "night-3")
    plan(table, third, [f"s3://b/night-3/{number}" for number in range(6)])
    commit(table, third, [0, 1])
    return table


def verify(table: Store, **options: object) -> tuple[str, ...]:
    return verify_table(table, clock=Watch(), **options).findings  # type: ignore[arg-type]


def rewrite(table: Store, key: str, change: Callable[[pa.Table], pa.Table], **metadata: str) -> None:
    """Change the rows of a file under its own metadata."""
    data = table.get(key).data
    before = read_metadata(pq.ParquetFile(pa.BufferReader(data)))
    table.put(key, encode(change(decode(data)), {**before, **metadata}))


def replaced(rows: pa.Table, name: str, values: list[object]) -> pa.Table:
    field = rows.schema.field(name)
    plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    column = pa.array(values, plain).cast(field.type)
    return rows.set_column(rows.schema.get_field_index(name), field, column)


def totals_of(rows: int, detections: int, truncated: int) -> str:
    return json.dumps({"rows": rows, "detections": detections, "errors": {"truncated": truncated}})


def test_a_whole_table_is_found_whole_and_nothing_is_written(store: Store) -> None:
    fill(store)
    before = list(store.list())

    assert verify_table(store, clock=Watch()) == Verification(
        (), 0, files=3, files_total=3, images=9, images_total=9, is_complete=True
    )
    assert list(store.list()) == before


def test_an_empty_table_is_whole() -> None:
    assert verify(memory_store()) == ()


def test_a_sealed_run_with_what_it_had_published_is_whole() -> None:
    table = memory_store()
    run = start(table, "night-1")
    first, _ = plan(table, run, [*PLANNED, "s3://b/night-1/4"])
    commit(table, run, first.shards)
    publish_group(table, run, first)
    seal_run(table, run, now=NOW)

    assert verify_table(table, clock=Watch()) == Verification((), 0, 2, 2, 5, 5, is_complete=True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(
            lambda rows: pa.concat_tables([rows.slice(0, 1), rows.slice(2)]),
            "it has 3 rows for 4 images, and row 2 is of s3://b/night-1/2 where the plan has s3://b/night-1/1",
            id="a row missing",
        ),
        pytest.param(lambda rows: rows.slice(0, 3), "it has 3 rows for 4 images", id="the last row missing"),
        pytest.param(
            lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]),
            "it has 5 rows for 4 images, and row 5 is of s3://b/night-1/0 where the plan has no image more",
            id="a row too many",
        ),
        pytest.param(
            lambda rows: rows.take([0, 2, 1, 3]),
            "it has 4 rows for 4 images, and row 2 is of s3://b/night-1/2 where the plan has s3://b/night-1/1",
            id="another order",
        ),
    ],
)
def test_rows_that_are_not_the_plan_are_found(change: Callable[[pa.Table], pa.Table], found: str) -> None:
    table = fill(memory_store())
    rewrite(table, FIRST, change)

    sentence, *others = verify(table)

    assert sentence == f"memory://store/{FIRST} does not contain its planned images with one row each: {found}."
    assert all(f"memory://store/{FIRST} records totals of" in other for other in others)


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("run_id", ["night-1"] * 3 + ["night-2"], ANOTHERS),
        ("model", ["detr@1"] * 3 + ["detr@2"], ANOTHERS),
        ("shard", [0, 0, 0, 1], ANOTHERS),
        ("status", ["ok"] * 4, "has rows that are neither `ok` with detections nor an error with its kind"),
        ("error_kind", [None] * 4, "has rows that are neither `ok` with detections nor an error with its kind"),
    ],
)  # fmt: skip
def test_rows_that_contradict_themselves_or_their_file_are_found(name: str, values: list[object], found: str) -> None:
    table = fill(memory_store())
    rewrite(table, FIRST, lambda rows: replaced(rows, name, values))

    assert verify(table)[0] == f"memory://store/{FIRST} {found}."


def test_totals_that_the_rows_do_not_add_up_to_are_found() -> None:
    table = fill(memory_store())
    rewrite(table, FIRST, lambda rows: rows, totals=totals_of(4, 3, 1))
    rewrite(table, SECOND, lambda rows: rows, totals="{}")

    assert verify(table) == (
        f"memory://store/{FIRST} records totals of 4 rows with 3 detections and truncated 1, but its rows "
        "have 4 rows with 2 detections and truncated 2.",
        f"memory://store/{SECOND} is damaged: its totals cannot be read.",
    )


def test_a_flipped_byte_in_any_page_is_found() -> None:
    table = fill(memory_store())
    data = table.get(FIRST).data
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    lasts = [(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
             for column in columns]  # fmt: skip

    for last in lasts:
        table.put(FIRST, data[:last] + bytes([data[last] ^ 1]) + data[last + 1 :])

        (sentence,) = verify(table)
        assert sentence.startswith(f"memory://store/{FIRST} is damaged: it cannot be read as Parquet (")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1 and nothing that a footer could be PAR1"])
def test_a_file_that_is_not_parquet_any_more_is_found(data: bytes) -> None:
    table = fill(memory_store())
    table.put(SECOND, data)

    (sentence,) = verify(table)
    assert sentence.startswith(f"memory://store/{SECOND} is damaged: it cannot be read as Parquet (")


def test_a_file_of_other_columns_is_found() -> None:
    table = fill(memory_store())
    rewrite(table, SECOND, lambda rows: rows.drop_columns(["station"]))

    (sentence,) = verify(table)
    assert sentence.startswith(f"memory://store/{SECOND} has other columns than its run planned: uri, etag, ")


def test_a_version_that_is_labelled_again_by_another_run_is_found() -> None:
    table = fill(memory_store())
    whole_run_again = ["s3://b/night-1/1", "s3://b/night-1/3", "s3://b/night-4/0", "s3://b/night-4/1"]
    seal_run(table, start(table, "night-3"), now=NOW)
    run = start(table, "night-4")
    (segment,) = plan(table, run, whole_run_again)
    for shard in segment.shards:
        rows = [
            Row(item.uri, item.etag, detections=FOUND, kept=item.kept) for item in read_shard(table, "night-4", shard)
        ]
        origin = Origin("detr@1", 0.5, "night-4", shard, NOW)
        commit_part(table, "night-4", shard, rows_to_table(rows, KEPT, origin=origin), token="t")
    publish_group(table, run, segment)

    assert verify(table) == (
        "memory://store/data/night-4-00000.parquet has 2 duplicate rows for images that detr@1 with the settings "
        '{"precision":"fp32"} has labelled already, such as '
        f"s3://b/night-1/1 (etag e), which is in memory://store/{FIRST}.",
    )
    assert verify(table, run_id="night-2") == verify(table)  # over all runs, whichever is verified


def test_a_version_that_is_labelled_again_with_other_settings_is_not_a_duplicate_row() -> None:
    table = memory_store()
    for number, threshold in enumerate((0.5, 0.9, 0.5)):
        request = RunRequest("detr@1", "1", {"threshold": threshold}, 2, {}, run_id=f"run-{number}")
        run = start_run(table, request, now=NOW, tail="0001")[0]
        (segment,) = plan(table, run, ["s3://b/a", "s3://b/b"])
        commit(table, run, segment.shards)
        publish_group(table, run, segment)
        seal_run(table, run, now=NOW)

    assert verify(table) == (
        "memory://store/data/run-2-00000.parquet has a duplicate row for images that detr@1 with the settings "
        '{"precision":"fp32","threshold":0.5} has labelled already, such as s3://b/b (etag e), which is in '
        "memory://store/data/run-0-00000.parquet.",
    )


def test_files_of_an_earlier_release_have_the_settings_of_their_runs_record() -> None:
    table = fill(memory_store())
    for key in (FIRST, SECOND, THIRD):
        rewrite(table, key, lambda rows: rows.drop_columns(["settings"]))

    assert verify(table) == ()
    table.put(THIRD.replace("night-2", "night-1").replace("00000", "00009"), table.get(FIRST).data)
    assert any("with the settings {" in sentence and "s3://b/night-1/1" in sentence for sentence in verify(table))


def test_rows_of_other_settings_than_their_runs_are_found() -> None:
    table = fill(memory_store())
    rewrite(table, SECOND, lambda rows: replaced(rows, "settings", ['{"precision":"bf16"}'] * len(rows)))

    assert verify(table) == (f"memory://store/{SECOND} {ANOTHERS}.",)


VERSIONS = st.tuples(
    st.sampled_from("ab"),
    st.sampled_from([None, "", "1"]),
    st.sampled_from(["m", "n"]),
    st.sampled_from([None, "{}", "1"]),
    st.booleans(),
)


@given(files=st.lists(st.lists(VERSIONS, max_size=4), max_size=4))
def test_second_rows_are_those_that_a_set_has_already(
    files: list[list[tuple[str, str | None, str, str | None, bool]]],
) -> None:
    table, seen, expected = memory_store(), set(), {}
    for number, versions in enumerate(files):
        parts = [
            rows_to_table(
                [Row(uri, etag, detections=FOUND) if is_ok else Row(uri, etag, error_kind="missing")],
                origin=Origin(model, 0.5, "run", 0, NOW, settings),
            )
            for uri, etag, model, settings, is_ok in versions
        ]
        if parts:
            table.put(f"data/run/{number}.parquet", encode(pa.concat_tables(parts)))
        for *version, is_ok in versions:
            if is_ok and tuple(version) in seen:
                expected[number] = expected.get(number, 0) + 1
            elif is_ok:
                seen.add(tuple(version))

    said = list(find_duplicate_rows(table, list(table.list())))

    assert len(said) == len(expected)
    for sentence, (number, count) in zip(said, expected.items(), strict=True):
        assert (
            f"data/run/{number}.parquet has {'a duplicate row' if count == 1 else f'{count} duplicate rows'} "
            in sentence
        )


@pytest.mark.parametrize(
    ("etag", "settings", "version", "labeller"),
    [
        ("e1", None, "a.jpg (etag e1)", "detr@1"),
        (None, None, "a.jpg (no etag)", "detr@1"),
        (None, "{}", "a.jpg (no etag)", "detr@1 with the settings {}"),
    ],
)
def test_a_second_row_is_named_with_its_version_and_settings(
    etag: str | None, settings: str | None, version: str, labeller: str
) -> None:
    table = memory_store()
    rows = rows_to_table([Row("a.jpg", etag, detections=FOUND)], origin=Origin("detr@1", 0.5, "run", 0, NOW, settings))
    for name in ("0", "1"):
        table.put(f"data/run/{name}.parquet", encode(rows))

    assert list(find_duplicate_rows(table, list(table.list()))) == [
        f"memory://store/data/run/1.parquet has a duplicate row for images that {labeller} has labelled already, such "
        f"as {version}, which is in memory://store/data/run/0.parquet."
    ]


@pytest.mark.parametrize("key", ["data/export.parquet", "data/night-9-00000.parquet", "data/night-1/0.parquet",
                                 "data/night-1/more/00000.parquet", "data/night-2/notes.txt"])  # fmt: skip
def test_a_file_of_no_run_is_named(key: str) -> None:
    table = fill(memory_store())
    table.put(key, table.get(THIRD).data)

    assert verify(table) == (f"memory://store/{key} belongs to no run of this table. Move it out of data/.",)


def test_a_file_that_its_run_did_not_plan_is_named() -> None:
    table = fill(memory_store())
    table.put("data/night-2-00001.parquet", table.get(THIRD).data)

    assert verify(table)[0] == (
        "memory://store/data/night-2-00001.parquet is not in the plan of its run. Move it out of data/."
    )


def test_a_missing_file_of_a_run_that_ended_is_named() -> None:
    table = fill(memory_store())
    table.delete(SECOND)

    assert verify(table) == (f"memory://store/{SECOND} is missing: its 3 images have no row.",)


def test_a_file_without_rows_that_stands_for_planned_images_of_a_finished_run_is_found() -> None:
    table = fill(memory_store())
    rewrite(table, SECOND, lambda rows: rows.slice(0, 0), sealed="true")

    assert verify(table) == (
        f"memory://store/{SECOND} is sealed though run night-1 finished: its 3 images have no row.",
    )


def test_a_damaged_part_of_the_unfinished_run_is_found_and_so_is_one_of_other_images() -> None:
    table = fill(memory_store())
    data = table.get(PART).data
    table.put(PART, data[:100] + bytes([data[100] ^ 1]) + data[101:])

    (sentence,) = verify(table)
    assert sentence.startswith(f"memory://store/{PART} is damaged: it cannot be read as Parquet (")
    assert sentence.endswith("Delete it: the next run labels its shard again.")

    table.put(PART, table.get(part_key("night-3", 0)).data)
    assert verify(table) == (
        f"memory://store/{PART} does not contain its 2 planned images with one row each (2 rows). "
        "Delete it: the next run labels its shard again.",
    )


def test_a_damaged_plan_is_named_and_its_files_are_verified_without_it() -> None:
    table = fill(memory_store())
    table.put(segment_key("night-1", 0), b"damaged")
    rewrite(table, SECOND, lambda rows: rows, totals="{}")

    plan_sentence, file_sentence = verify(table)

    assert plan_sentence.startswith(f"memory://store/{segment_key('night-1', 0)} is damaged")
    assert file_sentence == f"memory://store/{SECOND} is damaged: its totals cannot be read."


def test_one_run_is_verified_alone() -> None:
    table = fill(memory_store())
    rewrite(table, FIRST, lambda rows: rows, totals="{}")

    whole = verify_table(table, run_id="night-2", clock=Watch())

    assert whole == Verification((), 0, files=1, files_total=1, images=2, images_total=2, is_complete=True)
    assert len(verify(table, run_id="night-1")) == 1
    with pytest.raises(RayDetrError, match="table memory://store has no run night-9"):
        verify(table, run_id="night-9")


def test_what_time_ends_goes_on_where_it_stopped_and_begins_anew_when_it_is_through(store: Store) -> None:
    fill(store)
    rewrite(store, FIRST, lambda rows: rows, totals="{}")

    def go_on(seconds: float) -> Verification:
        return verify_table(store, max_seconds=seconds, clock=Watch(1.0))

    first, second, third, fourth, again = (go_on(seconds) for seconds in (0.5, 0.5, 0.5, 0.5, 0.5))

    assert [len(one.findings) for one in (first, second, third, fourth, again)] == [1, 0, 0, 0, 1]
    assert [one.findings_before for one in (first, second, third, fourth, again)] == [0, 1, 1, 1, 0]
    assert [(one.files, one.images, one.is_complete) for one in (first, second, third, fourth, again)] == [
        (1, 4, False),
        (2, 7, False),
        (3, 9, False),
        (3, 9, True),
        (1, 4, False),
    ]
    assert go_on(100.0).is_complete
    assert go_on(100.0).files == 3


def test_a_verification_that_time_ends_has_ended_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Generator[list[str], None, None]] = []  # with a reference, an iterator does not end by itself
    monkeypatch.setattr(verify_module, "map_small", lambda *a, **more: kept.append(map_small(*a, **more)) or kept[0])

    assert verify_table(fill(memory_store()), max_seconds=0.5, clock=Watch(1.0)).files == 1
    assert inspect.getgeneratorstate(kept[0]) == inspect.GEN_CLOSED


def test_where_each_run_alone_was_left_is_kept_apart() -> None:
    table = fill(memory_store())

    assert verify_table(table, run_id="night-1", max_seconds=0.5, clock=Watch(1.0)).files == 1
    assert verify_table(table, max_seconds=0.5, clock=Watch(1.0)).files == 1
    assert verify_table(table, run_id="night-1", max_seconds=0.5, clock=Watch(1.0)).files == 2


@pytest.mark.parametrize("data", [b"{", b'{"version": 2, "after": "", "findings": 0}', b'{"version": 1, "after": 7}'])
def test_a_damaged_place_where_it_stopped_is_named(data: bytes) -> None:
    table = fill(memory_store())
    table.put("_runs/_verified.json", data)

    with pytest.raises(RayDetrError, match=r"_runs/_verified\.json is damaged.*Remove it"):
        verify_table(table, max_seconds=1.0, clock=Watch())
    assert verify(table) == ()


def test_rows_that_a_live_run_adds_meanwhile_are_not_findings() -> None:
    table = fill(memory_store())
    run = start(table, "night-3")

    class Live:
        """A store in which the unfinished run ends while its table is looked at."""

        uri, head, get, get_range, put = table.uri, table.head, table.get, table.get_range, table.put
        is_ended = False

        def list(self, prefix: str = "", after: str | None = None) -> Iterator[object]:
            yield from table.list(prefix, after)
            if prefix == "data/" and not self.is_ended:
                self.is_ended = True
                segments = plan(table, run, [f"s3://b/night-3/{number}" for number in range(6)])
                for segment in segments:
                    commit(table, run, segment.shards)
                    publish_group(table, run, segment)
                finish_run(table, "night-3", now=NOW, totals={})
                remove_parts(table, "night-3")

    assert verify(Live()) == ()  # type: ignore[arg-type]
    assert verify_table(table, clock=Watch()).files == 5


# in a process of its own: Arrow knows its most bytes since a process began
PEAKS = """
import json, sys, tracemalloc
import pyarrow as pa
from pipelines.clock import SystemClock
from pipelines.labelling import cutting, manifest
from pipelines.labelling.verify import verify_table
from pipelines.store import open_store

def peak(groups):
    cutting.SEGMENT_SHARDS = manifest.SEGMENT_SHARDS = groups
    tracemalloc.start()
    assert verify_table(open_store(f"{sys.argv[1]}/table-{groups}"), clock=SystemClock()).findings == ()
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return python + pa.default_memory_pool().max_memory()

peak(1)  # what is imported and remembered once
print(json.dumps([peak(2), peak(10)]))
"""


def test_memory_is_that_of_one_row_group_however_large_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.table.schema.ROW_GROUP_ROWS", 50)
    scores = np.random.default_rng(1).random(400).tolist()
    found = Detected([1] * 400, ("dog",) * 400, scores, [[0, 0, 1, 1]] * 400)

    for groups in (1, 2, 10):
        monkeypatch.setattr("pipelines.labelling.cutting.SEGMENT_SHARDS", groups)
        monkeypatch.setattr("pipelines.labelling.manifest.SEGMENT_SHARDS", groups)
        table = open_store(str(tmp_path / f"table-{groups}"))
        names = [f"s3://b/{number:06}" for number in range(50 * groups)]
        whole_run(table, "night-1", names, found=found, shard_images=50)
        assert pq.ParquetFile(tmp_path / f"table-{groups}" / FIRST).num_row_groups == groups

    line = [sys.executable, "-c", PEAKS, str(tmp_path)]
    measured = subprocess.run(line, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    two, ten = json.loads(measured.stdout)

    assert ten - two < two / 2, f"{two:,} and {ten:,} bytes"
