"""Labelling segments whatever dies: what is missing runs again, what is there is published, what is hopeless stops."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime

import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling.manifest import SEGMENT_SHARDS, PlannedSegment, read_shard
from pipelines.labelling.outcome import Failed, Lost, Outcome, ShardReport
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, read_done, remove_parts, verify_run
from pipelines.labelling.run import Run
from pipelines.labelling.seal import seal_run
from pipelines.labelling.segments import ShardsLost, _Losses, label_segments, publishing
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Blob, Denied, NotFound, Store
from pipelines.table.files import table_file_key
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, decode, rows_to_table
from tests.memory_store import memory_store

NOW = datetime(2026, 11, 22, tzinfo=UTC)
RUN = Run("run-1", 1, "detr@1", "1", {"threshold": 0.5}, 1, {}, NOW)
IMAGES = 70  # one a shard: a segment of 64 and one of 6


def planned(table: Store, images: int = IMAGES) -> list[PlannedSegment]:
    def stream(after: str | None) -> Iterator[LakeObject]:
        return (LakeObject(f"s3://b/{number:03d}", "e", 1) for number in range(images))

    plan = write_plan(
        table, "run-1", Listing((stream,), NO_COLUMNS), lambda objects: [False] * len(objects), shard_images=1
    )
    return list(plan)


class Pool:
    """Labels shards as the script says and remembers which it was given; `"commit"` dies between commit and report."""

    def __init__(
        self, table: Store, script: Callable[[int, int], str | Outcome] = lambda shard, turn: "report"
    ) -> None:
        self.table, self.script = table, script
        self.given: list[list[int]] = []
        self.isolated: list[bool] = []
        self.before: Callable[[int], None] = lambda shard: None

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        self.given.append(list(shards))
        self.isolated.append(isolated)
        for shard in reversed(shards):  # in no order
            self.before(shard)
            what = self.script(shard, len(self.given))
            if not isinstance(what, str):
                yield what
            elif what != "die":
                self._commit(shard)
                if what == "report":
                    yield ShardReport(shard, 1, 2, {}, 0.1, 0.0, 0.0, 0.1)

    def _commit(self, shard: int) -> None:
        found = Detected([1, 1], ("cat", "cat"), [0.9, 0.8], [[0, 0, 1, 1]] * 2)
        rows = [Row(item.uri, item.etag, detections=found) for item in read_shard(self.table, "run-1", shard)]
        origin = Origin("detr@1", 0.5, "run-1", shard, NOW)
        commit_part(self.table, "run-1", shard, rows_to_table(rows, origin=origin), token=str(shard))


def label(
    table: Store,
    segments: Sequence[PlannedSegment],
    pool: Pool,
    *,
    is_to_stop: Callable[[], bool] = lambda: False,
    is_complete: bool = True,
) -> list[int]:
    reported: list[int] = []
    with publishing() as publisher:
        complete = label_segments(
            table,
            RUN,
            segments,
            pool,
            on_report=lambda report: reported.append(report.shard),
            publisher=publisher,
            is_to_stop=is_to_stop,
        )
    assert complete is is_complete
    return reported


def published_uris(table: Store) -> list[str]:
    files = [decode(table.get(entry.key).data) for entry in table.list("data/")]
    return [uri for file in files for uri in file["uri"].to_pylist()]


def test_all_segments_are_labelled_and_published(store: Store) -> None:
    segments = planned(store, images=5)
    pool = Pool(store)

    assert sorted(label(store, segments, pool)) == list(range(5))

    assert pool.given == [list(range(5))]
    assert published_uris(store) == [f"s3://b/{number:03d}" for number in range(5)]
    assert verify_run(store, "run-1", "flat", segments).rows == 5


def test_lost_shards_are_run_again_and_each_report_counts_once() -> None:
    table = memory_store()
    segments = planned(table)
    pool = Pool(table, lambda shard, turn: "die" if shard in (3, 66) and turn < 3 else "report")

    reported = label(table, segments, pool)

    assert pool.given == [list(range(70)), [3, 66], [3, 66]]
    assert pool.isolated == [False, True, True]
    assert sorted(reported) == list(range(70))
    assert verify_run(table, "run-1", "flat", segments).rows == 70


def test_a_shard_that_died_after_its_commit_is_not_labelled_again() -> None:
    table = memory_store()
    segments = planned(table)
    pool = Pool(table, lambda shard, turn: "commit" if shard == 3 else "report")

    reported = label(table, segments, pool)

    assert pool.given == [list(range(70))]
    assert 3 not in reported
    assert len(published_uris(table)) == 70


def test_the_last_time_that_a_shard_is_run_counts_though_its_process_died_after_the_commit() -> None:
    table = memory_store()
    segments = planned(table, images=3)
    pool = Pool(table, lambda shard, turn: "report" if shard != 1 else "die" if turn < 3 else "commit")

    label(table, segments, pool)

    assert pool.given == [[0, 1, 2], [1], [1]]
    assert len(published_uris(table)) == 3


def test_what_an_earlier_start_committed_or_published_is_not_labelled_again() -> None:
    table = memory_store()
    first, second = planned(table)
    label(table, [first], Pool(table))
    list(Pool(table).label(RUN, [64, 65], isolated=False))
    pool = Pool(table)

    label(table, [first, second], pool)

    assert pool.given == [[66, 67, 68, 69]]
    assert len(set(published_uris(table))) == len(published_uris(table)) == 70


def test_images_that_are_done_are_counted_once_whether_published_or_not() -> None:
    table = memory_store()
    first, second = planned(table)
    label(table, [first], Pool(table))
    list(Pool(table).label(RUN, [64, 65], isolated=False))

    assert read_done(table, "run-1", "flat").count_images([first, second]) == 66

    remove_parts(table, "run-1")
    assert read_done(table, "run-1", "flat").count_images([first, second]) == 64


def test_parts_that_are_all_there_are_published_without_labelling_anything() -> None:
    table = memory_store()
    segments = planned(table, images=3)
    list(Pool(table).label(RUN, [0, 1, 2], isolated=False))
    pool = Pool(table)

    assert label(table, segments, pool) == []
    assert pool.given == []
    assert len(published_uris(table)) == 3


def test_a_segment_is_published_when_its_last_part_is_there_and_not_at_the_end() -> None:
    table = memory_store()
    segments = planned(table)
    seen: list[frozenset[int]] = []

    def script(shard: int, turn: int) -> str | Outcome:
        if shard < 64 and turn == 1:
            return "die"
        seen.append(read_done(table, "run-1", "flat").published)
        return "report"

    label(table, segments, Pool(table, script))

    assert seen[-1] == {1}  # while the last shard of the first segment was labelled


def test_what_was_lost_is_counted_in_words() -> None:
    one = ShardsLost("night", 7, "NaN", shards=1, images=1, waiting=0)
    several = one + ShardsLost("night", 9, "NaN", shards=2, images=127, waiting=1_000)

    assert str(one) == (
        "shard 7 of run night was lost 3 times (NaN). 1 image is not labelled. All other images are published; run the "
        "same command again to retry."
    )
    assert str(several) == (
        "shard 7 of run night was lost 3 times, and so were 2 others (NaN). 128 images are not labelled. 1,000 "
        "labelled images of the same table files are not published yet. All other images are published; run the same "
        "command again to retry."
    )
    assert "and so was 1 other (NaN)" in str(one + one)


def test_a_shard_that_is_lost_every_time_stops_the_run_and_all_else_is_done() -> None:
    table = memory_store()
    segments = planned(table)
    pool = Pool(table, lambda shard, turn: "die" if shard in (65, 67, 69) else "report")

    with pytest.raises(
        RayDetrError, match=r"shard 65 of run run-1 was lost 3 times, and so were 2 others \(its process"
    ):
        label(table, segments, pool)

    assert pool.given == [list(range(70)), [65, 67, 69], [65, 67, 69]]
    assert read_done(table, "run-1", "flat").published == {0}


def test_the_sentence_says_what_a_lost_shard_said() -> None:
    table = memory_store()
    pool = Pool(table, lambda shard, turn: Lost(f"division of {shard} by zero", shard) if shard < 2 else "report")

    with pytest.raises(
        RayDetrError, match=r"shard 0 .* was lost 3 times, and so was 1 other \(division of 0 by zero\)\. 2 images are"
    ):
        label(table, planned(table, images=3), pool)


def test_each_failure_is_reported_once_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    table = memory_store()
    pool = Pool(table, lambda shard, turn: Lost("node 10.0.0.7: no driver", shard) if turn == 1 else "report")

    label(table, planned(table, images=3), pool)

    assert [record.message for record in caplog.records] == ["a shard was lost: node 10.0.0.7: no driver"]


def test_a_shard_that_is_lost_once_with_a_reason_is_run_again() -> None:
    table = memory_store()
    segments = planned(table, images=3)
    pool = Pool(table, lambda shard, turn: Lost("memory", shard) if turn == 1 else "report")

    assert sorted(label(table, segments, pool)) == [0, 1, 2]


def test_a_failure_of_the_first_shards_stops_the_run_after_them() -> None:
    table = memory_store()
    segments = planned(table)
    pool = Pool(table, lambda shard, turn: Lost(f"NaN in image {shard}", shard))
    tried: list[int] = []
    pool.before = tried.append

    with pytest.raises(
        RayDetrError, match=r"^NaN in image 62\. 8 shards were lost in this way, and none was labelled\. Run"
    ):
        label(table, segments, pool)

    assert tried == [69, 68, 67, 66, 65, 64, 63, 62]


@pytest.mark.parametrize("reason", ["no space is left!", "which device?", "NaN.", "NaN"])
def test_a_reason_becomes_one_sentence(reason: str) -> None:
    pool = Pool(table := memory_store(), lambda shard, turn: Lost(reason, shard))

    end = "" if reason[-1] in ".!?" else "."
    with pytest.raises(RayDetrError, match=re.escape(f"{reason}{end} 8 shards were lost in this way")):
        label(table, planned(table), pool)


def test_as_many_losses_as_shards_that_an_earlier_start_committed_stop_no_run() -> None:
    losses = _Losses(has_labelled=False, committed=20)
    for shard in range(20):
        losses.add(Lost("NaN", shard))

    with pytest.raises(RayDetrError, match="21 shards were lost in this way"):
        losses.add(Lost("NaN", 20))


@pytest.mark.parametrize("has_labelled", [False, True])
def test_many_losses_do_not_stop_a_run_that_has_labelled_more(*, has_labelled: bool) -> None:
    table = memory_store()
    segments = planned(table)
    if not has_labelled:  # an earlier start did
        list(Pool(table).label(RUN, range(20), isolated=False))
    pool = Pool(table, lambda shard, turn: Lost("NaN", shard) if shard >= 60 else "report")

    with pytest.raises(ShardsLost, match="was lost 3 times, and so were "), publishing() as publisher:
        label_segments(
            table, RUN, segments, pool, on_report=lambda _: None, publisher=publisher, has_labelled=has_labelled
        )

    assert read_done(table, "run-1", "flat").parts >= set(range(60))


def test_many_losses_do_not_stop_a_run_after_the_first_shard_that_it_labels() -> None:
    table = memory_store()
    pool = Pool(table, lambda shard, turn: Lost("NaN", shard) if shard < 69 else "report")

    with pytest.raises(ShardsLost, match="was lost 3 times, and so were 68 others"):
        label(table, planned(table), pool)


def test_a_system_failure_stops_at_once_and_says_that_the_run_goes_on() -> None:
    table = memory_store()
    segments = planned(table)
    pool = Pool(table, lambda shard, turn: Failed("the lake is gone.") if shard == 60 else "report")

    with pytest.raises(RayDetrError, match=r"^the lake is gone\. Run the same command again to resume"):
        label(table, segments, pool)

    assert read_done(table, "run-1", "flat").parts == {61, 62, 63, *range(64, 70)}
    assert read_done(table, "run-1", "flat").published == {1}  # was complete before


def test_a_run_that_was_sealed_meanwhile_is_not_labelled_to_its_end() -> None:
    table = memory_store()
    segments = planned(table, images=200)
    pool = Pool(table)
    pool.before = lambda shard: seal_run(table, RUN, now=NOW) if shard == 195 else None  # type: ignore[func-returns-value]

    with pytest.raises(RayDetrError, match="was sealed"):
        label(table, segments, pool)

    assert 0 not in read_done(table, "run-1", "flat").parts
    assert published_uris(table) == []


def test_a_table_file_that_cannot_be_written_stops_the_run() -> None:
    class Refusing(type(memory_store())):  # type: ignore[misc]
        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            if key == table_file_key("run-1", 0, "flat"):
                raise Denied(f"{key} is refused")
            found: str | None = super().put(key, data, create=create, if_match=if_match)
            return found

    table = Refusing("memory://table")

    with pytest.raises(Denied, match=r"data/run-1-00000\.parquet is refused"):
        label(table, planned(table, images=3), Pool(table))


def test_a_part_that_vanished_before_its_segment_was_published_is_found_missing() -> None:
    class Forgetful(type(memory_store())):  # type: ignore[misc]
        forgets = True

        def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
            if self.forgets and key.endswith("0000001.part"):
                self.delete(key)
            found: Blob = super().get(key, most_bytes=most_bytes)
            return found

    table = Forgetful("memory://table")
    segments = planned(table, images=3)

    with pytest.raises(NotFound, match="no such object"):
        label(table, segments, Pool(table))

    table.forgets = False
    label(table, segments, Pool(table))  # the same command mends it
    assert len(published_uris(table)) == 3


def test_a_run_that_is_to_stop_publishes_what_is_whole_and_begins_nothing_more(store: Store) -> None:
    segments = planned(store, images=SEGMENT_SHARDS + 3)
    pool = Pool(store, lambda shard, turn: "report" if shard < SEGMENT_SHARDS + 1 else "die")

    assert (
        len(label(store, segments, pool, is_to_stop=lambda: bool(pool.given), is_complete=False)) == SEGMENT_SHARDS + 1
    )
    assert len(published_uris(store)) == SEGMENT_SHARDS
    assert label(store, segments, pool, is_to_stop=lambda: True, is_complete=False) == []
    assert len(pool.given) == 1

    pool.script = lambda shard, turn: "report"
    assert sorted(label(store, segments, pool)) == [SEGMENT_SHARDS + 1, SEGMENT_SHARDS + 2]
    assert len(published_uris(store)) == SEGMENT_SHARDS + 3


def test_what_is_whole_already_is_published_though_the_run_is_to_stop(store: Store) -> None:
    segments = planned(store, images=3)
    pool = Pool(store, lambda shard, turn: "commit")
    label(store, segments, pool)
    for entry in list(store.list("data/")):
        store.delete(entry.key)

    label(store, segments, pool, is_to_stop=lambda: True)

    assert len(published_uris(store)) == 3
