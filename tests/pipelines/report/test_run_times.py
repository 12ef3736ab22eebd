"""Speed, duration and cost of runs: all rows count, and pauses do not."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pipelines.report.config import ReportConfig
from pipelines.report.figures import Figures
from pipelines.report.page import Page, _totals
from pipelines.report.report import write_report
from pipelines.report.rows import Classes
from pipelines.report.run_times import RunTimes
from pipelines.store import open_store
from pipelines.table.schema import Origin, Row, encode, rows_to_table
from tests.pipelines.report.tables import NOW


def publish(table: str, run_id: str, shard: int, images: range, now: datetime) -> None:
    rows = [Row(f"s3://lake/{number}.jpg", error_kind="truncated", error="cut") for number in images]
    origin = Origin("detr@1", 0.05, run_id, shard, now, None)
    open_store(table).put(f"data/{run_id}/{shard:05}.parquet", encode(rows_to_table(rows, origin=origin)))


def runs(page: Path) -> list[list[str]]:
    """The cells of the table of runs: run, images, errors, detections, all rows, times, duration, images/s, cost."""
    lines = re.findall(r'<tr><th scope="row">(run-\d)</th>(.*?)</tr>', page.read_text())
    return [[run_id, *re.findall(r"<td[^>]*>(.*?)</td>", cells)] for run_id, cells in lines]


@pytest.fixture
def superseded(tmp_path: Path) -> str:
    """A run of 1,000 rows in an hour, of which a second run of an hour replaces all but one."""
    table = str(tmp_path / "table")
    later = NOW + timedelta(days=1)
    publish(table, "run-1", 0, range(500), NOW)
    publish(table, "run-1", 1, range(500, 1000), NOW + timedelta(hours=1))
    publish(table, "run-2", 0, range(990), later)
    publish(table, "run-2", 1, range(990, 999), later + timedelta(hours=1))
    return table


def test_rows_that_later_runs_replaced_count_for_speed_duration_and_cost(superseded: str, tmp_path: Path) -> None:
    page = tmp_path / "r.html"

    write_report(ReportConfig(superseded, page, price_per_hour=10))

    assert [[*one[:5], *one[6:]] for one in runs(page)] == [
        ["run-1", "1", "1", "0", "1,000", "1 h 0 min", "0.3", "10.00"],
        ["run-2", "999", "999", "0", "999", "1 h 0 min", "0.3", "10.00"],
    ]
    assert "<dt>cost</dt><dd>20.00 USD</dd>" in page.read_text()


def test_one_run_has_the_same_figures_as_in_the_whole_table(superseded: str, tmp_path: Path) -> None:
    page = tmp_path / "r.html"

    write_report(ReportConfig(superseded, page, run_id="run-1", price_per_hour=10))

    assert [[*one[:5], *one[6:]] for one in runs(page)] == [
        ["run-1", "1,000", "1,000", "0", "1,000", "1 h 0 min", "0.3", "10.00"]
    ]


def test_a_run_that_was_resumed_days_later_does_not_cost_those_days(tmp_path: Path) -> None:
    table, page = str(tmp_path / "table"), tmp_path / "r.html"
    publish(table, "run-1", 0, range(500), NOW)
    publish(table, "run-1", 1, range(500, 1000), NOW + timedelta(minutes=1))
    publish(table, "run-1", 2, range(1000, 1500), NOW + timedelta(hours=60))

    write_report(ReportConfig(table, page, price_per_hour=30))

    ((*_, duration, rate, cost),) = runs(page)
    assert (duration, rate, cost) == ("1 min 0 s, without 1 pause of 59 h 59 min", "25.0", "0.50")
    assert "pauses are left out: times without a new row of more than 1 h 0 min" in page.read_text()


def test_a_slow_run_has_no_pauses(tmp_path: Path) -> None:
    table, page = str(tmp_path / "table"), tmp_path / "r.html"
    for shard in range(3):
        publish(table, "run-1", shard, range(50 * shard, 50 * shard + 50), NOW + timedelta(minutes=70 * shard))

    write_report(ReportConfig(table, page, price_per_hour=30))

    ((*_, duration, _, cost),) = runs(page)
    assert (duration, cost) == ("2 h 20 min", "70.00")


def test_a_run_without_current_rows_is_listed_with_its_cost(tmp_path: Path) -> None:
    table, page = str(tmp_path / "table"), tmp_path / "r.html"
    publish(table, "run-1", 0, range(5), NOW)
    publish(table, "run-1", 1, range(5, 10), NOW + timedelta(minutes=30))
    publish(table, "run-2", 0, range(10), NOW + timedelta(days=1))

    write_report(ReportConfig(table, page, price_per_hour=10))

    assert [(one[0], one[1], one[4], one[-1]) for one in runs(page)] == [
        ("run-1", "0", "10", "5.00"), ("run-2", "10", "10", "0.00"),
    ]  # fmt: skip


def test_the_chart_of_throughput_has_a_bar_for_each_time_in_which_a_shard_was_done(tmp_path: Path) -> None:
    table, page = str(tmp_path / "table"), tmp_path / "r.html"
    publish(table, "run-1", 0, range(300), NOW)
    publish(table, "run-1", 1, range(300, 900), NOW + timedelta(hours=1))

    write_report(ReportConfig(table, page))

    html = page.read_text()
    bars = re.findall(r'<i style="height:([\d.]+)%" title="(.*?)"></i>', html)
    assert [(number, *bar) for number, bar in enumerate(bars) if not bar[1].endswith(": 0 images")] == [
        (0, "50.0", "0 s to 1 min 1 s: 300 images"), (59, "100.0", "59 min 59 s to 1 h 1 min: 600 images"),
    ]  # fmt: skip
    assert "Throughput of run run-1" in html
    assert html.count("Images that were labelled in each 1 min 1 s, 600 at most, without pauses.") == 2  # also read out
    assert "<span>start</span><span>1 h 1 min</span>" in html


def test_a_tiny_share_of_errors_is_written_in_digits() -> None:
    figures = Figures(images=10_000_000, ok=9_999_999)

    totals = dict(_totals(Page("t", None, figures, RunTimes(), Classes(), 0.5, [], {}, NOW), []))

    assert totals["errors"] == "1 (below 0.001 %)"
