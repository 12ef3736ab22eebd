"""An export as the beginning of a new table: fewer files, no withdrawn images, and nothing is labelled again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines.exports.config import ExportConfig
from pipelines.exports.export import export
from pipelines.store import open_store
from scripts import measure_nights
from scripts.measure_nights import run

NIGHTS, EACH = 3, 4
COPY = """COPY (SELECT * FROM read_parquet('{old}/data/**/*.parquet', union_by_name = true)
      WHERE uri NOT LIKE '%/000001.jpg') TO '{new}/data/kept.parquet'"""
OTHER = "other@111111111111"


def uris(table: Path) -> Counter[str]:
    return Counter(ds.dataset(table / "data", format="parquet").to_table(columns=["uri"])["uri"].to_pylist())


@pytest.mark.parametrize("way", ["export", "sql"])
def test_a_table_goes_on_from_an_export_of_another(tmp_path: Path, way: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for night in range(NIGHTS):
        run(open_store(str(old)), range(night, night + 1), EACH)
    if way == "export":
        export(ExportConfig(str(old), str(new / "data")))
        withdrawn = 0
    else:
        (new / "data").mkdir(parents=True)
        duckdb.sql(COPY.format(old=old, new=new))
        withdrawn = 1  # of each night; they are no longer in the lake
    assert len(list(new.glob("data/*.parquet"))) == 1
    assert len(uris(new)) == NIGHTS * (EACH - withdrawn)

    labelled = run(open_store(str(new)), range(NIGHTS), EACH)
    assert labelled.totals.rows == NIGHTS * withdrawn
    assert run(open_store(str(new)), range(NIGHTS + 1), EACH).totals.rows == EACH
    assert run(open_store(str(new)), range(NIGHTS + 1), EACH).run is None
    assert uris(new) == Counter(
        [f"s3://lake/night-{n:05d}/{i:06d}.jpg" for n in range(NIGHTS + 1) for i in range(EACH)]
    )


def test_an_export_of_all_rows_keeps_those_of_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = open_store(str(tmp_path / "old")), tmp_path / "new"
    run(old, range(1), EACH)
    monkeypatch.setattr(measure_nights, "MODEL", OTHER)
    run(old, range(1), EACH)

    export(ExportConfig(old.uri, str(new / "data")))

    assert len(uris(new)) == EACH
    assert uris(new).total() == 2 * EACH
    assert run(open_store(str(new)), range(1), EACH).run is None
    monkeypatch.undo()
    assert run(open_store(str(new)), range(1), EACH).run is None


def test_joining_by_sql_keeps_a_column_that_the_first_file_does_not_have(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for night in range(2):
        run(open_store(str(old)), range(night, night + 1), EACH)
    first = min(old.glob("data/*.parquet"))  # as an older release wrote it
    pq.write_table(pq.read_table(first).drop_columns(["settings"]), first)
    (new / "data").mkdir(parents=True)

    duckdb.sql(COPY.format(old=old, new=new))

    settings = pq.read_table(new / "data" / "kept.parquet")["settings"].to_pylist()
    assert Counter(settings) == {None: EACH - 1, '{"precision":"fp16","threshold":0.05}': EACH - 1}
