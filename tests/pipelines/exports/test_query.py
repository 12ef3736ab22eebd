"""SQL over a table: its three views, in folders and in S3, over rows of several models, settings and releases."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError, UsageError
from pipelines.exports.config import QueryConfig
from pipelines.exports.query import QueryResult, query_table
from pipelines.labelling.run import RunRequest, begin_run, finish_run, latest_run
from pipelines.store import Store, StoreError, StoreOptions, open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.conftest import S3Server
from tests.pipelines.report.tables import dog_and_cat, publish

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FP32 = '{"precision":"fp32","threshold":0.05}'
BF16 = '{"precision":"bf16","threshold":0.05}'
COUNTS = "SELECT label, count(*) AS number FROM detections GROUP BY ALL ORDER BY 1"


def asked(table: str, sql: str, **more: object) -> list[tuple[str | None, ...]]:
    return list(query_table(QueryConfig(table, sql, **more)).rows)  # type: ignore[arg-type]


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Two images of one model, one of which another model has labelled later, and an error."""
    place = str(tmp_path / "it's a [table]*")
    publish(place, [Row("a", detections=dog_and_cat(0.9, 0.6)), Row("b", detections=dog_and_cat(0.5, 0.3))], "run-1")
    publish(place, [Row("c", error_kind="truncated", error="it ends early")], "run-2", now=NOW + timedelta(days=9))
    later = [Row("a", detections=Detected([18], ("dog",), [0.7], [[1, 1, 9, 9]]))]
    publish(place, later, "run-3", model="other@2", now=NOW + timedelta(days=9))
    return place


def test_each_view_has_its_rows(table: str) -> None:
    assert asked(table, "SELECT uri, run_id FROM rows ORDER BY ALL") == [
        ("a", "run-1"), ("a", "run-3"), ("b", "run-1"), ("c", "run-2"),
    ]  # fmt: skip
    assert asked(table, "SELECT uri, run_id, status FROM images ORDER BY ALL") == [
        ("a", "run-3", "ok"), ("b", "run-1", "ok"), ("c", "run-2", "error"),
    ]  # fmt: skip
    found = query_table(QueryConfig(table, "SELECT uri, label, category_id, score, xmax FROM detections ORDER BY ALL"))
    assert found == QueryResult(
        ("uri", "label", "category_id", "score", "xmax"),
        (False, False, True, True, True),
        [("a", "dog", "18", "0.7", "9.0"), ("b", "cat", "17", "0.3", "70.0"), ("b", "dog", "18", "0.5", "40.0")],
    )


def test_several_statements_are_refused(table: str) -> None:
    with pytest.raises(UsageError, match=r"^the query has several statements"):
        asked(table, "SELECT 1; SELECT 2")

    assert asked(table, "SELECT 1;") == [("1",)]


def test_a_kept_column_may_have_any_name(table: str) -> None:
    rows = [Row("e", detections=dog_and_cat(0.9, 0.6), kept=("x",))]
    data = encode(rows_to_table(rows, pa.schema([("d", pa.string())]), origin=Origin("detr@1", 0.05, "run-9", 0, NOW)))
    open_store(table).put("data/run-9/00000.parquet", data)

    assert asked(table, "SELECT label FROM detections WHERE uri = 'e' ORDER BY ALL") == [("cat",), ("dog",)]


def test_a_model_has_counts_of_its_own(table: str) -> None:
    assert asked(table, COUNTS, model="detr@1") == [("cat", "2"), ("dog", "2")]
    assert asked(table, COUNTS, model="other@2") == [("dog", "1")]


def test_a_model_or_settings_that_no_row_has_are_refused_as_by_export(table: str) -> None:
    with pytest.raises(UsageError, match=r"has no rows of model detr\. `ray-detr runs`.* fingerprint: NAME@"):
        asked(table, COUNTS, model="detr")
    with pytest.raises(UsageError, match=r"has no rows of model detr@1 with the settings \{\}\."):
        asked(table, COUNTS, model="detr@1", settings="{}")


@pytest.fixture
def store_of_two_releases(tmp_path: Path) -> Store:
    """A run whose file has no column `settings`, as earlier releases wrote it, and one with other settings."""
    store = open_store(str(tmp_path / "table"))
    for day, (precision, uris) in enumerate((("fp32", "ab"), ("bf16", "a")), 1):
        request = RunRequest("detr@1", "1", {"threshold": 0.05, "precision": precision}, 64, {}, f"run-{day}")
        run = begin_run(
            store, request, after=latest_run(store), shard_images=64, precision=precision, now=NOW, tail="0001"
        )
        assert run is not None
        finish_run(store, run.run_id, now=NOW, totals={"rows": 1, "detections": 0, "errors": {}})
        origin = Origin("detr@1", 0.05, run.run_id, 0, NOW + timedelta(days=day), run.settings)
        rows = rows_to_table([Row(uri, detections=dog_and_cat(0.9, 0.6)) for uri in uris], origin=origin)
        rows = rows.drop_columns(["settings"]) if day == 1 else rows
        store.put(f"data/run-{day}/00000.parquet", encode(rows))
    return store


