"""The command `export`: one line of what was written, the same as JSON, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from jobs.export import main
from pipelines.errors import RayDetrError
from pipelines.exports.current import CURRENT
from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.pipelines.exports.documented_query import documented_query

NOTHING = Detected([], (), [], [])


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table where image `a` has two rows and `b` one."""
    place = str(tmp_path / "table")
    for day, uris in ((22, "ab"), (23, "a")):
        origin = Origin(f"detr@{day}", 0.5, f"run-{day}", 0, datetime(2026, 11, day, tzinfo=UTC))
        rows = rows_to_table([Row(uri, detections=NOTHING) for uri in uris], origin=origin)
        open_store(place).put(f"data/run-{day}/00000.parquet", encode(rows))
    return place


def test_it_says_what_it_wrote(table: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "latest.parquet"

    main(["--table", table, "--latest", "--out", str(out)])

    assert capfd.readouterr().out == f"exported: 2 of 3 rows, 1 file: {out}\n"
    assert pq.read_table(out)["run_id"].to_pylist() == ["run-22", "run-23"]


def test_json_is_the_summary(table: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")

    main(["--table", table, "--model", "detr@22", "--format", "jsonl", "--out", out, "--json"])

    assert json.loads(capfd.readouterr().out) == {"out": out, "rows": 2, "files": 1, "rows_total": 3, "settings": {}}


def test_current_rows_of_several_settings_are_reported_on_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table, out = str(tmp_path / "table"), str(tmp_path / "out.jsonl")
    for day, (uri, settings) in enumerate((("a", "{1}"), ("b", "{2}"), ("c", "{2}")), 1):
        origin = Origin("m", 0.5, f"run-{day}", 0, datetime(2026, 11, day, tzinfo=UTC), settings)
        rows = rows_to_table([Row(uri, detections=NOTHING)], origin=origin)
        open_store(table).put(f"data/run-{day}/00000.parquet", encode(rows))

    main(["--table", table, "--latest", "--out", out])

    said = "note: the current rows have several settings (1 with {1}; 2 with {2}). --settings chooses one.\n"
    assert said in capfd.readouterr().err
    main(["--table", table, "--latest", "--settings", "{2}", "--out", f"{out}.jsonl"])
    captured = capfd.readouterr()
    assert captured.out == f"exported: 2 of 3 rows, 1 file: {out}.jsonl\n"
    assert "note" not in captured.err


def test_many_tasks_in_one_file_are_reported_and_a_folder_has_a_thousand_in_each(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table, origin = str(tmp_path / "table"), Origin("m", 0.5, "run-1", 0, datetime(2026, 11, 22, tzinfo=UTC))
    rows = [Row(f"s3://lake/{number:04}.jpg", width=9, height=9, detections=NOTHING) for number in range(1000)]
    rows += [Row("s3://lake/bad.jpg", error_kind="truncated", error="cut")]
    for number, part in enumerate((rows, [Row("s3://lake/last.jpg", width=9, height=9, detections=NOTHING)])):
        data = encode(rows_to_table(part, origin=origin))
        open_store(table).put(f"data/run-1/{number:05}.parquet", data)
        main(["--table", table, "--to", "labelstudio", "--out", str(tmp_path / f"{number}.json")])
        said = "note: 1,001 tasks in one file, which Label Studio may not import in time. Name a folder with --out: "
        assert (said in capfd.readouterr().err) == (number == 1)

    main(["--table", table, "--to", "labelstudio", "--out", str(tmp_path / "out")])

    assert "note" not in capfd.readouterr().err
    assert [len(json.loads((tmp_path / "out" / f"0000{number}.json").read_text())) for number in range(2)] == [1000, 1]


def test_a_csv_of_several_settings_says_that_it_mixes_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = str(tmp_path / "table")
    for day, settings in enumerate(("{1}", "{2}"), 1):
        origin = Origin("m", 0.5, f"run-{day}", 0, datetime(2026, 11, day, tzinfo=UTC), settings)
        rows = rows_to_table([Row("a", detections=NOTHING)], origin=origin)
        open_store(table).put(f"data/run-{day}/00000.parquet", encode(rows))

    main(["--table", table, "--out", str(tmp_path / "all.csv")])

    assert capfd.readouterr().err.splitlines()[-1] == (
        "note: the rows have several settings (1 with {1}; 1 with {2}), which a CSV file does not distinguish. "
        "--settings chooses one, --latest the current row of each image."
    )
    main(["--table", table, "--latest", "--out", str(tmp_path / "current.csv")])
    main(["--table", table, "--out", str(tmp_path / "all.jsonl")])  # has the column
    assert "note" not in capfd.readouterr().err


def test_what_cannot_be_written_is_wrong_use(table: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--table", table, "--out", "s3://exchange/out.parquet"])

    assert left.value.code == 2
    assert "is one file in an object store" in capfd.readouterr().err


def test_what_is_wrong_with_the_world_stops_it(tmp_path: Path) -> None:
    with pytest.raises(RayDetrError, match="has no published rows"):
        main(["--table", str(tmp_path / "other"), "--out", str(tmp_path / "out.parquet")])


def test_the_query_of_the_documentation_is_the_one_that_gives_the_same_rows(table: str) -> None:
    assert CURRENT in " ".join(documented_query(table).split())
    assert duckdb.sql(documented_query(table)).to_arrow_table().num_rows == 2
