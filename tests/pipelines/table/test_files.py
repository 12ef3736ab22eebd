"""The names of a table's files in both layouts, and whose file a name is."""

from __future__ import annotations

from time import sleep

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.table.files import (
    LAYOUTS,
    Layout,
    in_order_of_runs,
    layout_without_runs,
    newest_columns,
    parse_table_file_key,
    table_file_key,
)
from pipelines.table.schema import NO_COLUMNS
from tests.memory_store import memory_store

RUN_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def test_a_file_is_named_by_its_run_and_segment() -> None:
    assert table_file_key("night-1", 3, "flat") == "data/night-1-00003.parquet"
    assert table_file_key("night-1", 3, "folders") == "data/night-1/00003.parquet"


@given(run_id=RUN_IDS, segment=st.integers(0, 10**7), layout=st.sampled_from(LAYOUTS))
def test_each_name_says_its_run_and_segment(run_id: str, segment: int, layout: Layout) -> None:
    assert parse_table_file_key(table_file_key(run_id, segment, layout)) == (run_id, segment)


@pytest.mark.parametrize("key", ["data/x.parquet", "data/x-1.parquet", "data/x/1.parquet", "data/x-00001.parquet.tmp",
                                 "data/x/y/00001.parquet", "data/x/y-00001.parquet", "data/-00001.parquet",
                                 "data/x-0000\u0661.parquet", "data/x-000001.parquet",
                                 "_runs/x-00001.parquet"])  # fmt: skip
def test_other_names_are_of_no_run(key: str) -> None:
    assert parse_table_file_key(key) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_sorted_by_run_and_segment(layout: Layout) -> None:
    files = [("a", 9), ("a", 100_000), ("a-b", 0), ("a.b", 1), ("b", 0)]

    keys = [table_file_key(run_id, segment, layout) for run_id, segment in files]
    assert sorted(sorted(keys), key=in_order_of_runs) == keys


def test_a_new_table_is_flat() -> None:
    assert layout_without_runs(memory_store()) == "flat"


def test_the_newest_columns_are_those_of_the_file_that_was_written_last() -> None:
    table = memory_store()
    assert newest_columns(table) == NO_COLUMNS

    for key, kind in (("data/b-00000.parquet", pa.float64()), ("data/a-00000.parquet", pa.string())):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"site": pa.nulls(1, kind)}), sink)
        table.put(key, sink.getvalue().to_pybytes())
        sleep(0.01)  # the store's times have milliseconds
    table.put("data/z.parquet", b"of another program")

    assert newest_columns(table) == pa.schema([("site", pa.string())])
