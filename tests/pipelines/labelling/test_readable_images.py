"""Which images of a bucket an earlier attempt or run has read, and what it takes to find them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pipelines.labelling.publish import part_key
from pipelines.labelling.readable_images import readable_images
from pipelines.store import Store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.memory_store import memory_store

ORIGIN = Origin("tiny@1", 0.5, "run-1", 0, datetime(2026, 11, 30, tzinfo=UTC))
NOTHING = Detected([], [], [], [])


def file_of(ok: Sequence[str] = (), *, denied: Sequence[str] = ()) -> bytes:
    rows = [Row(uri, detections=NOTHING) for uri in ok] + [Row(uri, error_kind="denied", error="no") for uri in denied]
    return encode(rows_to_table(sorted(rows, key=lambda row: row.uri), origin=ORIGIN))


def found(table: Store, shard: int = 0, root: str = "s3://lake") -> list[str]:
    return list(readable_images(table, "run-1", shard, root.__eq__))


def test_images_of_the_bucket_with_ok_rows_are_found_and_no_others() -> None:
    table = memory_store()
    mixed = ["gs://lake/1.jpg", "s3://lake/2.jpg", "s3://lake/3.jpg", "s3://lake2/4.jpg", "/lake/5.jpg"]
    table.put("data/run-0-00000.parquet", file_of(mixed, denied=["s3://lake/0.jpg", "s3://lake/9.jpg"]))

    assert found(table) == ["s3://lake/2.jpg", "s3://lake/3.jpg"]
    assert found(table, root="file:///") == ["/lake/5.jpg"]
    assert found(table, root="s3://other") == []


def test_parts_near_the_shard_come_first_then_the_newest_and_the_oldest_files() -> None:
    table = memory_store()
    for shard in (3, 7, 20):
        table.put(part_key("run-1", shard), file_of([f"s3://lake/part-{shard}.jpg"]))
    for night in (1, 2, 3):
        table.put(f"data/2026110{night}T020000Z-aaaa-00000.parquet", file_of([f"s3://lake/night-{night}.jpg"]))

    names = [uri.removeprefix("s3://lake/").removesuffix(".jpg") for uri in found(table, shard=8)]

    assert names == ["part-7", "part-3", "part-20", "night-3", "night-1", "night-2"]


class Counting:
    """A table that counts the reads of its files."""

    def __init__(self, table: Store) -> None:
        self._table, self.uri, self.reads = table, table.uri, 0

    def __getattr__(self, name: str) -> object:
        self.reads += name in ("get", "get_range")
        return getattr(self._table, name)


def test_of_a_thousand_nights_that_read_nothing_few_are_looked_at() -> None:
    table = memory_store()
    table.put("data/20240101T020000Z-aaaa-00000.parquet", file_of(["s3://lake/1.jpg"]))
    quiet = file_of(denied=["s3://lake/private/1.jpg"])
    for night in range(1000):
        table.put(f"data/20260101T{night:06d}Z-aaaa-00000.parquet", quiet)
    counting = Counting(table)

    assert next(readable_images(counting, "run-1", 0, "s3://lake".__eq__)) == "s3://lake/1.jpg"  # type: ignore[arg-type]
    assert counting.reads < 20
