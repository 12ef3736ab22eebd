"""Parts and table files: of two attempts one counts, and a table file has each planned image in one row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling.manifest import PlannedSegment, read_manifest, read_shard
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import (
    Commit,
    Done,
    commit_part,
    part_key,
    publish_group,
    read_done,
    read_totals,
    remove_parts,
    verify_run,
    write_sealed_file,
)
from pipelines.labelling.run import Run
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import AlreadyExists, NotFound, Store, StoreDown
from pipelines.table.files import table_file_key
from pipelines.table.schema import (
    NO_COLUMNS,
    Detected,
    Origin,
    Row,
    Totals,
    decode,
    encode,
    read_metadata,
    rows_to_table,
    with_settings,
)
from tests.memory_store import memory_store

NOW = datetime(2026, 11, 22, tzinfo=UTC)
RUN = Run("run-1", 1, "detr@1", "1", {"threshold": 0.5}, 2, {}, NOW)
KEPT = pa.schema([("station", pa.string())])


def rows_of(objects: Sequence[LakeObject], shard: int, kept: pa.Schema = NO_COLUMNS) -> pa.Table:
    """Return what a labeler would: a detection a row, some images truncated."""
    rows = [
        Row(item.uri, item.etag, error_kind="truncated", error="cut", kept=item.kept)
        if (shard + number) % 3 == 2
        else Row(
            item.uri, item.etag, detections=Detected([1], (f"label {shard}",), [0.5], [[0, 0, 1, 1]]), kept=item.kept
        )
        for number, item in enumerate(objects)
    ]
    return rows_to_table(rows, kept, origin=Origin("detr@1", 0.5, "run-1", shard, NOW))


ROWS = rows_of([LakeObject("s3://b/a"), LakeObject("s3://b/b")], 7)


def planned(table: Store, images: int = 5, kept: pa.Schema = NO_COLUMNS) -> list[PlannedSegment]:
    def stream(after: str | None) -> Iterator[LakeObject]:
        for number in range(images):
            yield LakeObject(f"s3://b/{number:03d}", str(number), number, ("north",) * len(kept))

    return list(
        write_plan(
            table,
            "run-1",
            Listing((stream,), kept),
            lambda objects: [False] * len(objects),
            shard_images=RUN.shard_images,
        )
    )


def commit_all(table: Store, segment: PlannedSegment, kept: pa.Schema = NO_COLUMNS) -> None:
    for shard in segment.shards:
        commit_part(table, "run-1", shard, rows_of(read_shard(table, "run-1", shard), shard, kept), token="t")


def test_parts_and_table_files_are_named_by_the_plan_alone() -> None:
    assert part_key("run-1", 7) == "_runs/run-1/parts/0000007.part"
    assert table_file_key("run-1", 3, "flat") == "data/run-1-00003.parquet"


def test_the_second_attempt_at_a_shard_loses_and_leaves_the_first_rows(store: Store) -> None:
    assert commit_part(store, "run-1", 7, ROWS, token="first") is Commit.WON
    before = store.get("_runs/run-1/parts/0000007.part")

    assert commit_part(store, "run-1", 7, ROWS.slice(0, 0), token="second") is Commit.LOST
    assert store.get("_runs/run-1/parts/0000007.part") == before


def test_the_second_attempt_with_equal_rows_loses_too() -> None:
    table = memory_store()

    assert commit_part(table, "run-1", 7, ROWS, token="first") is Commit.WON
    assert commit_part(table, "run-1", 7, ROWS, token="second") is Commit.LOST


def test_a_retried_put_that_meets_its_own_object_has_won() -> None:
    table = memory_store()
    commit_part(table, "run-1", 7, ROWS, token="first")

    assert commit_part(table, "run-1", 7, ROWS, token="first") is Commit.WON


class LosesAnswers:
    """A store that writes and does not say so; its client retries, or reports that nothing is known."""

    def __init__(self, inner: Store, error: Exception) -> None:
        self._inner, self._error, self._lost = inner, error, False
        self.uri, self.list, self.head = inner.uri, inner.list, inner.head
        self.get, self.get_range, self.delete = inner.get, inner.get_range, inner.delete

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        etag = self._inner.put(key, data, create=create, if_match=if_match)
        if not self._lost:
            self._lost = True
            raise self._error
        return etag


@pytest.mark.parametrize("error", [AlreadyExists("it met itself"), StoreDown("no answer")])
def test_a_commit_whose_answer_was_lost_has_won(error: Exception) -> None:
    table = memory_store()

    assert commit_part(LosesAnswers(table, error), "run-1", 7, ROWS, token="first") is Commit.WON
    assert commit_part(table, "run-1", 7, ROWS, token="second") is Commit.LOST


def test_a_commit_that_meets_other_bytes_with_its_token_has_won() -> None:
    table = memory_store()
    commit_part(table, "run-1", 7, ROWS, token="first")
    part = pq.ParquetFile(pa.BufferReader(table.get(part_key("run-1", 7)).data))

    assert read_metadata(part)["token"] == "first"  # by which a part of another release is recognised
    assert commit_part(table, "run-1", 7, ROWS.slice(0, 1), token="first") is Commit.WON


@pytest.mark.parametrize("has_two", [False, True])
def test_a_part_of_other_columns_is_not_published(*, has_two: bool) -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    key = part_key("run-1", 1)
    rows = decode(table.get(key).data)
    changed = rows.append_column("settings", rows["settings"]) if has_two else rows.drop_columns(["error"])
    table.put(key, encode(changed))

    with pytest.raises(RayDetrError, match=r"parts/0000001\.part does not contain its 2 planned images"):
        publish_group(table, RUN, segment)


def test_a_damaged_part_stops_the_run() -> None:
    table = memory_store()
    table.put(part_key("run-1", 7), b"damaged")

    with pytest.raises(RayDetrError, match=r"memory://store/_runs/run-1/parts/0000007\.part is damaged"):
        commit_part(table, "run-1", 7, ROWS, token="first")


def test_a_group_is_published_as_one_file_in_the_order_of_the_plan(store: Store) -> None:
    (segment,) = planned(store, 5, KEPT)
    commit_all(store, segment, KEPT)

    totals = publish_group(store, RUN, segment)

    data = store.get("data/run-1-00000.parquet").data
    rows = decode(data)
    assert totals == Totals(5, 3, {"truncated": 2})
    assert rows["uri"].to_pylist() == [f"s3://b/{number:03d}" for number in range(5)]
    assert rows["shard"].to_pylist() == [0, 0, 1, 1, 2]
    assert rows["station"].to_pylist() == ["north"] * 5
    assert [row and row[0]["label"] for row in rows["detections"].to_pylist()] == [
        "label 0",
        "label 0",
        "label 1",
        None,
        None,
    ]
    metadata = read_metadata(pq.ParquetFile(pa.BufferReader(data)))
    assert json.loads(metadata["configuration"]) == {"threshold": 0.5}
    assert (metadata["run_id"], metadata["segment"], metadata["model_sha256"]) == ("run-1", "0", "1")


def test_publishing_again_changes_nothing_and_says_the_same() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    first = publish_group(table, RUN, segment)
    before = table.get("data/run-1-00000.parquet")

    assert publish_group(table, RUN, segment, threads=1) == first
    assert table.get("data/run-1-00000.parquet") == before


def test_publishing_is_not_disturbed_by_another_who_does_the_same_at_the_same_moment() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)

    class Raced(LosesAnswers):
        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            publish_group(self._inner, RUN, segment)
            return self._inner.put(key, data, create=create, if_match=if_match)

    assert publish_group(Raced(table, StoreDown("")), RUN, segment) == Totals(5, 3, {"truncated": 2})


def test_a_damaged_part_is_named_when_its_segment_is_published() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    table.put(part_key("run-1", 1), b"damaged")

    with pytest.raises(RayDetrError, match=r"memory://store/_runs/run-1/parts/0000001\.part is damaged"):
        publish_group(table, RUN, segment)


def test_a_run_that_is_sealed_while_its_segment_is_published_is_not_published() -> None:
    class Sealed(LosesAnswers):
        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            write_sealed_file(self._inner, RUN, 0, NO_COLUMNS)
            return self._inner.put(key, data, create=create, if_match=if_match)

    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)

    with pytest.raises(RayDetrError, match="run run-1 of memory://store was sealed by another command"):
        publish_group(Sealed(table, StoreDown("")), RUN, segment)


def test_a_damaged_file_in_the_place_of_a_segment_is_named() -> None:
    class Spoilt(LosesAnswers):
        spoilt = b""

        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            self._inner.put(key, self.spoilt)
            return self._inner.put(key, data, create=create, if_match=if_match)

    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    whole = encode(ROWS)
    page = bytearray(whole)
    page[40] ^= 0xFF
    for data in (b"torn", bytes(page)):
        store = Spoilt(table, StoreDown(""))
        store.spoilt = data

        with pytest.raises(RayDetrError, match=r"memory://store/data/run-1-00000\.parquet is damaged"):
            publish_group(store, RUN, segment)
        table.delete("data/run-1-00000.parquet")


def test_classes_are_written_as_they_were_given() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    publish_group(table, replace(RUN, configuration={"classes": [["Käse", None]]}), segment)

    file = pq.ParquetFile(pa.BufferReader(table.get("data/run-1-00000.parquet").data))
    assert read_metadata(file)["configuration"] == '{"classes": [["Käse", null]]}'


@pytest.mark.parametrize(("threshold", "errors"), [(0.5, {"fetch_failed": 1}), (0.9, {})])
def test_an_image_that_changed_back_has_no_second_row_with_the_same_settings(
    threshold: float, errors: dict[str, int]
) -> None:
    table = memory_store()
    earlier = replace(RUN, run_id="run-0", configuration={"threshold": threshold})
    row = Row("s3://b/000", "before", detections=Detected([1], ("cat",), [0.5], [[0, 0, 1, 1]]))
    rows = rows_to_table([row], origin=Origin("detr@1", threshold, "run-0", 0, NOW, earlier.settings))
    table.put(table_file_key("run-0", 0, "flat"), encode(rows))
    (segment,) = planned(table, 3)
    listed = [replace(read_shard(table, "run-1", 0)[0], etag="before"), *read_shard(table, "run-1", 0)[1:]]
    commit_part(table, "run-1", 0, with_settings(rows_of(listed, 0), RUN.settings), token="t")
    commit_part(table, "run-1", 1, with_settings(rows_of(read_shard(table, "run-1", 1), 1), RUN.settings), token="t")

    assert publish_group(table, RUN, segment).errors == errors


def test_files_of_a_run_whose_name_begins_with_that_of_another_are_its_own() -> None:
    table = memory_store()
    table.put(table_file_key("night", 1, "flat"), b"")
    table.put(table_file_key("night-00", 2, "flat"), b"")

    assert read_done(table, "night", "flat").published == {1}


def test_a_file_of_equal_rows_by_another_release_is_fine_and_one_of_other_rows_is_not() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)

    class Raced(LosesAnswers):
        rows = pa.concat_tables(
            [decode(table.get(part_key("run-1", shard)).data) for shard in segment.shards]
        ).unify_dictionaries()

        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            self._inner.put(key, encode(self.rows, {"another": "release"}), create=create)
            return self._inner.put(key, data, create=create, if_match=if_match)

    class RacedByOthers(Raced):
        rows = Raced.rows.set_column(2, Raced.rows.schema.field("size"), pa.array([1] * 5, pa.int64()))

    assert publish_group(Raced(table, StoreDown("")), RUN, segment).rows == 5
    table.delete("data/run-1-00000.parquet")
    with pytest.raises(
        RayDetrError,
        match=r"memory://store/\S+-00000\.parquet exists with other rows than the parts",
    ):
        publish_group(RacedByOthers(table, StoreDown("")), RUN, segment)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(lambda rows: rows.slice(1), id="a row short"),
        pytest.param(lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]), id="a row twice"),
        pytest.param(lambda rows: pa.concat_tables([rows.slice(1), rows.slice(1)]), id="one for another"),
        pytest.param(lambda rows: rows.take([1, 0]), id="another order"),
        pytest.param(lambda rows: rows.slice(0, 0), id="none"),
    ],
)
def test_a_part_that_is_not_the_planned_images_is_not_published(rows: object) -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    table.delete(part_key("run-1", 1))
    assert callable(rows)
    commit_part(table, "run-1", 1, rows(rows_of(read_shard(table, "run-1", 1), 1)), token="t")

    with pytest.raises(
        RayDetrError, match=r"parts/0000001\.part does not contain its 2 planned images with one row each"
    ):
        publish_group(table, RUN, segment)
    assert list(table.list("data/")) == []


def test_a_group_with_a_missing_part_is_not_published() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    table.delete(part_key("run-1", 1))

    with pytest.raises(NotFound):
        publish_group(table, RUN, segment)
    assert list(table.list("data/")) == []


def test_a_late_publisher_whose_parts_were_removed_finds_the_file_published() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    expected = publish_group(table, RUN, segment)
    remove_parts(table, "run-1")

    late = LosesAnswers(table, StoreDown(""))
    heads = iter([False, True])

    def head(key: str) -> object:
        if next(heads):
            return table.head(key)
        raise NotFound(key)

    late.head = head  # type: ignore[assignment]
    assert publish_group(late, RUN, segment) == expected


def test_what_exists_says_which_shards_are_missing() -> None:
    table = memory_store()
    first, second = planned(table, 130)
    for shard in (0, 5, 64):
        commit_part(table, "run-1", shard, ROWS, token="t")
    table.put("_runs/run-1/parts/notes.txt", b"")
    table.put("_runs/run-1/parts/x.part", b"")

    done = read_done(table, "run-1", "flat")

    assert done == Done(frozenset({0, 5, 64}), frozenset())
    assert done.missing_shards(first) == tuple(shard for shard in range(64) if shard not in (0, 5))
    assert done.missing_shards(second) == ()
    assert Done(frozenset(), frozenset({0})).missing_shards(first) == ()


def test_a_run_is_verified_by_counting_its_files_against_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.labelling.cutting.SEGMENT_SHARDS", 4)
    monkeypatch.setattr("pipelines.labelling.manifest.SEGMENT_SHARDS", 4)
    table = memory_store()
    segments = planned(table, 20)
    for segment in segments[:-1]:
        commit_all(table, segment)
        publish_group(table, RUN, segment)

    with pytest.raises(
        RayDetrError, match=r"data/run-1-00002\.parquet is missing\. Run the same command again to publish it"
    ):
        verify_run(table, "run-1", "flat", read_manifest(table, "run-1"))
    commit_all(table, segments[-1])
    publish_group(table, RUN, segments[-1])

    assert verify_run(table, "run-1", "flat", read_manifest(table, "run-1")) == Totals(20, 14, {"truncated": 6})


def test_a_published_file_with_another_number_of_rows_is_noticed() -> None:
    table = memory_store()
    (segment,) = planned(table)
    table.put("data/run-1-00000.parquet", encode(ROWS))

    with pytest.raises(RayDetrError, match=r"memory://store/data/run-1-00000\.parquet has 2 rows for 5 planned images"):
        verify_run(table, "run-1", "flat", [segment])


def test_a_published_file_that_does_not_say_its_totals_is_noticed() -> None:
    table = memory_store()
    (segment,) = planned(table, 2)
    table.put("data/run-1-00000.parquet", encode(ROWS))

    with pytest.raises(RayDetrError, match=r"memory://store/\S+-00000\.parquet is damaged: its totals"):
        read_totals(table, "run-1", "flat", segment)


def test_parts_are_removed_and_nothing_else() -> None:
    table = memory_store()
    (segment,) = planned(table)
    commit_all(table, segment)
    publish_group(table, RUN, segment)
    others = [entry.key for entry in table.list() if not entry.key.endswith(".part")]

    assert remove_parts(table, "run-1") == 3
    assert [entry.key for entry in table.list()] == others
    assert remove_parts(table, "run-1") == 0
