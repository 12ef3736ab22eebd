"""A run against an earlier one: what appeared, vanished and moved, and the gate."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.report import main
from pipelines.errors import BudgetExceeded, UsageError
from pipelines.report.config import ReportConfig
from pipelines.report.overlaps import box_iou
from pipelines.report.report import write_report
from pipelines.table.schema import Detected, Row
from tests.pipelines.report.tables import NOW, picture, publish, row

FOUND, TRUTH, APPEARED, VANISHED, MOVED = range(5)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Two runs over `a`: a dog stayed, another moved, a cat vanished, a cow appeared; `b` to `f` otherwise."""
    a, b, c, d, e = (picture(tmp_path / "images", f"{name}.png") for name in "abcde")
    nothing = Detected([], (), [], [])
    publish(
        str(tmp_path / "table"),
        [
            row(a, Detected([18, 18, 17, 17], ("dog", "dog", "cat", "cat"), [0.9, 0.8, 0.7, 0.4],
                            [[0, 0, 20, 20], [30, 0, 50, 20], [0, 30, 20, 50], [60, 40, 80, 60]])),
            row(b, nothing),
            row(c, nothing),
            Row(d, error_kind="truncated", error="cut"),
            Row(str(tmp_path / "images" / "f.png"), error_kind="empty", error="no bytes"),
        ],
        "run-1",
    )  # fmt: skip
    publish(
        str(tmp_path / "table"),
        [
            row(a, Detected([18, 18, 21], ("dog", "dog", "cow"), [0.9, 0.8, 0.6],
                            [[0, 0, 20, 20.5], [34, 0, 54, 20], [0, 30, 20, 50]])),
            row(b, nothing),
            Row(c, error_kind="missing", error="gone"),
            row(d, nothing),
            row(e, nothing),
            Row(str(tmp_path / "images" / "f.png"), error_kind="empty", error="no bytes"),
        ],
        "run-2",
        model="detr@2",
        now=NOW + timedelta(days=1),
    )  # fmt: skip
    return str(tmp_path / "table")


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_boxes_that_appeared_vanished_and_moved_are_counted_and_shown(table: str, tmp_path: Path) -> None:
    summary = write_report(ReportConfig(table, tmp_path / "r.html", run_id="run-2", against="run-1"))

    assert (summary.compared, summary.drift) == (2, pytest.approx(3 / 4))  # of one that stayed and three that did not
    html = (tmp_path / "r.html").read_text()
    for sentence in (
        "Images only in this report: 1.",
        "New errors: 1.",
        "Errors that are gone: 1.",
        "Errors in both: 1.",
        "This report used detr@2, the earlier run detr@1.",
    ):
        assert sentence in html
    data = data_of(html)
    (item,) = next(one["items"] for one in data["galleries"] if one["id"] == "drift")
    assert [(data["classes"][box[0]], box[6]) for box in item["boxes"]] == [
        ("dog", FOUND), ("dog", MOVED), ("cow", APPEARED), ("cat", VANISHED),
    ]  # fmt: skip
    assert item["boxes"][3][1:6] == [0.7, 0, 30, 20, 50]


def test_an_equal_run_has_no_drift(table: str, tmp_path: Path) -> None:
    one = picture(tmp_path / "images", "z.png")
    found = Detected([18], ("dog",), [0.9], [[0, 0, 20, 20]])
    for run_id in ("run-3", "run-4"):
        publish(table, [row(one, found)], run_id)

    summary = write_report(ReportConfig(table, tmp_path / "r.html", run_id="run-4", against="run-3"))

    assert (summary.compared, summary.drift) == (1, 0)


def test_a_run_against_itself_names_no_other(tmp_path: Path) -> None:
    table, found = str(tmp_path / "one run"), Detected([18], ("dog",), [0.9], [[0, 0, 20, 20]])
    publish(table, [row(picture(tmp_path / "images", "z.png"), found)], "run-3")

    write_report(ReportConfig(table, tmp_path / "r.html", against="run-3"))

    html = (tmp_path / "r.html").read_text()
    assert "the earlier run detr" not in html


def test_more_drift_than_allowed_ends_with_a_page_and_a_sentence(
    table: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    options = ["--table", table, "--run", "run-2", "--against", "run-1", "--out", str(out), "--max-drift"]

    main([*options, "0.75"])
    assert "drift: 75.0 % of the boxes changed, over 2 images" in capfd.readouterr().out

    out.unlink()
    with pytest.raises(BudgetExceeded, match=r"75\.0 % of the boxes appeared, vanished or moved, .* allows 74 %"):
        main([*options, "0.74"])
    assert out.exists()


def test_nothing_to_compare_does_not_pass_the_gate(table: str, tmp_path: Path) -> None:
    publish(table, [row(picture(tmp_path / "images", "z.png"), Detected([], (), [], []))], "run-3")

    with pytest.raises(BudgetExceeded, match="no image in common"):
        main(
            ["--table", table, "--run", "run-3", "--against", "run-1", "--max-drift", "1", "--out", str(tmp_path / "r")]
        )


def test_a_run_without_rows_cannot_be_compared_with(table: str, tmp_path: Path) -> None:
    publish(table, [], "run-0")  # as an abandoned run leaves it

    with pytest.raises(UsageError, match=r"run run-0 of table .* has no rows to compare with"):
        main(["--table", table, "--run", "run-2", "--against", "run-0", "--out", str(tmp_path / "r.html")])


def test_a_limit_needs_a_run_to_compare_with(table: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--table", table, "--max-drift", "0.1"])

    assert left.value.code == 2
    assert "--max-drift needs --against" in capfd.readouterr().err


def test_overlaps_are_shares_of_the_union() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 0, 0]])
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])

    assert box_iou(boxes, others).tolist() == [[1, pytest.approx(1 / 3), 0], [0, 0, 0]]
