"""Exports, reports, reviews and queries of a table with marks: the same detections are left out, and counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError
from pipelines.exports.config import ExportConfig, QueryConfig
from pipelines.exports.export import export
from pipelines.exports.query import query_table
from pipelines.labelling.verify import verify_table
from pipelines.marks.marks import accept_marks, marks_key, withdraw_marks
from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.finding import find_places
from pipelines.repeats.repeats import accept_file, withdraw
from pipelines.repeats.selection import head_of
from pipelines.report.config import ReportConfig
from pipelines.report.report import write_report
from pipelines.report.rows import Classes, table_files
from pipelines.review.config import ReviewConfig
from pipelines.review.export import export_review
from pipelines.store import open_store
from tests.conftest import S3Server
from tests.pipelines.repeats.fixed_camera import picture_rows, publish

PICTURES, LATER = 20, 5
ANIMALS = PICTURES + LATER  # one in each picture, and two stones


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Twenty pictures, whose stones are marked, and five of a later run."""
    place, camera = str(tmp_path / "table"), str(tmp_path / "cam1") + "/"
    publish(place, picture_rows(camera, PICTURES))
    found = find_places(RepeatsConfig(table=place), with_pictures=False)
    accept_marks(open_store(place), [one.mark for one in found.places], SystemClock())
    publish(place, picture_rows(camera, LATER, first=PICTURES), "run-2")
    return place


def boxes_of(rows: list[dict[str, Any]]) -> int:
    return sum(len(row["detections"]) for row in rows)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "coco-dataset", "labelstudio", "megadetector"])
def test_exports_leave_out_what_is_marked(table: str, tmp_path: Path, kind: Any) -> None:
    suffix = kind if kind in ("parquet", "jsonl", "csv") else "json"
    lengths = []
    for keep_repeats, left_out in ((False, 2 * ANIMALS), (True, 0)):
        out = tmp_path / f"{keep_repeats}.{suffix}"
        summary = export(ExportConfig(table, str(out), format=kind, keep_repeats=keep_repeats))
        assert (summary.rows, summary.repeats_left_out, summary.marks) == (ANIMALS, left_out, 2 * bool(left_out))
        lengths.append(
            {
                "parquet": lambda path: boxes_of(pq.read_table(path).to_pylist()),
                "jsonl": lambda path: boxes_of([json.loads(line) for line in path.read_text().splitlines()]),
                "csv": lambda path: len(list(csv.DictReader(path.read_text().splitlines()))),
                "coco-dataset": lambda path: len(json.loads(path.read_text())["annotations"]),
                "labelstudio": lambda path: sum(
                    len(task["predictions"][0]["result"]) for task in json.loads(path.read_text())
                ),
                "megadetector": lambda path: boxes_of(json.loads(path.read_text())["images"]),
            }[kind](out)
        )
    assert lengths == [ANIMALS, 3 * ANIMALS]


def test_a_folder_says_how_many_were_left_out_and_that_of_a_table_without_marks_says_nothing_new(
    table: str, tmp_path: Path
) -> None:
    export(ExportConfig(table, str(tmp_path / "marked" / ""), format="yolo"))
    record = json.loads((tmp_path / "marked" / "_export.json").read_text())
    assert record["repeats_left_out"] == 2 * ANIMALS

    plain = str(tmp_path / "plain")
    publish(plain, picture_rows("s3://lake/cam1/", PICTURES))
    export(ExportConfig(plain, str(tmp_path / "unmarked" / ""), format="yolo"))
    assert sorted(json.loads((tmp_path / "unmarked" / "_export.json").read_text())) == sorted(
        set(record) - {"repeats_left_out"}
    )


def test_queries_tell_repeats_apart_and_list_the_marks(table: str) -> None:
    def asked(sql: str) -> list[tuple[str | None, ...]]:
        return list(query_table(QueryConfig(table, sql)).rows)

    assert asked("SELECT repeat IS NOT NULL AS is_repeat, count(*) FROM detections GROUP BY 1 ORDER BY 1") == [
        ("false", str(ANIMALS)), ("true", str(2 * ANIMALS)),
    ]  # fmt: skip
    joined = (
        "SELECT r.label, r.images, count(*) FROM detections d JOIN repeats r ON d.repeat = r.id GROUP BY r.id, 1, 2"
    )
    assert asked(joined) == [
        ("animal", "20", str(ANIMALS)), ("animal", "20", str(ANIMALS)),
    ]  # fmt: skip


