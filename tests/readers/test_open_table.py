"""A table, opened by engines that this project does not need otherwise: each sees every published row.

`make test-readers` makes their environment. DuckDB, pandas, Arrow and Polars are in
tests/pipelines/table/test_readers.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

READERS = os.environ.get("READERS_PYTHON")
NEEDS_READERS = pytest.mark.skipif(READERS is None, reason="no environment of the readers: run `make test-readers`")
NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
SETTINGS = '{"precision":"fp32","threshold":0.05}'
ENGINES = ["datafusion", "chdb", "datasets", "delta", "daft", "spark"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of two runs in the flat layout, beside what a running command keeps there: lease, records, a part."""
    place = tmp_path_factory.mktemp("tables") / "detections"
    store = open_store(str(place))
    dog = Detected([18, 1], ("dog", "person"), [0.75, 0.5], [[1, 0, 8, 4], [1.5, 2, 3, 4]])
    runs = {
        "night-1": [Row("s3://lake/a.jpg", "e", 9, 8, 4, detections=dog), Row("s3://lake/b.jpg", error_kind="empty")],
        "night-2": [Row("s3://lake/c.jpg", width=8, height=4, detections=Detected([], (), [], []))],
    }
    for run_id, rows in runs.items():
        origin = Origin("detr@1", 0.05, run_id, 0, NOW, SETTINGS)
        data = encode(rows_to_table(rows, origin=origin))
        store.put(f"data/{run_id}-00000.parquet", data)
        store.put(f"_runs/{run_id}/run.json", b"{}")
        store.put(f"_runs/{run_id}/parts/00000-x.part", data)
    store.put("_lease.json", b"{}")
    store.put("_lease.lock", b"")
    return place


def opened(python: str, engine: str, table: Path) -> Any:
    script = str(Path(__file__).parent / "opening.py")
    done = subprocess.run([python, script, engine, str(table)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(rows: Any) -> None:
    assert rows == [
        ["s3://lake/a.jpg", "ok", SETTINGS, [["dog", 0.75, 1.0], ["person", 0.5, 1.5]]],
        ["s3://lake/b.jpg", "error", SETTINGS, None],
        ["s3://lake/c.jpg", "ok", SETTINGS, []],
    ]


@NEEDS_READERS
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_sees_every_row(engine: str, table: Path) -> None:
    assert READERS is not None
    check(opened(READERS, engine, table))


@NEEDS_READERS  # it needs no other environment, but belongs to these
@pytest.mark.ray
@pytest.mark.slow
def test_ray_data_sees_every_row(table: Path) -> None:
    check(opened(sys.executable, "ray", table))
