"""Which images a run labels, in which shards, however often the planning is interrupted."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.errors import RayDetrError
from pipelines.labelling.config import PlanConfig, Selection
from pipelines.labelling.cutting import Look, select
from pipelines.labelling.labelled_keys import labelled_keys
from pipelines.labelling.manifest import (
    SEGMENT_SHARDS,
    Counts,
    ListingPosition,
    PlannedSegment,
    Segment,
    list_segments,
    read_complete,
    read_kept_schema,
    read_manifest,
    read_planned,
    read_shard,
    segment_key,
    write_segment,
)
from pipelines.labelling.plan import PlanSummary, cut_segments, summarise_plan, usual_shard_images, write_plan
from pipelines.labelling.run import RunRequest
from pipelines.lake.lake_object import NOT_MODIFIED, LakeObject, Listed, Skipped
from pipelines.lake.listing import Listing, list_objects
from pipelines.lake.member_files import MemberIndexes
from pipelines.store import Store, StoreDown, open_store
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, encode, rows_to_table
from tests.conftest import S3Server
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run

NAMES = st.lists(
    st.tuples(st.text("abc", max_size=4), st.sampled_from(["new", "labelled", "skipped", "old"])), max_size=40
)


REASONS = {"skipped": ".json", "old": NOT_MODIFIED}


def as_listing(lake: dict[str, str]) -> list[Listed]:
    return [
        Skipped(uri, REASONS[what]) if what in REASONS else LakeObject(uri, "e", len(uri))
        for uri, what in sorted(lake.items())
    ]


def is_labelled(lake: dict[str, str]) -> object:
    return lambda objects: [lake[item.uri] == "labelled" for item in objects]


def none_labelled(objects: Sequence[LakeObject]) -> list[bool]:
    return [False] * len(objects)


def listing_of(listed: Sequence[Listed], kept: pa.Schema = NO_COLUMNS) -> Listing:
    def stream(after: str | None) -> Iterator[Listed]:
        return (item for item in listed if after is None or item.uri > after)

    return Listing((stream,), kept)


def images(count: int) -> list[Listed]:
    return [LakeObject(f"s3://b/{number:06d}.jpg", str(number), number) for number in range(count)]


@contextmanager
def short_segments() -> Iterator[None]:
    """Segments of 4 shards, and of 7 images listed: a few images make many."""
    with (
        patch("pipelines.labelling.cutting.SEGMENT_SHARDS", 4),
        patch("pipelines.labelling.manifest.SEGMENT_SHARDS", 4),
        patch("pipelines.labelling.cutting.SEGMENT_LISTED", 7),
    ):
        yield


def planned_uris(table: Store, segments: Iterable[PlannedSegment]) -> list[list[str]]:
    return [[item.uri for item in read_shard(table, "run", shard)] for segment in segments for shard in segment.shards]


@given(
    names=NAMES,
    shard_images=st.integers(1, 5),
    spread=st.integers(1, 9),
    most=st.none() | st.integers(1, 9),
    sample=st.none() | st.integers(1, 9),
)
def test_a_listing_that_was_looked_at_first_is_cut_into_the_same_segments(
    names: list[tuple[str, str]], shard_images: int, spread: int, most: int | None, sample: int | None
) -> None:
    lake = dict(names)
    listing = listing_of(as_listing(lake))
    selection = Selection(max_images=None if sample else most, sample=sample, seed=3)
    with short_segments():
        cut = list(
            cut_segments(
                select(listing, None, selection),
                is_labelled(lake),  # type: ignore[arg-type]
                shard_images=shard_images,
                max_images=selection.max_images,
                spread=spread,
            )
        )
        look = Look(listing, is_labelled(lake), selection)  # type: ignore[arg-type]
        has_new, counts = look.has_new, look.counts

        assert list(look.segments(shard_images=shard_images, spread=spread)) == cut
    assert has_new == any(segment.shards for segment in cut)
    assert counts.images == 0
    assert has_new or counts == cut[-1].position.counts


def test_a_look_reads_no_more_of_a_listing_than_it_must() -> None:
    read: list[str] = []

    def stream(after: str | None) -> Iterator[Listed]:
        for item in images(30_000):
            read.append(item.uri)
            yield item

    look = Look(Listing((stream,), NO_COLUMNS), none_labelled, Selection())

    assert look.has_new
    assert len(read) <= 8_193  # what is looked up at once, and its source reads one ahead


def test_what_was_looked_at_is_left_when_the_run_has_more_of_a_plan_already() -> None:
    table = memory_store()
    with short_segments():
        list(write_plan(table, "run", listing_of(images(9)), none_labelled, shard_images=2))
        look = Look(listing_of(images(20)), none_labelled, Selection())

        segments = list(write_plan(table, "run", listing_of(images(20)), none_labelled, shard_images=2, look=look))

    assert [image for segment in segments for image in segment.shard_images] == [2, 2, 2, 1, 2]


@given(names=NAMES, shard_images=st.integers(1, 5), spread=st.integers(1, 70))
def test_every_unlabelled_image_is_in_one_shard_in_listing_order(
    names: list[tuple[str, str]], shard_images: int, spread: int
) -> None:
    lake = dict(names)

    segments = list(cut_segments(as_listing(lake), is_labelled(lake), shard_images=shard_images, spread=spread))  # type: ignore[arg-type]

    shards = [shard for segment in segments for shard in segment.shards]
    assert [item.uri for shard in shards for item in shard] == sorted(
        uri for uri, what in lake.items() if what == "new"
    )
    assert all(0 < len(shard) <= shard_images for shard in shards)
    assert segments[-1].position.counts == Counts(
        images=sum(what == "new" for what in lake.values()),
        size_bytes=sum(len(uri) for uri, what in lake.items() if what == "new"),
        shards=len(shards),
        labelled=sum(what == "labelled" for what in lake.values()),
        skipped={reason: count for what, reason in REASONS.items() if (count := list(lake.values()).count(what))},
    )


def test_segments_have_64_shards_and_the_last_may_be_shorter_or_empty() -> None:
    def cut(count: int) -> list[tuple[int, int, bool]]:
        return [
            (segment.index, len(segment.shards), segment.is_last)
            for segment in cut_segments(images(count), none_labelled, shard_images=2)
        ]

    assert SEGMENT_SHARDS == 64
    assert cut(0) == [(0, 0, True)]
    assert cut(3) == [(0, 2, True)]
    assert cut(128) == [(0, 64, False), (1, 0, True)]
    assert cut(131) == [(0, 64, False), (1, 2, True)]


@pytest.mark.parametrize(
    ("count", "spread", "shards"), [(100, 1, 2), (100, 8, 8), (5, 8, 5), (100, 1000, 50), (0, 8, 0)]
)
def test_a_small_run_is_spread_over_many_shards(count: int, spread: int, shards: int) -> None:
    (segment,) = cut_segments(images(count), none_labelled, shard_images=64, spread=spread)

    assert len(segment.shards) == shards


@pytest.mark.parametrize("others", ["labelled", "old"])
def test_where_little_is_new_a_segment_does_not_wait_for_its_64th_shard(others: str) -> None:
    lake = {str(item.uri): others for item in images(32)}
    lake |= dict.fromkeys(("s3://b/000001.jpg", "s3://b/000006.jpg", "s3://b/000024.jpg"), "new")

    with patch("pipelines.labelling.cutting.SEGMENT_LISTED", 10):
        segments = list(cut_segments(as_listing(lake), is_labelled(lake), shard_images=8))  # type: ignore[arg-type]

    assert [(segment.position.last_uri, segment.position.counts.images) for segment in segments] == [
        ("s3://b/000009.jpg", 2),
        ("s3://b/000029.jpg", 3),
        ("s3://b/000031.jpg", 3),
    ]


def test_only_the_last_segment_is_spread() -> None:
    first, last = cut_segments(images(64 * 4 + 20), none_labelled, shard_images=4, spread=10)

    assert {len(shard) for shard in first.shards} == {4}
    assert {len(shard) for shard in last.shards} == {2}


@given(names=NAMES, most=st.integers(1, 12))
def test_the_first_images_are_those_listed_first_labelled_or_not(names: list[tuple[str, str]], most: int) -> None:
    lake = dict(names)
    first = [uri for uri, what in sorted(lake.items()) if what not in REASONS][:most]

    segments = cut_segments(as_listing(lake), is_labelled(lake), shard_images=3, max_images=most)  # type: ignore[arg-type]

    found = [item.uri for segment in segments for shard in segment.shards for item in shard]
    assert found == [uri for uri in first if lake[uri] == "new"]


@pytest.mark.parametrize("second", ["s3://b/b", "s3://b/a"])
def test_a_listing_out_of_order_is_refused(second: str) -> None:
    with pytest.raises(RayDetrError, match=f"out of order: {second} came after s3://b/b"):
        list(cut_segments([LakeObject("s3://b/b"), LakeObject(second)], none_labelled, shard_images=3))


def test_skipped_names_out_of_order_are_refused_but_may_repeat() -> None:
    listed = [LakeObject("s3://b/a.jpg"), Skipped("s3://b/c.txt", ".txt"), Skipped("s3://b/c.txt", ".txt")]
    (segment,) = cut_segments(listed, none_labelled, shard_images=3)
    assert segment.position.counts.skipped == {".txt": 2}

    with pytest.raises(RayDetrError, match=r"out of order: s3://b/b\.txt came after s3://b/c\.txt"):
        list(cut_segments([*listed, Skipped("s3://b/b.txt", ".txt")], none_labelled, shard_images=3))


def test_every_duplicate_is_counted() -> None:
    listed: list[Listed] = [Skipped("a", "duplicate"), Skipped("b", "duplicate", count=3), LakeObject("c")]
    (segment,) = cut_segments(listed, none_labelled, shard_images=3)

    assert (segment.position.counts.duplicates, segment.position.counts.skipped) == (4, {})


def test_unknown_sizes_are_counted() -> None:
    (segment,) = cut_segments([LakeObject("a", size=3), LakeObject("b")], none_labelled, shard_images=3)

    assert (segment.position.counts.size_bytes, segment.position.counts.unknown_sizes) == (3, 1)


def test_what_is_read_is_what_was_planned(store: Store) -> None:
    kept = pa.schema([("station", pa.string()), ("count", pa.int16())])
    listed: list[Listed] = [
        LakeObject("s3://b/ä.jpg", "e", 2**40, ("north", 1)),
        LakeObject("s3://b/ö.jpg", None, None, (None, None)),
        LakeObject("s3://b/ü.jpg", "f", 0, ("", 3)),
    ]

    (segment,) = write_plan(store, "run", listing_of(listed, kept), none_labelled, shard_images=2)

    assert segment == PlannedSegment(0, (2, 1), segment.position)
    assert [read_shard(store, "run", shard) for shard in segment.shards] == [tuple(listed[:2]), tuple(listed[2:])]
    assert read_kept_schema(store, "run") == kept
    assert read_planned(store, "run", 0)[0]["uri"].to_pylist() == ["s3://b/ä.jpg", "s3://b/ö.jpg", "s3://b/ü.jpg"]
    assert [planned.ending for planned in read_manifest(store, "run")] == [None, "complete"]
    assert read_complete(store, "run") == segment.position.counts


def test_a_plan_is_written_in_order_the_totals_last() -> None:
    table = memory_store()

    segments = list(write_plan(table, "run", listing_of(images(100)), none_labelled, shard_images=1))

    assert [entry.key for entry in table.list()] == [
        "_runs/run/plan/00000.plan",
        "_runs/run/plan/00001.plan",
        "_runs/run/plan/00002.plan",  # ends it
        "_runs/run/plan/complete.json",
    ]
    assert [segment.images for segment in segments] == [64, 36]
    assert json.loads(table.get("_runs/run/plan/complete.json").data) == {
        "segments": 2,
        "images": 100,
        "size_bytes": 4950,
        "unknown_sizes": 0,
        "shards": 100,
        "labelled": 0,
        "duplicates": 0,
        "skipped": {},
    }


def test_a_segment_is_given_when_it_is_durable_and_before_the_next_is_listed() -> None:
    table = memory_store()
    seen: list[str] = []

    def stream(after: str | None) -> Iterator[Listed]:
        for number in range(20_000):
            seen.append(f"{number:06d}")
            yield LakeObject(seen[-1])

    first = next(write_plan(table, "run", Listing((stream,), NO_COLUMNS), none_labelled, shard_images=10))

    assert first.images == 640
    assert [entry.key for entry in table.list()] == ["_runs/run/plan/00000.plan"]
    assert len(seen) < 10_000


def test_nothing_to_label_is_a_plan_without_segments() -> None:
    table = memory_store()

    assert (
        list(write_plan(table, "run", listing_of(images(5)), lambda objects: [True] * len(objects), shard_images=1))
        == []
    )
    assert read_complete(table, "run") == Counts(labelled=5)


class Failing:
    """A store whose writes fail from one on: before they are done, or with the answer lost."""

    def __init__(self, inner: Store, fails_at: int, *, writes: bool) -> None:
        self._inner, self._left, self._writes = inner, fails_at, writes
        self.uri, self.list, self.head = inner.uri, inner.list, inner.head
        self.get, self.get_range, self.delete = inner.get, inner.get_range, inner.delete

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        self._left -= 1
        if self._left >= 0 or self._writes:
            self._inner.put(key, data, create=create, if_match=if_match)
        if self._left < 0:
            raise StoreDown("no answer")
        return None


def small_lake(count: int) -> list[Listed]:
    """Images, some of them labelled, and other things between and behind them."""
    listed: list[Listed] = []
    for number in range(count):
        listed.append(Skipped(f"s3://b/{number:04d}.jpg", "duplicate"))
        listed.append(LakeObject(f"s3://b/{number:04d}.jpg", str(number), number))
        listed.append(Skipped(f"s3://b/{number:04d}.json", ".json"))
    return listed


@settings(deadline=None, max_examples=50)
@example(count=30, labelled={3, 9}, crashes=[(2, False)], sample=20, most=None)
@example(count=30, labelled={3, 9}, crashes=[(2, False), (1, True)], sample=None, most=20)
@given(
    count=st.integers(0, 30),
    labelled=st.sets(st.integers(0, 29), max_size=10),
    crashes=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4),
    sample=st.none() | st.integers(1, 25),
    most=st.none() | st.integers(1, 32),
)
def test_an_interrupted_plan_becomes_the_uninterrupted_one(
    count: int, labelled: set[int], crashes: list[tuple[int, bool]], sample: int | None, most: int | None
) -> None:
    keys = labelled_keys((f"s3://b/{number:04d}.jpg", str(number)) for number in labelled)
    listing = listing_of(small_lake(count))

    def plan(table: Store) -> list[PlannedSegment]:
        first = None if sample else most
        selection = Selection(sample=sample, max_images=first)
        return list(write_plan(table, "run", listing, keys.contains, shard_images=1, selection=selection))

    whole, broken = memory_store(), memory_store()
    with short_segments():
        expected = plan(whole)
        for fails_at, writes in crashes:
            try:
                plan(Failing(broken, fails_at, writes=writes))
            except StoreDown:
                continue

        assert plan(broken) == expected
        assert plan(broken) == expected  # and again, from what is durable alone
    assert contents(broken) == contents(whole)


def contents(table: Store) -> dict[str, bytes]:
    return {entry.key: table.get(entry.key).data for entry in table.list()}


LAKES = st.sets(st.integers(0, 30))


@settings(deadline=None, max_examples=50)
@example(order=[False, True], first=set(range(0, 30, 2)), second=set(range(0, 30, 3)))
@example(order=[False, True, True], first=set(range(0, 31, 2)), second=set(range(0, 31, 4)))
@given(order=st.lists(st.booleans(), max_size=12), first=LAKES, second=LAKES)
def test_two_planners_who_see_different_lakes_end_with_one_plan(
    order: list[bool], first: set[int], second: set[int]
) -> None:
    table = memory_store()
    planners = [
        write_plan(
            table, "run", listing_of([images(31)[number] for number in sorted(lake)]), none_labelled, shard_images=1
        )
        for lake in (first, second)
    ]
    found: list[list[PlannedSegment]] = [[], []]

    with short_segments():
        for which in [*order, *[False] * 12, *[True] * 12]:
            segment = next(planners[which], None)
            if segment is not None:
                found[which].append(segment)
        uris = [uri for shard in planned_uris(table, found[0]) for uri in shard]

    assert found[0] == found[1]
    assert uris == sorted(set(uris))
    names = [{f"s3://b/{number:06d}.jpg" for number in lake} for lake in (first, second)]
    assert names[0] & names[1] <= set(uris) <= names[0] | names[1]
    assert read_complete(table, "run").images == len(uris)


def test_a_sealed_plan_stops_the_planner() -> None:
    table = memory_store()
    planner = write_plan(table, "run", listing_of(images(100)), none_labelled, shard_images=1)
    first = next(planner)
    write_segment(table, "run", Segment(1, (), first.position), NO_COLUMNS, ending="sealed")

    with pytest.raises(RayDetrError, match="run run of memory://store was sealed by another command"):
        next(planner)
    with pytest.raises(RayDetrError, match="run run of memory://store was sealed"):
        list(write_plan(table, "run", listing_of(images(100)), none_labelled, shard_images=1))


def test_a_list_whose_kept_column_changed_its_type_is_refused_on_resume() -> None:
    table = memory_store()
    listed: list[Listed] = [LakeObject(f"{number:03d}", kept=(number,)) for number in range(100)]
    next(write_plan(table, "run", listing_of(listed, pa.schema([("n", pa.int64())])), none_labelled, shard_images=1))
    changed = listing_of(listed, pa.schema([("n", pa.string())]))

    with pytest.raises(RayDetrError, match=r"other types than when run run began \(n: int64\)"):
        list(write_plan(table, "run", changed, none_labelled, shard_images=1))


def test_a_plan_that_an_earlier_release_began_with_an_empty_kept_column_is_resumed() -> None:
    table = memory_store()
    nulls, texts = pa.schema([("n", pa.null())]), pa.schema([("n", pa.string())])
    listed: list[Listed] = [LakeObject(f"s3://b/{number:03}", "e", 1, (None,)) for number in range(70)]
    next(write_plan(table, "run", listing_of(listed, nulls), none_labelled, shard_images=1))
    filled = [*listed[:-1], LakeObject("s3://b/069", "e", 1, ("x",))]

    with pytest.raises(RayDetrError, match=r"other types than when run run began \(n: null\)"):
        list(write_plan(table, "run", listing_of(filled, texts), none_labelled, shard_images=1))
    segments = list(write_plan(table, "run", listing_of(listed, texts), none_labelled, shard_images=1))

    assert planned_uris(table, segments) == [[f"s3://b/{number:03}"] for number in range(70)]
    assert read_kept_schema(table, "run") == nulls
    assert read_planned(table, "run", 1)[1] == nulls


def test_a_plan_that_an_earlier_release_began_in_another_order_of_addresses_is_not_resumed() -> None:
    table = memory_store()
    earlier: list[Listed] = [LakeObject(f"file:///data/x/../{number:03}.jpg", "e", 1) for number in range(70)]
    next(write_plan(table, "run", listing_of(earlier), none_labelled, shard_images=1))
    today: list[Listed] = [LakeObject(f"file:///data/{number:03}.jpg", "e", 1) for number in range(70)]

    with pytest.raises(RayDetrError, match=r"began run run with addresses such as file:///data/x/\.\./.*--new-run"):
        list(write_plan(table, "run", listing_of(today), none_labelled, shard_images=1))


def test_a_plan_that_an_earlier_release_began_with_categories_is_resumed() -> None:
    table = memory_store()
    categories = pa.schema([("n", pa.dictionary(pa.int8(), pa.string()))])
    listed: list[Listed] = [LakeObject(f"s3://b/{number:03}", "e", 1, (f"{number % 2}",)) for number in range(70)]
    next(write_plan(table, "run", listing_of(listed, categories), none_labelled, shard_images=1))

    texts = listing_of(listed, pa.schema([("n", pa.string())]))
    segments = list(write_plan(table, "run", texts, none_labelled, shard_images=1))

    assert planned_uris(table, segments) == [[f"s3://b/{number:03}"] for number in range(70)]
    assert [item.kept for shard in (0, 69) for item in read_shard(table, "run", shard)] == [("0",), ("1",)]
    assert read_planned(table, "run", 1)[1] == categories


def test_a_plan_has_the_places_of_images_inside_files_and_is_of_the_former_version_without_any() -> None:
    table = memory_store()
    kept = pa.schema([("offset", pa.int64())])  # a list may have a column of this name
    inside = [LakeObject("a.tar#/1.jpg", "e", 5, (7,), 512), LakeObject("a.tar#/2.jpg", "e", 6, (8,), 1536)]
    loose = [LakeObject("b.jpg", "f", 9, (9,))]

    list(write_plan(table, "both", listing_of([*inside, *loose], kept), none_labelled, shard_images=2))
    list(write_plan(table, "loose", listing_of(loose, kept), none_labelled, shard_images=2))

    assert read_shard(table, "both", 0) == tuple(inside)
    assert read_shard(table, "both", 1) == tuple(loose)
    assert read_shard(table, "loose", 0) == tuple(loose)
    assert read_kept_schema(table, "both") == read_kept_schema(table, "loose") == kept
    files = [pq.ParquetFile(pa.BufferReader(table.get(segment_key(run, 0)).data)) for run in ("both", "loose")]
    assert [json.loads(file.metadata.metadata[b"ray_detr.segment"])["version"] for file in files] == [2, 1]
    assert [file.schema_arrow.names for file in files] == [
        ["uri", "etag", "size", "offset", "offset"],
        ["uri", "etag", "size", "offset"],
    ]
    assert [segment.images for segment in read_manifest(table, "both")] == [3, 0]


def planned_table() -> Store:
    table = memory_store()
    list(write_plan(table, "run", listing_of(images(150)), none_labelled, shard_images=1))
    return table


def test_the_files_of_a_plan_are_read_in_the_order_of_their_numbers() -> None:
    table = memory_store()
    for index in (9_999, 100_000, 10_000, 99_999, 100_001, 10_001):
        table.put(segment_key("run", index), b"")
    table.put("_runs/run/plan/complete.json", b"{}")
    table.put("_runs/run/plan/10002 (1).plan", b"")

    listed = [index for index, _ in list_segments(table, "run")]

    assert listed == [9_999, 10_000, 10_001, 99_999, 100_000, 100_001]


def test_a_missing_segment_is_noticed() -> None:
    table = planned_table()
    table.delete(segment_key("run", 1))

    with pytest.raises(RayDetrError, match=r"memory://store/_runs/run/plan/00001\.plan is missing"):
        list(read_manifest(table, "run"))
    with pytest.raises(RayDetrError, match=r"00001\.plan is missing"):
        read_shard(table, "run", 64)


@pytest.mark.parametrize("data", [b"", b"damaged", pytest.param(None, id="cut")])
def test_a_damaged_segment_is_noticed(data: bytes | None) -> None:
    table = planned_table()
    table.put(segment_key("run", 1), table.get(segment_key("run", 1)).data[:-7] if data is None else data)

    with pytest.raises(RayDetrError, match=r"00001\.plan is damaged"):
        list(read_manifest(table, "run"))
    with pytest.raises(RayDetrError, match=r"00001\.plan is damaged"):
        read_shard(table, "run", 64)


def test_a_segment_that_does_not_go_on_from_the_one_before_is_noticed() -> None:
    table, other = planned_table(), memory_store()
    list(
        write_plan(
            other, "run", listing_of(images(151)), none_labelled, shard_images=1, selection=Selection(max_images=70)
        )
    )
    table.put(segment_key("run", 1), other.get(segment_key("run", 1)).data)  # 6 shards, where 64 were planned before
    table.put(segment_key("run", 0), other.get(segment_key("run", 1)).data)

    with pytest.raises(RayDetrError, match=r"00000\.plan is damaged: it does not continue"):
        list(read_manifest(table, "run"))


def test_a_segment_with_other_columns_is_noticed_by_whoever_labels_its_shards() -> None:
    table = planned_table()
    file = pq.ParquetFile(pa.BufferReader(table.get(segment_key("run", 1)).data))
    sink = pa.BufferOutputStream()
    pq.write_table(file.read().drop_columns(["etag"]), sink, row_group_size=1)
    table.put(segment_key("run", 1), sink.getvalue().to_pybytes())

    with pytest.raises(RayDetrError, match=r"00001\.plan is damaged: it does not have the columns of a plan"):
        read_shard(table, "run", 64)


def test_a_parquet_file_that_is_not_a_segment_is_detected() -> None:
    table = planned_table()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": ["a"]}), sink)
    table.put(segment_key("run", 1), sink.getvalue().to_pybytes())

    with pytest.raises(RayDetrError, match=r"00001\.plan is damaged: it cannot be read as a plan"):
        list(read_manifest(table, "run"))


def test_a_shard_that_was_not_planned_is_refused() -> None:
    with pytest.raises(RayDetrError, match="has no shard 150"):
        read_shard(planned_table(), "run", 150)


def test_positions_begin_before_the_first_image() -> None:
    assert ListingPosition() == ListingPosition(None, Counts())


def test_a_summary_says_what_a_run_would_do_and_writes_nothing(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    for number in range(5):
        (lake / f"{number}.jpg").write_bytes(b"12345")
    (lake / "notes.txt").write_bytes(b"")

    config = PlanConfig((str(lake), str(lake / "1.jpg")), str(tmp_path / "table"), shard_images=2)

    assert summarise_plan(config) == PlanSummary(
        images=5,
        size_bytes=25,
        unknown_sizes=0,
        shards=3,
        segments=1,
        labelled=0,
        duplicates=1,
        skipped={".txt": 1},
        unfinished_run=None,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake"]


def test_a_summary_counts_labelled_images_and_names_the_unfinished_run(tmp_path: Path) -> None:
    lake, table = tmp_path / "lake", open_store(str(tmp_path / "table"))
    lake.mkdir()
    for number in range(5):
        (lake / f"{number}.jpg").write_bytes(b"12345")
    now = datetime(2026, 11, 22, tzinfo=UTC)
    rows = [
        Row(item.uri, item.etag, detections=Detected([], (), [], []))
        for item in list_objects([str(lake)])
        if isinstance(item, LakeObject) and item.uri.endswith(("1.jpg", "3.jpg"))
    ]
    table.put("data/x/0.parquet", encode(rows_to_table(rows, origin=Origin("detr@1", 0.5, "x", 0, now))))
    start_run(table, RunRequest("detr@1", "1", {}, 2, {}, "night"), now=now, tail="")

    def summary(model: str) -> PlanSummary:
        return summarise_plan(PlanConfig((str(lake),), table.uri, threshold=0.5, shard_images=2), model=model)

    assert (summary("detr@1").images, summary("detr@1").labelled, summary("detr@1").unfinished_run) == (3, 2, "night")
    assert (summary("detr@2").images, summary("detr@2").labelled) == (5, 0)
    any_rows = PlanConfig((str(lake),), table.uri, shard_images=2, skip_labelled="any")
    assert summarise_plan(any_rows, model="detr@2").images == 3


def test_a_summary_reads_images_and_table_with_the_options_of_the_command(moto: S3Server) -> None:
    images, table = moto.bucket(), moto.bucket()
    lake = open_store(images, moto.options())
    for name in ("a.jpg", "b.jpg"):
        lake.put(name, b"12345")
    start_run(
        open_store(table, moto.options()),
        RunRequest("detr@1", "1", {}, 2, {}, "night"),
        now=datetime(2026, 11, 22, tzinfo=UTC),
        tail="",
    )

    summary = summarise_plan(PlanConfig((images,), table, image_options=moto.options()))

    assert (summary.images, summary.unfinished_run) == (2, "night")


def test_a_summary_takes_the_members_of_an_archive_from_their_index_in_the_table(tmp_path: Path) -> None:
    archive, table = tmp_path / "a.tar", open_store(str(tmp_path / "table"))
    (tmp_path / "1.jpg").write_bytes(b"12345")
    with tarfile.open(archive, "w") as file:
        for name in ("1.jpg", "2.jpg"):
            file.add(tmp_path / "1.jpg", name)
    assert len(list(list_objects([str(archive)], indexes=MemberIndexes(table, keep=True)))) == 2
    written = archive.stat()
    archive.write_bytes(bytes(written.st_size))  # which has no members: whoever reads it finds none
    os.utime(archive, ns=(written.st_atime_ns, written.st_mtime_ns))

    assert summarise_plan(PlanConfig((str(archive),), table.uri)).images == 2


def test_a_summary_is_of_what_the_run_would_be_given(tmp_path: Path) -> None:
    """Kept columns, the table within its own lake, the first or a sample, and what is tried again."""
    lake = tmp_path / "lake"
    lake.mkdir()
    for number in range(200):
        (lake / f"{number:03d}.jpg").write_bytes(b"1" * (number + 1))
    table = open_store(str(lake / "table"))
    now = datetime(2026, 11, 22, tzinfo=UTC)
    failed = [Row(item.uri, item.etag, error_kind="truncated", error="cut") for item in list_objects([str(lake)])]
    rows = rows_to_table(failed[:3], origin=Origin("detr@1", 0.5, "old", 0, now))  # type: ignore[arg-type]
    table.put("data/old/00000.parquet", encode(rows))
    table.put("data/old/not-an-image-of-the-lake.jpg", b"x")

    def summary(**how: Any) -> PlanSummary:
        return summarise_plan(PlanConfig((str(lake),), table.uri, shard_images=2, **how))

    assert (summary().images, summary().labelled, summary().segments) == (197, 3, 2)
    assert summary(retry_errors="all").labelled == 0
    assert (summary(max_images=10).images, summary(max_images=10).size_bytes) == (7, sum(range(4, 11)))
    drawn = {summary(sample=10, seed=seed).size_bytes for seed in range(4)}
    assert summary(sample=10).images + summary(sample=10).labelled == 10
    assert len(drawn) > 1  # two of four draws may have the same size by chance, which depends on the test's folder
    uris = tmp_path / "uris.csv"
    uris.write_text("uri\n/lake/a.jpg\n")
    with pytest.raises(RayDetrError, match="there is no column 'camera'"):
        summarise_plan(PlanConfig((str(uris),), table.uri, keep=("camera",)))
    os.utime(lake / "100.jpg", (now.timestamp(), now.timestamp()))
    os.utime(lake / "101.jpg", (now.timestamp() - 1, now.timestamp() - 1))
    since = summary(modified_since=now)
    assert (since.images + since.labelled, since.skipped[NOT_MODIFIED]) == (199, 1)


def test_a_summary_has_the_shards_of_gpus_and_smaller_ones_with_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (tmp_path / f"{number:03d}.jpg").write_bytes(b"x")
    for kind, images in (("GPU", 16), ("CPU", 1)):
        monkeypatch.setattr(f"pipelines.labelling.plan.{kind}_SHARD_IMAGES", images)
    config = PlanConfig((str(tmp_path),), str(tmp_path / "table"))

    assert summarise_plan(config).shards == 2
    assert summarise_plan(replace(config, tiles=(256, 256))).shards == 10
    assert summarise_plan(replace(config, shard_images=5)).shards == 4
    assert usual_shard_images(gpus=False, tiled=False) == 1


def test_a_summary_counts_the_images_inside_files(tmp_path: Path) -> None:
    table = pa.table({"picture": [b"1234", b"12"], "image": [b"", b""]})
    pq.write_table(table, tmp_path / "pictures.parquet")

    summary = summarise_plan(
        PlanConfig((str(tmp_path / "pictures.parquet"),), str(tmp_path / "table"), image_column="picture")
    )

    assert summary.images == 2
