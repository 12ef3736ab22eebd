"""An export as the beginning of a new table: fewer files, no withdrawn images, and nothing is labelled again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest

from pipelines.exports.config import ExportConfig
from pipelines.exports.export import export
from pipelines.store import open_store
from scripts.measure_nights import run

NIGHTS, EACH = 3, 4
COPY = "COPY (SELECT * FROM '{old}/data/**/*.parquet' WHERE uri NOT LIKE '%/000001.jpg') TO '{new}/data/kept.parquet'"


def uris(table: Path) -> Counter[str]:
    return Counter(ds.dataset(table / "data", format="parquet").to_table(columns=["uri"])["uri"].to_pylist())


@pytest.mark.parametrize("way", ["export", "sql"])
def test_a_table_goes_on_from_an_export_of_another(tmp_path: Path, way: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for night in range(NIGHTS):
        run(open_store(str(old)), range(night, night + 1), EACH)
    if way == "export":
        export(ExportConfig(str(old), str(new / "data"), latest=True))
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
