"""Parquet files in stores: only what is asked for is fetched, and what goes wrong is told apart."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import OutOfMemory, RayDetrError
from pipelines.parquet_files import open_bytes, open_object, parquet_of, stored_schema
from pipelines.store import Store, StoreDown
from tests.memory_store import memory_store

TABLE = pa.table({"a": list(range(1000)), "b": [f"text {number * 7919 % 1000}" for number in range(1000)]})


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def test_an_object_reads_like_the_file_it_is(store: Store) -> None:
    store.put("x.parquet", parquet())

    file = open_object(store, "x.parquet", len(parquet()))

    assert file.read().equals(TABLE)
    assert file.read(columns=["a"]).equals(TABLE.select(["a"]))
    assert open_bytes(parquet(), "x").read().equals(TABLE)


def test_a_store_that_fails_is_not_a_damaged_file() -> None:
    inner = memory_store()
    inner.put("x.parquet", parquet())

    class Down:
        uri = inner.uri

        def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
            raise StoreDown("no answer")

    with pytest.raises(StoreDown, match="no answer"):
        open_object(Down(), "x.parquet", len(parquet()))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_mended", [True, False])
def test_an_answer_that_is_cut_off_is_not_a_damaged_file(*, is_mended: bool) -> None:
    store = memory_store()
    store.put("x.parquet", parquet())
    whole, answers = store.get_range, 0

    def cut(key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        nonlocal answers
        answers += 1
        data = whole(key, start, length, if_match=if_match)
        return data if is_mended and answers > 1 else data[: length // 2]

    store.get_range = cut  # type: ignore[method-assign]

    if is_mended:
        assert open_object(store, "x.parquet", len(parquet())).read().equals(TABLE)
    else:
        with pytest.raises(StoreDown, match=r"x\.parquet was cut off: [\d,]+ of [\d,]+ bytes arrived"):
            open_object(store, "x.parquet", len(parquet()))


def test_too_little_memory_is_not_a_damaged_file() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^x cannot be read: it needs more memory than is available"),
        parquet_of("x"),
    ):
        raise pa.ArrowMemoryError("malloc of size 1152921504606846976 failed")


def test_an_object_that_is_shorter_than_listed_is_damaged() -> None:
    store = memory_store()
    store.put("x.parquet", parquet())

    with pytest.raises(RayDetrError, match=r"^memory://store/x\.parquet is damaged: it cannot be read as Parquet \("):
        open_object(store, "x.parquet", len(parquet()) + 100)


def test_damage_that_shows_while_reading_is_reported_in_the_same_sentence() -> None:
    with (
        pytest.raises(RayDetrError, match=r"^x is damaged: it cannot be read as Parquet \(no column\)\.$"),
        parquet_of("x"),
    ):
        raise pa.ArrowInvalid("no\n column")


def test_seconds_come_back_as_milliseconds() -> None:
    assert stored_schema(pa.schema([("seen", pa.timestamp("s")), ("n", pa.int8())])) == pa.schema(
        [("seen", pa.timestamp("ms")), ("n", pa.int8())]
    )
