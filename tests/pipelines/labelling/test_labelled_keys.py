"""What is labelled already, against plain sets."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RayDetrError
from pipelines.labelling.labelled_keys import labelled_keys, read_labelled
from pipelines.lake.lake_object import LakeObject
from pipelines.parquet_files import SMALL_BYTES
from pipelines.store import Store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.memory_store import memory_store

ETAGS = st.none() | st.sampled_from(["", "1", "2"])
URIS = st.sampled_from([f"s3://b/{name}" for name in ("a", "b", "ab", "a\n1", "ä")])
NOTHING = Detected([], (), [], [])


@given(rows=st.lists(st.tuples(URIS, ETAGS), max_size=12), asked=st.lists(st.tuples(URIS, ETAGS), max_size=12))
def test_it_is_a_set_of_uris_with_their_etags(
    rows: list[tuple[str, str | None]], asked: list[tuple[str, str | None]]
) -> None:
    uris, pairs = {uri for uri, _ in rows}, set(rows)

    found = labelled_keys(rows).contains([LakeObject(uri, etag) for uri, etag in asked])

    assert list(found) == [uri in uris if etag is None else (uri, etag) in pairs for uri, etag in asked]


def test_many_keys_are_distinguished() -> None:
    keys = labelled_keys((f"s3://b/{number}", str(number % 7)) for number in range(20_000))
    random = np.random.default_rng(1).permutation(40_000)

    found = keys.contains([LakeObject(f"s3://b/{number}", str(number % 7)) for number in random])

    assert found.tolist() == [bool(number < 20_000) for number in random]
    assert keys.keys.nbytes == 16 * 20_000


ROWS = [
    Row("s3://b/ok", "e", detections=NOTHING),
    Row("s3://b/permanent", "e", error_kind="truncated"),
    Row("s3://b/transient", "e", error_kind="missing"),
]


def publish(table: Store, name: str, model: str, rows: list[Row]) -> None:
    origin = Origin(model, 0.5, "run", 0, datetime(2026, 11, 22, tzinfo=UTC))
    table.put(f"data/run/{name}.parquet", encode(rows_to_table(rows, origin=origin)))


def names(table: Store, model: str | None, **options: str) -> list[str]:
    asked = ["ok", "permanent", "transient", "other"]
    keys = read_labelled(table, model, threads=2, **options)  # type: ignore[arg-type]
    return [
        name
        for name, found in zip(asked, keys.contains([LakeObject(f"s3://b/{name}", "e") for name in asked]), strict=True)
        if found
    ]


def test_ok_rows_and_permanent_errors_of_the_model_count() -> None:
    table = memory_store()
    publish(table, "0", "detr@1", ROWS)
    publish(table, "1", "other@2", [Row("s3://b/other", "e", detections=NOTHING), ROWS[2]])
    publish(table, "2", "detr@1", [])

    assert names(table, "detr@1") == ["ok", "permanent"]
    assert names(table, "other@2") == ["other"]
    assert names(table, None) == ["ok", "permanent", "other"]
    assert names(table, "detr@1", retry_errors="all") == ["ok"]
    assert names(table, "detr@1", retry_errors="passing") == names(table, "detr@1")  # its former name
    assert names(table, "third@3") == []


def test_files_of_many_rows_are_read_piece_by_piece_and_nothing_is_lost() -> None:
    table = memory_store()
    rows = [
        Row(f"s3://b/{number}", str(number), detections=NOTHING)
        if number % 3
        else Row(f"s3://b/{number}", error_kind="missing")
        for number in range(40_000)
    ]
    publish(table, "0", "detr@1", rows)

    keys = read_labelled(table, "detr@1")

    found = keys.contains([LakeObject(row.uri, str(number)) for number, row in enumerate(rows)])
    assert found.tolist() == [number % 3 > 0 for number in range(40_000)]


def test_one_thread_reads_the_same() -> None:
    table = memory_store()
    for number in range(5):
        publish(table, str(number), "detr@1", [Row(f"s3://b/{number}", "e", detections=NOTHING)])

    assert read_labelled(table, None, threads=1).keys.tolist() == read_labelled(table, None, threads=4).keys.tolist()


def test_a_table_that_does_not_exist_has_labelled_nothing() -> None:
    assert not read_labelled(memory_store(), "detr@1").contains([LakeObject("s3://b/a")]).any()


def test_only_published_files_are_read() -> None:
    table = memory_store()
    table.put("data/run/00001.parquet.tmp", b"not a table")
    table.put("_runs/run/parts/00001.part", b"not a table")

    assert names(table, "detr@1") == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"damaged", r"memory://store/data/x\.parquet is damaged: it cannot be read as Parquet"),
        (encode(pa.table({"uri": ["a"], "etag": ["b"]})), r"data/x\.parquet has no column error_kind, model, status"),
    ],
)
def test_a_file_that_is_not_of_a_table_stops_the_planning(data: bytes, sentence: str) -> None:
    table = memory_store()
    table.put("data/x.parquet", data)

    with pytest.raises(RayDetrError, match=sentence):
        read_labelled(table, "detr@1")


def test_of_a_large_file_only_the_columns_of_keys_are_fetched() -> None:
    table, random = memory_store(), np.random.default_rng(0)
    detected = [
        Detected(range(50), ("label",) * 50, random.random(50, "f4"), random.random((50, 4), "f4"))
        for _ in range(3_000)
    ]
    publish(table, "0", "detr@1", [Row(f"s3://b/{n}", "e", detections=found) for n, found in enumerate(detected)])
    size = next(table.list("data/")).size
    fetched = []

    class Counting:
        uri, list = table.uri, table.list

        def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
            fetched.append(length)
            return table.get_range(key, start, length)

    read_labelled(Counting(), "detr@1")  # type: ignore[arg-type]

    assert size is not None
    assert size > SMALL_BYTES
    assert sum(fetched) < size / 10 + 2 * 65_536  # footers are looked for in the last 64 KiB
    assert len(fetched) <= 4
