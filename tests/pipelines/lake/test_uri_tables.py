"""Tables of URIs: which column holds them, and what comes along."""

from __future__ import annotations

import gzip
import json
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError
from pipelines.lake.uri_tables import is_uri_table, read_uri_table
from pipelines.store import Store, open_store
from tests.memory_store import memory_store


def parquet(columns: dict[str, object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def csv(*lines: str) -> bytes:
    return "\n".join(lines).encode()


def jsonl(*rows: dict[str, object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def store_with(key: str, data: bytes) -> Store:
    store = memory_store("s3://lists")
    store.put(key, data)
    return store


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.parquet", parquet({"uri": ["s3://b/b.jpg", "s3://b/a.jpg"], "etag": ["e2", "e1"], "size": [2, 1]})),
        ("x.csv", csv("uri,etag,size", "s3://b/b.jpg,e2,2", "s3://b/a.jpg,e1,1")),
        ("x.csv.gz", gzip.compress(csv("uri,etag,size", "s3://b/b.jpg,e2,2", "s3://b/a.jpg,e1,1"), mtime=0)),
        (
            "x.jsonl",
            jsonl({"uri": "s3://b/b.jpg", "etag": "e2", "size": 2}, {"uri": "s3://b/a.jpg", "etag": "e1", "size": 1}),
        ),
        (
            "x.ndjson.gz",
            gzip.compress(
                jsonl(
                    {"size": 2, "etag": "e2", "uri": "s3://b/b.jpg"}, {"uri": "s3://b/a.jpg", "etag": "e1", "size": 1}
                ),
                mtime=0,  # the name of a test is made of this, and must be the same in each of pytest's processes
            ),
        ),
    ],
)
def test_every_format_gives_the_images_in_the_order_of_their_uris(name: str, data: bytes) -> None:
    table = read_uri_table(store_with(name, data), name)

    assert list(table.after(None)) == [("s3://b/a.jpg", "e1", 1, ()), ("s3://b/b.jpg", "e2", 2, ())]
    assert list(table.after("s3://b/a.jpg")) == [("s3://b/b.jpg", "e2", 2, ())]


@pytest.mark.parametrize(
    ("columns", "uri"),
    [
        ({"path": ["s3://b/p"], "image": ["s3://b/i"], "url": ["s3://b/u"], "uri": ["s3://b/r"]}, "s3://b/r"),
        ({"path": ["s3://b/p"], "image": ["s3://b/i"], "URL": ["s3://b/u"]}, "s3://b/u"),
        ({"name": ["s3://b/n"], "image": [7], "path": ["s3://b/p"]}, "s3://b/p"),
        ({"where": ["s3://b/w"], "width": [640]}, "s3://b/w"),
    ],
)
def test_the_column_of_uris_is_known_by_name_or_by_being_the_only_text(columns: dict[str, object], uri: str) -> None:
    table = read_uri_table(store_with("x.parquet", parquet(columns)), "x.parquet")

    assert [row[0] for row in table.after(None)] == [uri]


def test_a_table_that_does_not_say_where_the_images_are_is_refused_with_its_columns() -> None:
    store = store_with("x.csv", csv("species,station", "fox,north"))

    with pytest.raises(
        RayDetrError,
        match=r"s3://lists/x\.csv does not say .* columns species \(text\), station \(text\)\. Name the column",
    ):
        read_uri_table(store, "x.csv")


def test_sizes_and_etags_may_be_unknown_and_etags_lose_their_quotes() -> None:
    data = jsonl(
        {"url": "s3://b/1", "etag": '"abc"'},
        {"url": "s3://b/2", "etag": 'W/"def"', "size": 3},
        {"url": "s3://b/3", "etag": ""},
    )

    rows = read_uri_table(store_with("x.jsonl", data), "x.jsonl").after(None)

    assert [(etag, size) for _, etag, size, _ in rows] == [("abc", None), ("def", 3), (None, None)]


@pytest.mark.parametrize("size", [-1, 2**48 + 1, 2**63 - 1])
def test_a_size_that_no_object_can_have_is_refused(size: int) -> None:
    data = csv("uri,size", "s3://b/1,5", f"s3://b/2,{size}", "s3://b/3,")

    with pytest.raises(RayDetrError, match=rf"x\.csv says that s3://b/2 has {size:,} bytes, which no object can have"):
        read_uri_table(store_with("x.csv", data), "x.csv")


def test_columns_named_size_or_etag_that_hold_something_else_are_not_used() -> None:
    data = csv("uri,size,etag", "s3://b/1,large,17")

    assert list(read_uri_table(store_with("x.csv", data), "x.csv").after(None)) == [("s3://b/1", "17", None, ())]


def test_rows_that_name_nothing_are_counted() -> None:
    data = jsonl({"uri": "s3://b/1"}, {"uri": None}, {"uri": " "}, {"other": 1})

    table = read_uri_table(store_with("x.jsonl", data), "x.jsonl")

    assert [row[0] for row in table.after(None)] == ["s3://b/1"]
    assert table.without_uri == 3


def test_relative_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    data = csv("path", "img/a.jpg", "../b.jpg", "/abs/c.jpg", "s3://b/d.jpg")
    store = open_store("file:///")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "x.csv").write_bytes(data)

    table = read_uri_table(store, f"{str(tmp_path)[1:]}/lists/x.csv")

    assert {row[0] for row in table.after(None)} == {
        f"file://{tmp_path}/lists/img/a.jpg",
        f"file://{tmp_path}/b.jpg",
        "file:///abs/c.jpg",
        "s3://b/d.jpg",
    }


def test_relative_paths_of_a_list_in_a_store_lie_in_the_same_store() -> None:
    table = read_uri_table(store_with("day/x.csv", csv("path", "a b.jpg")), "day/x.csv")

    assert [row[0] for row in table.after(None)] == ["s3://lists/day/a b.jpg"]


def test_kept_columns_come_along_with_their_types() -> None:
    data = parquet(
        {
            "uri": ["s3://b/2", "s3://b/1"],
            "station": pa.array([2, 1], pa.int16()),
            "seen": pa.array([None, datetime(2026, 1, 2, 3, 4, 5, 6)], pa.timestamp("ns")),  # noqa: DTZ001
            "unused": ["x", "y"],
        }
    )

    table = read_uri_table(store_with("x.parquet", data), "x.parquet", keep=("station", "seen", "elsewhere"))

    assert [kept for *_, kept in table.after(None)] == [(1, datetime(2026, 1, 2, 3, 4, 5, 6)), (2, None)]  # noqa: DTZ001
    assert table.rows.schema.field("station").type == pa.int16()
    assert table.columns == ("uri", "station", "seen", "unused")


def test_nanoseconds_that_would_be_lost_are_refused() -> None:
    data = parquet({"uri": ["s3://b/1"], "seen": pa.array([1], pa.timestamp("ns"))})

    with pytest.raises(RayDetrError, match=r"column 'seen' of s3://lists/x\.parquet has fractions of a microsecond"):
        read_uri_table(store_with("x.parquet", data), "x.parquet", keep=("seen",))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array(["south", "north"], pa.string_view()), pa.string()),
        (pa.array([b"s", b"n"], pa.binary_view()), pa.binary()),
    ],
    ids=["text", "bytes"],
)
def test_views_are_kept_as_plain_values(values: pa.Array, kind: pa.DataType) -> None:
    data = parquet({"uri": ["s3://b/2", "s3://b/1"], "k": values})

    table = read_uri_table(store_with("x.parquet", data), "x.parquet", keep=("k",))

    assert table.rows.schema.field("k").type == kind
    assert [kept for *_, kept in table.after(None)] == [(value,) for value in reversed(values.to_pylist())]


LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59 since 1970
FIRST_SECOND = -62_135_596_800  # 0001-01-01T00:00:00


@pytest.mark.parametrize(
    ("kind", "last", "beyond"),
    [
        (pa.timestamp("us"), LAST_SECOND * 10**6 + 999_999, 2**63 - 1),  # infinity in databases
        (pa.timestamp("us"), FIRST_SECOND * 10**6, -(2**63) + 1),
        (pa.timestamp("us", "UTC"), LAST_SECOND * 10**6 + 999_999, (LAST_SECOND + 1) * 10**6),
        (pa.timestamp("ms", "Asia/Tokyo"), (LAST_SECOND - 86_400) * 1_000, LAST_SECOND * 1_000),
        (pa.timestamp("s"), LAST_SECOND, LAST_SECOND + 1),
        (pa.timestamp("s"), FIRST_SECOND, FIRST_SECOND - 1),
        (pa.date32(), 2_932_896, 2_932_897),
        (pa.date64(), 2_932_896 * 86_400_000, 2_932_897 * 86_400_000),
        (pa.duration("s"), 86_399_999_999_999 - 86_400, 2**62),
    ],
    ids=["infinity", "minus infinity", "UTC", "zone", "seconds", "year 0", "days", "milliseconds of days", "duration"],
)
def test_times_that_python_cannot_represent_are_refused_before_a_run_begins(
    kind: pa.DataType, last: int, beyond: int
) -> None:
    def read(value: int) -> list[object]:
        numbers = pa.array([0, None, value], pa.int64())
        column = numbers.cast(pa.int32()).cast(kind) if kind == pa.date32() else numbers.cast(kind)
        data = parquet({"uri": ["s3://b/1", "s3://b/2", "s3://b/3"], "until": column})
        return [
            kept for *_, kept in read_uri_table(store_with("x.parquet", data), "x.parquet", keep=("until",)).after(None)
        ]

    assert len(read(last)) == 3
    with pytest.raises(
        RayDetrError, match=r"column 'until' of s3://lists/x\.parquet has times that Python cannot repres"
    ):
        read(beyond)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("x.csv", b"uri,size\ns3://b/1,2,3\n", "CSV"),
        ("x.csv.gz", gzip.compress(b"uri\ns3://b/1\n", mtime=0)[:-9], "CSV"),
        ("x.jsonl", b'{"uri": ', "JSONL"),
        ("x.jsonl.gz", gzip.compress(b'{"uri": "s3://b/1"}', mtime=0)[:-9], "JSONL"),
    ],
)
def test_a_damaged_list_is_refused_in_a_sentence(name: str, data: bytes, kind: str) -> None:
    with pytest.raises(RayDetrError, match=rf"s3://lists/{name} cannot be read as {kind}: "):
        read_uri_table(store_with(name, data), name)


