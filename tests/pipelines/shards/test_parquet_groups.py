"""One row group of a Parquet object, fetched by one request."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError
from pipelines.parquet_files import open_object
from pipelines.shards.parquet_groups import read_row_group
from pipelines.store import Store
from tests.memory_store import memory_store

ROWS = pa.table({"number": list(range(10)), "word": ["x", "yy"] * 5, "list": [[one, one] for one in range(10)]})


def stored(store: Store, *, use_dictionary: bool) -> pq.FileMetaData:
    sink = pa.BufferOutputStream()
    pq.write_table(ROWS, sink, row_group_size=4, use_dictionary=use_dictionary, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    store.put("a.parquet", data)
    return open_object(store, "a.parquet", len(data)).metadata


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_every_group_gives_its_rows(use_dictionary: bool) -> None:
    store = memory_store()
    footer = stored(store, use_dictionary=use_dictionary)

    groups = [read_row_group(store, "a.parquet", footer, group) for group in range(footer.num_row_groups)]

    assert [group.num_rows for group in groups] == [4, 4, 2]
    assert pa.concat_tables(groups).equals(ROWS)


def test_some_columns_of_a_group() -> None:
    store = memory_store()
    footer = stored(store, use_dictionary=True)

    assert read_row_group(store, "a.parquet", footer, 1, ["word"]).to_pydict() == {"word": ["x", "yy", "x", "yy"]}


def test_an_object_that_was_replaced_by_another_is_damaged() -> None:
    store = memory_store()
    footer = stored(store, use_dictionary=True)
    store.put("a.parquet", b"PAR1 something else")

    with pytest.raises(RayDetrError, match=r"memory://store/a\.parquet is damaged"):
        read_row_group(store, "a.parquet", footer, 1)