def test_a_table_without_marks_has_the_column_too(tmp_path: Path) -> None:
    plain = str(tmp_path / "plain")
    publish(plain, picture_rows("s3://lake/cam1/", 3))

    sql = "SELECT count(*), count(repeat), (SELECT count(*) FROM repeats) FROM detections"
    assert list(query_table(QueryConfig(plain, sql)).rows) == [("9", "0", "0")]


def test_a_report_counts_what_it_leaves_out(table: str, tmp_path: Path) -> None:
    summary = write_report(ReportConfig(table, tmp_path / "report.html"))
    kept = write_report(ReportConfig(table, tmp_path / "kept.html", keep_repeats=True))

    assert (summary.images, summary.repeats_left_out) == (ANIMALS, 2 * ANIMALS)
    assert kept.repeats_left_out == 0
    page = (tmp_path / "report.html").read_text()
    assert f"<dt>repeats left out</dt><dd>{2 * ANIMALS}</dd>" in page
    assert f"<dt>detections</dt><dd>{ANIMALS}</dd>" in page
    assert f"<dt>detections</dt><dd>{3 * ANIMALS}</dd>" in (tmp_path / "kept.html").read_text()


def test_a_review_does_not_ask_people_about_what_they_accepted(table: str, tmp_path: Path) -> None:
    summary = export_review(ReviewConfig(table=table, out=str(tmp_path / "batch"), choice="random", count=4))

    assert (summary.images, summary.boxes) == (4, 4)


def test_withdrawn_marks_cover_nothing(table: str, tmp_path: Path) -> None:
    store = open_store(table)
    ids = [one["id"] for one in json.loads(store.get(marks_key(1)).data)["accepted"]]
    withdraw_marks(store, ids[:1], SystemClock())
    assert export(ExportConfig(table, str(tmp_path / "a.csv"))).repeats_left_out == ANIMALS
    withdraw_marks(store, ids, SystemClock())
    assert export(ExportConfig(table, str(tmp_path / "b.csv"))).repeats_left_out == 0


def test_marks_disturb_neither_verification_nor_readers_of_the_data(table: str) -> None:
    assert pq.read_table(f"{table}/data").num_rows == ANIMALS
    rows = table_files(open_store(table), "run-2").rows(Classes())
    assert [len(part.scores) for part in rows] == [LATER]
    marked = verify_table(open_store(table), clock=SystemClock())
    open_store(table).delete(marks_key(1))
    assert marked.findings == verify_table(open_store(table), clock=SystemClock()).findings


def test_a_damaged_record_stops_every_reader(table: str, tmp_path: Path) -> None:
    open_store(table).put(marks_key(2), b"{}")

    with pytest.raises(RayDetrError, match=r"_marks/0002\.json is damaged"):
        export(ExportConfig(table, str(tmp_path / "a.csv")))
    with pytest.raises(RayDetrError, match=r"_marks/0002\.json is damaged"):
        query_table(QueryConfig(table, "FROM rows"))
    with pytest.raises(RayDetrError, match=r"_marks/0002\.json is damaged"):
        write_report(ReportConfig(table, tmp_path / "report.html"))


def test_a_table_in_s3_is_exported_without_repeats(moto: S3Server, tmp_path: Path) -> None:
    place, options = f"{moto.bucket()}/table", moto.options()
    publish(place, picture_rows("s3://lake/cam1/", PICTURES), options=options)
    config = RepeatsConfig(table=place, options=options)
    marks = [one.mark.as_json() for one in find_places(config).places]
    selection = {**head_of(place), "accepted": marks}
    open_store(place, options).put("chosen.json", json.dumps(selection).encode())
    assert accept_file(config, f"{place}/chosen.json").changed == 2
    assert withdraw(config, [marks[0]["id"]]).in_force == 1
    assert accept_file(config, f"{place}/chosen.json").in_force == 2

    assert export(ExportConfig(place, str(tmp_path / "a.csv"), options=options)).repeats_left_out == 2 * PICTURES
    sql = "SELECT count(*), count(repeat) FROM detections"
    assert list(query_table(QueryConfig(place, sql, options=options)).rows) == [("60", "40")]