def test_rows_of_an_earlier_release_have_the_settings_of_their_run(store_of_two_releases: Store) -> None:
    table = store_of_two_releases.uri
    sql = "SELECT uri, run_id FROM images ORDER BY ALL"

    assert asked(table, "SELECT uri, settings FROM rows ORDER BY ALL") == [("a", BF16), ("a", FP32), ("b", FP32)]
    assert asked(table, sql, settings=FP32) == [("a", "run-1"), ("b", "run-1")]
    assert asked(table, sql, settings=BF16) == [("a", "run-2")]
    store_of_two_releases.delete("data/run-2/00000.parquet")  # no file has the column any more
    assert asked(table, sql, settings=FP32) == [("a", "run-1"), ("b", "run-1")]
    with pytest.raises(UsageError, match="has no rows with the settings"):
        asked(table, sql, settings=BF16)


def test_a_table_in_s3_is_read_with_the_same_credentials(moto: S3Server) -> None:
    place, options = f"{moto.bucket()}/a table/x", moto.options()
    rows = rows_to_table([Row("ä", detections=dog_and_cat(0.9, 0.6))], origin=Origin("detr@1", 0.05, "r", 0, NOW))
    open_store(place, options).put("data/night [1]*-00000.parquet", encode(rows))

    assert asked(place, COUNTS, options=options) == [("cat", "1"), ("dog", "1")]
    assert asked(place, "SELECT uri FROM images", options=options) == [("ä",)]


def test_what_the_store_refuses_is_said_by_the_store(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place, options = f"{moto.bucket()}/x", moto.options()
    rows = rows_to_table([Row("a", detections=dog_and_cat(0.9, 0.6))], origin=Origin("detr@1", 0.05, "r", 0, NOW))
    store = open_store(place, options)
    store.put("data/night-00000.parquet", encode(rows))

    def refused(*_: object, **__: object) -> bytes:
        raise StoreError("s3://x does not answer.")

    monkeypatch.setattr(type(store), "get_range", refused)
    with pytest.raises(RayDetrError, match=rf"^cannot query {place}: s3://x does not answer\.$") as stopped:
        asked(place, COUNTS, options=options)
    assert not isinstance(stopped.value, UsageError)


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("SELEC 1", r"the query is refused: Parser Error: syntax error at or near .SELEC.\.$"),
        ("FROM detektions", "Did you mean .detections.. The tables are detections, images, repeats, rows.$"),
        ("SELECT lable FROM detections", "lable.*Candidate bindings"),
        ("SELECT uri::INT FROM rows", "Conversion Error: .*[^^]$"),
        ("", "the query is empty"),
    ],
)
def test_a_wrong_query_is_refused_in_one_line(table: str, sql: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        asked(table, sql)
    assert "\n" not in str(refused.value)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no published rows"):
        asked(str(tmp_path / "nothing"), "FROM rows")


def test_damage_is_not_wrong_use(table: str) -> None:
    open_store(table).put("data/run-1/00000.parquet", b"PAR1 and nothing that follows it")

    with pytest.raises(RayDetrError, match=r"^cannot query .*run-1/00000\.parquet") as stopped:
        asked(table, "FROM rows")
    assert not isinstance(stopped.value, UsageError)


def test_a_long_result_is_cut_and_says_so(table: str) -> None:
    result = query_table(QueryConfig(table, "FROM range(7)", most_rows=5))

    assert (len(result.rows), result.is_cut) == (5, True)
    assert not query_table(QueryConfig(table, "FROM range(5)", most_rows=5)).is_cut


def test_files_have_all_rows_and_their_name_when_they_are_whole(table: str, tmp_path: Path) -> None:
    sql = "SELECT label, sum(category_id) AS total FROM detections GROUP BY ALL ORDER BY 1"
    out = tmp_path / "new" / "it's"
    for suffix in (".csv", ".jsonl", ".parquet"):
        query_table(QueryConfig(table, sql, out=out.with_suffix(suffix), most_rows=1))

    assert out.with_suffix(".csv").read_text() == "label,total\ncat,17\ndog,36\n"
    lines = out.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"label": "cat", "total": 17}, {"label": "dog", "total": 36}]
    assert pq.read_table(out.with_suffix(".parquet")).to_pylist() == [
        {"label": "cat", "total": 17}, {"label": "dog", "total": 36},
    ]  # fmt: skip
    with pytest.raises(UsageError, match="exists already"):
        query_table(QueryConfig(table, sql, out=out.with_suffix(".csv")))
    with pytest.raises(UsageError, match="Conversion Error"):
        query_table(QueryConfig(table, "SELECT uri::INT FROM rows", out=out.with_name("no.csv")))
    assert sorted(path.name for path in out.parent.iterdir()) == ["it's.csv", "it's.jsonl", "it's.parquet"]
    with pytest.raises(ValueError, match="does not end in one of"):
        QueryConfig(table, sql, out=out.with_suffix(".xlsx"))


@pytest.mark.parametrize("folder", ["file", "long" * 99])
def test_a_file_that_cannot_be_written_is_one_sentence(table: str, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("a file")

    with pytest.raises(RayDetrError, match=r"^cannot write .*/rows\.csv: "):
        query_table(QueryConfig(table, "FROM rows", out=tmp_path / folder / "rows.csv"))


def test_without_duckdb_it_says_what_to_install(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)

    with pytest.raises(UsageError, match=r"pip install 'ray-detr\[query\]'"):
        asked(table, "FROM rows")
    QueryConfig(table, "FROM rows", options=StoreOptions())
