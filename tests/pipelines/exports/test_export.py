"""Exports: all rows or the current ones, as one file or a folder, in each format; whole or not at all."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError, UsageError
from pipelines.exports.config import ExportConfig, Format
from pipelines.exports.export import ExportSummary, export
from pipelines.labelling.run import RunRequest, begin_run, finish_run, latest_run
from pipelines.store import open_store
from pipelines.store.local import LocalStore
from pipelines.table.schema import NO_COLUMNS, SCHEMA, Detected, Origin, Row, encode, rows_to_table
from tests.conftest import S3Server
from tests.pipelines.exports.documented_query import documented_query

NOW = datetime(2026, 11, 22, 18, 15, tzinfo=UTC)
TAKEN = datetime(2024, 2, 29, 6, 30)  # noqa: DTZ001 - a camera's clock has no zone
STATION = pa.schema([("station", pa.string())])
DOG = Detected([18], ("dog",), [0.75], [[0, 0, 8, 4]])


def publish(table: str, run_id: str, rows: list[Row], kept: pa.Schema = NO_COLUMNS, *, days: int = 0) -> None:
    origin = Origin("detr@1", 0.05, run_id, 0, NOW + timedelta(days=days))
    open_store(table).put(f"data/{run_id}/00000.parquet", encode(rows_to_table(rows, kept, origin=origin)))


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Two runs: the second has a newer row of one image, and a column more."""
    place = str(tmp_path / "table")
    publish(place, "run-1", [Row("a", "1", 9, 8, 4, TAKEN, DOG), Row("b", "1", error_kind="truncated", error="cut")])
    publish(place, "run-2", [Row("a", "2", detections=Detected([], (), [], []), kept=("north",))], STATION, days=1)
    return place


def exported(table: str, out: Path, **options: object) -> list[dict[str, object]]:
    export(ExportConfig(table, str(out), **options))  # type: ignore[arg-type]
    return pq.read_table(out).to_pylist()  # type: ignore[no-any-return]