def test_a_damaged_parquet_list_is_refused_in_a_sentence() -> None:
    with pytest.raises(RayDetrError, match=r"s3://lists/x\.parquet is damaged"):
        read_uri_table(store_with("x.parquet", parquet({"uri": ["s3://b/1"]})[:-5]), "x.parquet")


def test_a_list_is_known_by_its_ending() -> None:
    lists = ("s3://b/x.parquet", "x.CSV", "x.jsonl.gz", "https://h/x.csv?signature=a/b.jpg", "x.tsv", "x.txt", "x.json")
    others = ("s3://b/x.jpg", "https://h/x.jpg?list=a.csv", "x.csv/", "parquet")

    assert [is_uri_table(uri) for uri in lists] == [True] * 7
    assert [is_uri_table(uri) for uri in others] == [False] * 4


def test_a_list_with_one_signed_address_is_refused_without_showing_the_signature() -> None:
    store = store_with("x.csv", csv("uri", "https://h/a.jpg?w=1", "https://h/b.jpg?X-Amz-Signature=opensesame"))

    with pytest.raises(RayDetrError, match=r"s3://lists/x\.csv: the address https://h/b\.jpg\?X-Amz-Sig") as refused:
        read_uri_table(store, "x.csv")

    assert "opensesame" not in str(refused.value)


def test_a_list_may_be_fetched_from_a_signed_address() -> None:
    store = store_with("x.csv?X-Amz-Signature=opensesame", csv("uri", "https://h/a.jpg?w=1"))

    table = read_uri_table(store, "x.csv?X-Amz-Signature=opensesame")

    assert table.rows["uri"].to_pylist() == ["https://h/a.jpg?w=1"]
