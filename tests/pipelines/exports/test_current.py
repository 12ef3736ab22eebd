"""Which row of an image is the current one: against a plain version, and against DuckDB."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.exports.current import current_rows
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.pipelines.exports.documented_query import documented_query

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NOTHING = Detected([], (), [], [])

KINDS = st.sampled_from([None, "truncated", "missing", "fetch_failed"])
ROWS = st.tuples(st.sampled_from("abc"), KINDS, st.sampled_from(["m@1", "n's@2"]), st.integers(0, 3))
RUNS = st.dictionaries(st.sampled_from(["a", "a-b", "a.b", "b", "c"]), st.lists(ROWS, max_size=5), max_size=4)

Shown = tuple[str, str | None, str, str, int, str]


def table_of(run_id: str, shard: int, uri: str, kind: str | None, model: str, minute: int) -> pa.Table:
    row = Row(uri, detections=NOTHING) if kind is None else Row(uri, error_kind=kind)
    return rows_to_table([row], origin=Origin(model, 0.5, run_id, shard, NOW + timedelta(minutes=minute)))


def write(folder: Path, runs: dict[str, list[tuple[str, str | None, str, int]]]) -> list[Path]:
    """Write a file for each run, whose rows are of one shard each; give them in the order of runs."""
    paths = []
    for run_id, rows in sorted(runs.items()):
        path = folder / "data" / run_id / "00000.parquet"
        path.parent.mkdir(parents=True)
        parts = [table_of(run_id, shard, *row) for shard, row in enumerate(rows)]
        path.write_bytes(encode(pa.concat_tables(parts) if parts else table_of("x", 0, "x", None, "m", 0).slice(0, 0)))
        paths.append(path)
    return paths


def shown(table: pa.Table) -> list[Shown]:
    columns = ("uri", "error_kind", "model", "run_id", "shard", "labelled_at")
    return sorted(
        tuple(str(row[column]) for column in columns)  # type: ignore[misc]
        for row in table.select(columns).to_pylist()
    )


def current(paths: list[Path], model: str | None = None) -> list[Shown]:
    masks = current_rows([(str(path), pq.ParquetFile(path)) for path in paths], model)
    tables = [
        pq.read_table(path, partitioning=None).filter(pa.array(mask)) for path, mask in zip(paths, masks, strict=True)
    ]
    return [row for table in tables for row in shown(table)]


@pytest.mark.parametrize("model", [None, "m@1", "n's@2"])
@settings(max_examples=40, deadline=None)
@given(runs=RUNS)
def test_duckdb_gives_the_same_rows_by_the_query_that_is_documented(
    tmp_path_factory: pytest.TempPathFactory, model: str | None, runs: dict[str, list[tuple[str, str | None, str, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    paths = write(folder, runs)
    if not paths:
        return

    by_duckdb = duckdb.sql(documented_query(str(folder), model)).to_arrow_table()

    assert shown(by_duckdb) == sorted(current(paths, model))


def test_the_newest_row_counts_whichever_run_is_read_first(tmp_path: Path) -> None:
    paths = write(tmp_path, {"a": [("x", None, "m@1", 2)], "b": [("x", "truncated", "m@1", 1)]})

    assert current(paths) == [("x", "None", "m@1", "a", "0", str(NOW + timedelta(minutes=2)))]


def test_an_error_that_says_nothing_of_the_picture_counts_only_where_there_is_no_other_row(tmp_path: Path) -> None:
    paths = write(
        tmp_path,
        {
            "a": [("x", None, "m@1", 1), ("y", "truncated", "m@1", 1), ("z", "missing", "m@1", 1)],
            "b": [("x", "fetch_failed", "m@1", 2), ("y", "missing", "m@1", 2), ("z", "denied", "m@1", 2)],
        },
    )

    assert [(row[0], row[1]) for row in current(paths)] == [("x", "None"), ("y", "truncated"), ("z", "denied")]


def test_of_equal_times_the_later_name_of_a_run_counts(tmp_path: Path) -> None:
    paths = write(tmp_path, {"a": [("x", None, "m@1", 1)], "a-b": [("x", None, "m@1", 1)]})

    assert [row[3] for row in current(paths)] == ["a-b"]


def test_an_image_of_several_models_has_one_row_or_one_of_each(tmp_path: Path) -> None:
    paths = write(tmp_path, {"a": [("x", None, "m@1", 1)], "b": [("x", None, "n@2", 2)]})

    assert [row[2] for row in current(paths)] == ["n@2"]
    assert [row[2] for row in current(paths, "m@1")] == ["m@1"]
    assert current(paths, "o@3") == []


def test_many_rows_have_one_current_each(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(3_000)
    rows = [(f"s3://b/{number % 1_000}", None, "m@1", int(number) // 1_000) for number in order]
    paths = write(tmp_path, {"a": rows[:1_500], "b": rows[1_500:]})

    found = current(paths)

    assert len({row[0] for row in found}) == len(found) == 1_000
    assert {row[5] for row in found} == {str(NOW + timedelta(minutes=2))}