def test_all_rows_are_written_in_the_order_of_the_files_with_the_columns_of_all(table: str, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"

    assert export(ExportConfig(table, str(out))) == ExportSummary(str(out), 3, 1, 3, errors=1)

    rows = pq.read_table(out)
    assert rows.column_names == [*SCHEMA.names, "station"]
    assert [(row["uri"], row["etag"], row["station"]) for row in rows.to_pylist()] == [
        ("a", "1", None),
        ("b", "1", None),
        ("a", "2", "north"),
    ]
    assert rows.schema.field("model").type == SCHEMA.field("model").type


def test_the_current_rows_are_those_of_the_query_that_is_documented(table: str, tmp_path: Path) -> None:
    rows = exported(table, tmp_path / "latest.parquet", latest=True)

    by_duckdb = duckdb.sql(documented_query(table)).to_arrow_table().to_pylist()
    assert [(row["uri"], row["etag"]) for row in rows] == [("b", "1"), ("a", "2")]
    assert sorted(rows, key=lambda row: str(row["uri"])) == sorted(by_duckdb, key=lambda row: str(row["uri"]))


def test_json_lines_hold_the_same_values(table: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    export(ExportConfig(table, str(out)))

    first, second, third = map(json.loads, out.read_text().splitlines())
    assert first == {
        "uri": "a", "etag": "1", "size": 9, "status": "ok", "error_kind": None, "error": None, "width": 8, "height": 4,
        "taken_at": "2024-02-29T06:30:00", "model": "detr@1", "threshold": pytest.approx(0.05), "settings": None,
        "run_id": "run-1",
        "detections": [
            {"category_id": 18, "label": "dog", "score": 0.75, "box": {"xmin": 0, "ymin": 0, "xmax": 8, "ymax": 4}}
        ],
        "shard": 0, "labelled_at": "2026-11-22T18:15:00+00:00", "station": None,
    }  # fmt: skip
    assert (second["error_kind"], second["detections"], third["station"]) == ("truncated", None, "north")


def test_a_folder_gets_files_of_a_size_and_a_record_at_last(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.exports.places.FILE_BYTES", 100)
    monkeypatch.setattr("pipelines.exports.export.ROW_GROUP_ROWS", 2)

    assert export(ExportConfig(table, str(tmp_path / "out"))) == ExportSummary(str(tmp_path / "out"), 3, 2, 3, errors=1)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
        "_export.json",
    ]
    assert [row["uri"] for row in pq.read_table(tmp_path / "out").to_pylist()] == ["a", "b", "a"]
    record = json.loads((tmp_path / "out" / "_export.json").read_text())
    assert len(record.pop("export_id")) == 16
    assert record == {
        "table": open_store(table).uri, "rows": 3, "latest": False, "model": None, "settings": None, "files": 2,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "yolo"])
def test_a_record_whose_answer_was_lost_is_complete_and_that_of_another_export_is_an_error(
    kind: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, first = str(tmp_path / "table"), tmp_path / "first"
    publish(table, "run-1", [Row("a", "1", 9, 8, 4, TAKEN, DOG)])
    whole, put = export(ExportConfig(table, str(first), format=kind)), LocalStore.put
    others = (first / "_export.json").read_bytes()

    def put_before(store: LocalStore, key: str, data: bytes, **options: bool) -> str | None:
        if key == "_export.json":
            put(store, key, others if store.uri.endswith("/shared") else data, create=True)
        return put(store, key, data, **options)

    monkeypatch.setattr(LocalStore, "put", put_before)

    assert export(ExportConfig(table, str(tmp_path / "out"), format=kind)).files == whole.files
    with pytest.raises(RayDetrError, match=r"another export wrote to .*/shared at the same time") as stop:
        export(ExportConfig(table, str(tmp_path / "shared"), format=kind))
    assert ["is incomplete. Delete it" in note for note in stop.value.__notes__] == [True]


def test_a_folder_in_an_object_store_of_json_lines(table: str, moto: S3Server) -> None:
    out = f"{moto.bucket()}/out"
    export(ExportConfig(table, out, latest=True, format="jsonl", options=moto.options()))

    store = open_store(out, moto.options())
    assert [entry.key for entry in store.list()] == ["00000.jsonl", "_export.json"]
    assert [json.loads(line)["uri"] for line in store.get("00000.jsonl").data.splitlines()] == ["b", "a"]


def test_small_pieces_become_whole_row_groups(table: str, tmp_path: Path) -> None:
    export(ExportConfig(table, str(tmp_path / "out.parquet")))

    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 1


def test_progress_goes_through_all_rows_of_the_table(table: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    export(ExportConfig(table, str(tmp_path / "out.parquet"), latest=True), show=lambda *one: seen.append(one))

    assert seen == [(2, 3), (3, 3)]


def test_what_is_there_already_is_not_written_over(table: str, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_bytes(b"mine")

    with pytest.raises(RayDetrError, match=r"out\.parquet exists already"):
        export(ExportConfig(table, str(tmp_path / "out.parquet")))
    with pytest.raises(RayDetrError, match="out is not empty"):
        export(ExportConfig(table, str(tmp_path / "out")))


@pytest.mark.parametrize("kind", ["jsonl", "yolo"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_export_to_a_folder_says_what_to_delete_since_the_same_command_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], kind: Format
) -> None:
    monkeypatch.setattr("pipelines.exports.places.FILE_BYTES", 100)
    table = str(tmp_path / "table")
    for run_id, uri in (("run-1", "a"), ("run-2", "b")):
        publish(table, run_id, [Row(uri, "1", 9, 8, 4, detections=DOG)])
    config = ExportConfig(table, str(tmp_path / "out"), format=kind)

    def stop_once_files_are_there(rows: int, _total: int) -> None:
        if rows == 2:
            raise stop

    with pytest.raises(stop) as stopped:
        export(config, show=stop_once_files_are_there)

    folder = (tmp_path / "out").as_uri()
    assert stopped.value.__notes__ == [f"the folder {folder} is incomplete. Delete it, and run the command again."]
    with pytest.raises(UsageError, match=r"not empty: it contains .*; if a stopped command has left this one, delete"):
        export(config)
    shutil.rmtree(tmp_path / "out")
    assert export(config).files


def test_an_export_that_stops_before_its_first_file_has_nothing_to_delete(table: str, tmp_path: Path) -> None:
    def stop(_rows: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        export(ExportConfig(table, str(tmp_path / "out")), show=stop)

    assert not hasattr(stopped.value, "__notes__")


def test_an_export_that_fails_leaves_no_file(table: str, tmp_path: Path) -> None:
    store = open_store(table)
    data = store.get("data/run-2/00000.parquet").data
    store.put("data/run-2/00000.parquet", data[:50] + bytes([data[50] ^ 1]) + data[51:])
    before = sorted(tmp_path.iterdir())

    with pytest.raises(RayDetrError, match=r"data/run-2/00000\.parquet is damaged"):
        export(ExportConfig(table, str(tmp_path / "out.parquet")))
    store.put("data/run-2/00000.parquet", data)
    with pytest.raises(RayDetrError, match=r"has no rows of model other@1\. `ray-detr runs` lists its models"):
        export(ExportConfig(table, str(tmp_path / "out.parquet"), model="other@1"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_kept_column_of_two_types_is_reported(table: str, tmp_path: Path) -> None:
    time = pa.schema([("station", pa.timestamp("us"))])
    publish(table, "run-3", [Row("c", detections=DOG, kept=(datetime(2026, 11, 30),))], time)  # noqa: DTZ001

    with pytest.raises(
        RayDetrError, match=r"run-3/00000\.parquet has the column station as timestamp\[us\], but earlier files have it"
    ):
        export(ExportConfig(table, str(tmp_path / "out.parquet")))
    export(ExportConfig(table, str(tmp_path / "out.csv")))  # which has no kept columns
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 2


def test_a_kept_column_with_numbers_in_one_run_and_text_in_another_is_text(table: str, tmp_path: Path) -> None:
    publish(table, "run-3", [Row("c", detections=DOG, kept=(7,))], pa.schema([("station", pa.int64())]))

    rows = exported(table, tmp_path / "out.parquet")

    assert {row["uri"]: row["station"] for row in rows}["c"] == "7"


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_categories_of_an_earlier_release_beside_text_are_text(table: str, tmp_path: Path, kind: str) -> None:
    categories = pa.schema([("station", pa.dictionary(pa.int8(), pa.string()))])
    publish(table, "run-3", [Row("c", detections=DOG, kept=("east",))], categories)

    export(ExportConfig(table, str(tmp_path / f"out.{kind}")))

    path = tmp_path / f"out.{kind}"
    lines = (
        [json.loads(line) for line in path.read_text().splitlines()]
        if kind == "jsonl"
        else pq.read_table(path).to_pylist()
    )
    assert [line["station"] for line in lines] == [None, None, "north", "east"]


def test_a_kept_column_that_was_empty_in_one_run_has_the_values_of_the_others(table: str, tmp_path: Path) -> None:
    publish(table, "run-3", [Row("c", detections=DOG, kept=(None,))], pa.schema([("station", pa.null())]))
    publish(table, "run-4", [Row("d", detections=DOG, kept=("south",))], pa.schema([("station", pa.large_string())]))

    rows = exported(table, tmp_path / "out.parquet")

    assert [(row["uri"], row["station"]) for row in rows][2:] == [("a", "north"), ("c", None), ("d", "south")]


@pytest.mark.parametrize(("options", "sizes"), [({}, [2, 2, 1]), ({"format": "jsonl"}, [2, 2, 1])])
def test_files_of_a_folder_have_as_many_images_as_were_asked_for(
    options: dict[str, object], sizes: list[int], table: str, tmp_path: Path
) -> None:
    publish(table, "run-3", [Row("c", detections=DOG), Row("d", detections=DOG)])
    out = tmp_path / "out"

    export(ExportConfig(table, str(out), file_images=2, **options))  # type: ignore[arg-type]

    files = sorted(path for path in out.iterdir() if path.name[0] != "_")
    if options:
        assert [len(path.read_text().splitlines()) for path in files] == sizes
    else:
        assert [pq.read_metadata(path).num_rows for path in files] == sizes


def test_a_value_without_a_form_in_json_is_reported(table: str, tmp_path: Path) -> None:
    publish(table, "run-3", [Row("c", detections=DOG, kept=(b"x",))], pa.schema([("key", pa.binary())]))

    with pytest.raises(RayDetrError, match=r"the row of c contains a value that JSON cannot represent \(a bytes\)"):
        export(ExportConfig(table, str(tmp_path / "out.jsonl")))


def test_a_place_without_a_table_and_a_foreign_file_are_reported(table: str, tmp_path: Path) -> None:
    with pytest.raises(RayDetrError, match="has no published rows"):
        export(ExportConfig(str(tmp_path / "other"), str(tmp_path / "out.parquet")))
    pq.write_table(pa.table({"x": [1]}), Path(table) / "data" / "x.parquet")
    with pytest.raises(RayDetrError, match=r"x\.parquet has no column detections, .*Move it out of data/"):
        export(ExportConfig(table, str(tmp_path / "out.parquet")))


@pytest.mark.parametrize(
    ("out", "options", "sentence"),
    [
        ("s3://b/out.parquet", {}, "is one file in an object store"),
        ("s3://lake/table/data/out", {}, "is inside the table"),
        ("s3://lake/table", {}, "is inside the table"),
        ("out.jsonl", {"format": "parquet"}, r"out\.jsonl does not end in \.parquet"),
        (
            "out.json",
            {},
            "may be one of several formats. Choose one with --to: coco-dataset, labelstudio, megadetector",
        ),
        ("out.json", {"format": "yolo"}, r"yolo is a folder of files, but out\.json is the name of a file"),
        ("out.csv", {"file_images": 5}, "one file holds all images. Name a folder"),
    ],
)
def test_what_cannot_be_written_is_refused(out: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ExportConfig("s3://lake/table", out, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("out", ["t.tsv", "exports/t.xlsx", "t.parquet.zst", "s3://lake/t.csv.gz"])
def test_a_file_of_another_kind_is_refused_and_does_not_become_a_folder(out: str) -> None:
    with pytest.raises(
        ValueError, match=r"would be a folder, but has the suffix of a file, and the suffixes of files are \.csv or "
    ):
        ExportConfig("table", out)


@pytest.mark.parametrize("out", ["exports", "exports/v1.2", "t.csv/", "2026.11.28"])
def test_a_folder_may_have_a_dot_in_its_name(out: str) -> None:
    assert not ExportConfig("table", out).is_file


FP32, BF16 = '{"precision":"fp32","threshold":0.05}', '{"precision":"bf16","threshold":0.05}'


@pytest.fixture
def of_two_settings(tmp_path: Path) -> str:
    """Image `a` labelled by an earlier release in fp32, whose file has no settings, and `a` and `b` in bf16."""
    place = str(tmp_path / "two")
    store = open_store(place)
    for day, (precision, uris) in enumerate((("fp32", "a"), ("bf16", "ab")), 1):
        request = RunRequest("detr@1", "1", {"threshold": 0.05, "precision": precision}, 64, {}, f"run-{day}")
        run = begin_run(
            store, request, after=latest_run(store), shard_images=64, precision=precision, now=NOW, tail="0001"
        )
        assert run is not None
        finish_run(store, run.run_id, now=NOW, totals={"rows": 1, "detections": 0, "errors": {}})
        origin = Origin("detr@1", 0.05, run.run_id, 0, NOW + timedelta(days=day), run.settings)
        rows = rows_to_table([Row(uri, detections=Detected([], (), [], [])) for uri in uris], origin=origin)
        rows = rows.drop_columns(["settings"]) if day == 1 else rows
        store.put(f"data/run-{day}/00000.parquet", encode(rows))
    return place


def test_rows_of_an_earlier_release_are_exported_with_the_settings_of_their_run(
    of_two_settings: str, tmp_path: Path
) -> None:
    rows = exported(of_two_settings, tmp_path / "all.parquet")

    assert [(row["uri"], row["settings"]) for row in rows] == [("a", FP32), ("a", BF16), ("b", BF16)]


def test_settings_choose_rows_and_what_is_current_among_them(of_two_settings: str, tmp_path: Path) -> None:
    summary = export(ExportConfig(of_two_settings, str(tmp_path / "latest.parquet"), latest=True))
    assert summary.settings == {BF16: 2}

    for settings, expected in ((FP32, [("a", "run-1")]), (BF16, [("a", "run-2"), ("b", "run-2")])):
        for latest in (True, False):
            out = tmp_path / f"{settings[14]}{latest}.parquet"
            rows = exported(of_two_settings, out, settings=settings, latest=latest)
            assert [(row["uri"], row["run_id"]) for row in rows] == expected
    with pytest.raises(RayDetrError, match=r"has no rows of model detr@1 with the settings \{\}\."):
        export(ExportConfig(of_two_settings, str(tmp_path / "no.parquet"), model="detr@1", settings="{}"))
