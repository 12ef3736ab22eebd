"""What `ray-detr query` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.query import main, report
from pipelines.exports.config import QueryConfig
from pipelines.exports.query import QueryResult
from tests.pipelines.report.tables import write_table


def test_a_result_is_a_table_of_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = write_table(tmp_path)
    sql = "SELECT label, count(*) AS number, round(avg(score), 2) AS score FROM detections GROUP BY ALL ORDER BY 2 DESC"

    main(["--table", table, sql, "--model", "detr@1"])

    assert capsys.readouterr() == (
        "label  number  score\n"
        "-----  ------  -----\n"
        "dog         4   0.72\n"
        "cat         3   0.57\n",
        "",
    )  # fmt: skip


def test_a_cut_result_and_a_file_are_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = write_table(tmp_path)

    main(["--table", table, "SELECT uri FROM rows ORDER BY 1", "--max-rows", "2"])
    assert capsys.readouterr().err == (
        "note: only the first 2 rows are printed. --max-rows N prints more, --out FILE writes all.\n"
    )
    main(["--table", table, "FROM rows", "--out", str(tmp_path / "rows.csv")])
    assert capsys.readouterr() == (f"wrote: {tmp_path}/rows.csv\n", "")
    with pytest.raises(SystemExit) as left:
        main(["--table", table, "FROM rows", "--out", "rows.xlsx"])
    assert left.value.code == 2


def test_null_long_values_and_lines_fit_into_the_table() -> None:
    result = QueryResult(("a", "b"), (False, True), [("x\ny", None), ("z" * 200, "1")])

    lines = report(result).splitlines()
    assert lines[2].split() == ["x", "y", "NULL"]
    assert lines[3] == "z" * 117 + "...     1"


def test_characters_that_cannot_be_seen_are_replaced() -> None:
    result = QueryResult(("a\x1b[2J",), (False,), [("b\x1b[31m\rred\u202e",)])

    assert report(result).splitlines() == ["a\ufffd[2J", "-----------", "b\ufffd[31m\ufffdred\ufffd"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_result_below_a_tilde_is_in_the_home_folder_and_nothing_is_left_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    table, home, here = write_table(tmp_path), tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)

    main(["--table", table, "SELECT 1", f"--out=~/a.{suffix}"])
    main(["--table", table, "SELECT 1", f"--out=./~/b.{suffix}"])

    assert [path.name for path in home.iterdir()] == [f"a.{suffix}"]
    assert [path.name for path in (here / "~").iterdir()] == [f"b.{suffix}"]


def test_a_name_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match="is not UTF-8, in which DuckDB writes"):
        QueryConfig("table", "SELECT 1", out=Path("b\udcff/a.csv"))
