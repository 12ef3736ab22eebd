"""A run against an earlier one: what appeared, vanished and moved, and the gate."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.report import check_drift, main
from pipelines.errors import BudgetExceeded, UsageError
from pipelines.report.config import ReportConfig
from pipelines.report.overlaps import box_iou
from pipelines.report.report import ReportSummary, write_report
from pipelines.table.schema import Detected, Row
from tests.pipelines.report.tables import NOW, picture, publish, row

FOUND, TRUTH, APPEARED, VANISHED, MOVED, FALSE, MISSED, BEFORE = range(8)


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
        ("dog", FOUND), ("dog", MOVED), ("cow", APPEARED), ("cat", VANISHED), ("dog", BEFORE),
    ]  # fmt: skip
    assert item["boxes"][3][1:6] == [0.7, 0, 30, 20, 50]
    assert (item["boxes"][1][2:6], item["boxes"][4][2:6]) == ([34, 0, 54, 20], [30, 0, 50, 20])


def test_boxes_below_the_threshold_are_drawn_and_are_not_changes(tmp_path: Path) -> None:
    table, one = str(tmp_path / "table"), picture(tmp_path / "images", "a.png")
    dog, cat = [0, 0, 20, 20], [30, 0, 50, 20]
    publish(table, [row(one, Detected([18, 17], ("dog", "cat"), [0.9, 0.8], [dog, cat]))], "old")
    now = Detected([18, 17, 17], ("dog", "cat", "cat"), [0.9, 0.3, 0.04], [dog, cat, dog])
    publish(table, [row(one, now)], "new", now=NOW + timedelta(days=1))

    summary = write_report(ReportConfig(table, tmp_path / "r.html", run_id="new", against="old"))

    assert summary.drift == pytest.approx(1 / 2)
    galleries = {gallery["id"]: gallery["items"] for gallery in data_of((tmp_path / "r.html").read_text())["galleries"]}
    (item,) = galleries["drift"]
    assert [(box[1], box[6]) for box in item["boxes"]] == [(0.9, FOUND), (0.8, VANISHED), (0.3, FOUND)]
    assert item["more"] == [[4, 1]]


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
    assert (
        "drift: 75.0 % of the boxes changed, over 2 images\nof 5 images in both: new errors 1, changed pictures 0 (not "
        "compared); images only in this report 1, only in the earlier run 0\n"
    ) in capfd.readouterr().out

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


def test_new_errors_count_for_the_gate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table, found = str(tmp_path / "table"), Detected([18], ("dog",), [0.9], [[0, 0, 20, 20]])
    uris = [picture(tmp_path / "images", f"{number}.png") for number in range(10)]
    publish(table, [row(uri, found) for uri in uris], "old")
    failed = [Row(uri, error_kind="truncated", error="cut") for uri in uris[1:]]
    publish(table, [row(uris[0], found), *failed], "new", now=NOW + timedelta(days=1))
    options = ["--table", table, "--run", "new", "--against", "old", "--out", str(tmp_path / "r.html"), "--json"]

    with pytest.raises(BudgetExceeded, match=r"^90\.0 % of the images that both runs have are errors only now \(9"):
        main([*options, "--max-drift", "0.89"])
    capfd.readouterr()
    main([*options, "--max-drift", "0.9"])

    summary = json.loads(capfd.readouterr().out)
    names = ("drift", "compared", "in_both", "new_errors", "changed_pictures", "only_here", "only_before")
    assert [summary[name] for name in names] == [0, 1, 10, 9, 0, 0, 0]


def test_runs_without_a_comparable_image_do_not_pass_the_gate(tmp_path: Path) -> None:
    table, one = str(tmp_path / "table"), "s3://lake/a.jpg"
    found = Detected([18], ("dog",), [0.9], [[0, 0, 20, 20]])
    publish(table, [Row(one, "v1", 7, width=80, height=60, detections=found)], "old")
    publish(table, [Row(one, "v2", 7, width=80, height=60, detections=found)], "new", now=NOW + timedelta(days=1))

    with pytest.raises(BudgetExceeded, match="no image that both runs have could be compared"):
        main(["--table", table, "--run", "new", "--against", "old", "--max-drift", "1", "--out", str(tmp_path / "r")])


def test_images_of_the_earlier_run_itself_are_not_missing_from_the_report(table: str, tmp_path: Path) -> None:
    summary = write_report(ReportConfig(table, tmp_path / "r.html", against="run-2"))

    assert (summary.compared, summary.in_both, summary.only_here, summary.only_before) == (
        0,
        1,
        0,
        0,
    )  # c has a row of run-1


@pytest.mark.parametrize(
    ("before", "now", "is_compared"),
    [
        ({"etag": "v1", "size": 7}, {"etag": "v2", "size": 7}, False),
        ({"etag": "v1", "size": 7}, {"etag": "v1", "size": 7}, True),
        ({"size": 7}, {"etag": "v2", "size": 9}, False),
        ({"size": 7}, {"etag": "v2", "size": 7}, True),
        ({}, {"width": 81}, False),
        ({}, {"size": 7}, True),
    ],
)
def test_pictures_that_were_replaced_are_counted_and_not_compared(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], is_compared: bool
) -> None:
    table = str(tmp_path / "table")
    boxes = Detected([18], ("dog",), [0.9], [[0, 0, 20, 20]]), Detected([17], ("cat",), [0.9], [[30, 0, 50, 20]])
    for day, (run_id, version, found) in enumerate((("old", before, boxes[0]), ("new", now, boxes[1]))):
        one = Row("s3://lake/a.jpg", **{"width": 80, "height": 60, **version}, detections=found)
        publish(table, [one], run_id, now=NOW + timedelta(days=day))

    summary = write_report(ReportConfig(table, tmp_path / "r.html", run_id="new", against="old"))

    assert (summary.compared, summary.changed_pictures, summary.in_both) == ((1, 0, 1) if is_compared else (0, 1, 1))
    html = (tmp_path / "r.html").read_text()
    assert ("Pictures that changed, which are not compared: 1." in html) is not is_compared
    assert ("The two runs have no class name in common" in html) is is_compared


@pytest.mark.parametrize(("size", "compared"), [(7, 1), (8, 0)])
def test_images_of_an_archive_that_was_extended_are_compared(tmp_path: Path, size: int, compared: int) -> None:
    table = str(tmp_path / "table")
    found = Detected([17], ("cat",), [0.9], [[30, 0, 50, 20]])
    for day, (run_id, etag, bytes_) in enumerate((("old", "v1", 7), ("new", "v2", size))):  # etags of the file
        one = Row("s3://lake/a.tar#/1.jpg", etag, bytes_, width=80, height=60, detections=found)
        publish(table, [one], run_id, now=NOW + timedelta(days=day))

    summary = write_report(ReportConfig(table, tmp_path / "r.html", run_id="new", against="old"))

    assert (summary.compared, summary.changed_pictures) == (compared, 1 - compared)


def test_a_share_just_above_the_limit_is_printed_as_above_it() -> None:
    summary = ReportSummary(Path("r.html"), 1, 9, {}, 0, 0, drift=0.1004, compared=9, in_both=9, new_errors=0)

    with pytest.raises(BudgetExceeded, match=r"^10\.04 % of the boxes .* allows 10 %"):
        check_drift(summary, 0.1)


def test_of_more_than_100_boxes_the_changed_ones_are_drawn_first(tmp_path: Path) -> None:
    table, one = str(tmp_path / "table"), picture(tmp_path / "images", "a.png")
    same = [[number % 40, number // 40, number % 40 + 1, number // 40 + 1] for number in range(120)]
    names, scores = ("dog",) * 120, [0.9 - number / 1000 for number in range(120)]
    publish(table, [row(one, Detected([18] * 120, names, scores, same))], "old")
    cow = Detected([18] * 120 + [21], (*names, "cow"), [*scores, 0.6], [*same, [50, 40, 70, 60]])
    publish(table, [row(one, cow)], "new", now=NOW + timedelta(days=1))

    write_report(ReportConfig(table, tmp_path / "r.html", run_id="new", against="old"))

    galleries = {gallery["id"]: gallery["items"] for gallery in data_of((tmp_path / "r.html").read_text())["galleries"]}
    drawn = galleries["drift"][0]["boxes"]
    assert (len(drawn), drawn[-1][1:]) == (100, [0.6, 50, 40, 70, 60, APPEARED])
    assert drawn[98][1] == 0.802  # the best 99 of the same
    assert galleries["drift"][0]["more"] == [[78, 9], [79, 10], [80, 2]]
    assert galleries["best"][0]["more"] == [[60, 1], [78, 9], [79, 10], [80, 1]]


def test_of_more_than_100_boxes_one_that_moved_is_drawn_before_a_former_place(tmp_path: Path) -> None:
    table, one = str(tmp_path / "table"), picture(tmp_path / "images", "a.png")
    then = [[number % 10 * 8, number // 10 * 8, number % 10 * 8 + 7, number // 10 * 8 + 7] for number in range(60)]
    names, ids = ("dog",) * 60, [18] * 60
    publish(table, [row(one, Detected(ids, names, [0.9] * 60, then))], "old")
    now = [[left + 1, top, right + 1, bottom] for left, top, right, bottom in then]
    publish(table, [row(one, Detected(ids, names, [0.6] * 60, now))], "new", now=NOW + timedelta(days=1))

    write_report(ReportConfig(table, tmp_path / "r.html", run_id="new", against="old"))

    galleries = {gallery["id"]: gallery["items"] for gallery in data_of((tmp_path / "r.html").read_text())["galleries"]}
    (item,) = galleries["drift"]
    assert [box[6] for box in item["boxes"]] == [MOVED] * 60 + [BEFORE] * 40
    assert "more" not in item


def test_overlaps_are_shares_of_the_union() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 0, 0]])
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])

    assert box_iou(boxes, others).tolist() == [[1, pytest.approx(1 / 3), 0], [0, 0, 0]]
