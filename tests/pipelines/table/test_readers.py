"""What others read of a table: each engine sees the same rows, and nothing that is not published; in both layouts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pipelines.labelling.label import query_command
from pipelines.labelling.manifest import read_shard
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, publish_group
from pipelines.labelling.run import RunRequest, finish_run
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import StoreOptions, open_store
from pipelines.table.files import LAYOUTS
from pipelines.table.schema import Detected, Origin, Row, rows_to_table
from tests.pipelines.labelling.runs import begin_as_an_earlier_release, start_run

NOW = datetime(2026, 11, 22, 18, 15, tzinfo=UTC)
TAKEN = datetime(2024, 2, 29, 6, 30)  # noqa: DTZ001 - a camera's clock has no zone
KEPT = pa.schema([("station", pa.string())])

FOUND = {
    "a.jpg": Detected([18, 1], ("dog", "person"), [0.75, 0.5], [[0, 0, 8, 4], [1.5, 2, 3, 4]]),
    "b.jpg": Detected([], (), [], []),
    "d.jpg": Detected([18], ("dog",), [0.25], [[-1, 0, 2, 2]]),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def table(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Two runs of two images each, one of them an error; and a third run that has a part and no table file yet."""
    place = tmp_path_factory.mktemp("tables") / "detections"
    store = open_store(str(place))
    if request.param == "folders":
        begin_as_an_earlier_release(store)
    for run_id, names in (("run-1", ["a.jpg", "b.jpg"]), ("run-2", ["c.jpg", "d.jpg"]), ("run-3", ["e.jpg"])):
        run, _ = start_run(store, RunRequest("detr@1", "1", {}, 64, {}, run_id=run_id), now=NOW, tail="a1b2")

        def stream(after: str | None, names: list[str] = names) -> Iterator[LakeObject]:
            return (LakeObject(f"s3://lake/{name}", "e", 9, ("north",)) for name in names)

        plan = write_plan(
            store, run_id, Listing((stream,), KEPT), lambda objects: [False] * len(objects), shard_images=64
        )
        (segment,) = plan
        rows = [row(item) for item in read_shard(store, run_id, 0)]
        origin = Origin("detr@1", 0.05, run_id, 0, NOW)
        commit_part(store, run_id, 0, rows_to_table(rows, KEPT, origin=origin), token="t")
        if run_id != "run-3":
            publish_group(store, run, segment)
            finish_run(store, run_id, now=NOW, totals={})
    return place


def row(item: LakeObject) -> Row:
    found = FOUND.get(Path(item.uri).name)
    if found is None:
        return Row(item.uri, item.etag, item.size, error_kind="truncated", error="it ends early", kept=item.kept)
    return Row(item.uri, item.etag, item.size, 8, 4, TAKEN, found, kept=item.kept)


def by_duckdb(table: Path) -> list[dict[str, Any]]:
    # through Arrow, because `fetchall` wants pytz for times with a zone
    found: list[dict[str, Any]] = duckdb.sql(f"FROM '{table}/**/*.parquet' ORDER BY uri").to_arrow_table().to_pylist()
    return found


def by_pandas(table: Path) -> list[dict[str, Any]]:
    return pd.read_parquet(table, dtype_backend="pyarrow").sort_values("uri").to_dict("records")  # type: ignore[return-value]


def by_arrow(table: Path) -> list[dict[str, Any]]:
    return pyarrow.dataset.dataset(table / "data").to_table().sort_by("uri").to_pylist()


def by_polars(table: Path) -> list[dict[str, Any]]:
    return polars.scan_parquet(table / "data").sort("uri").collect().to_dicts()


def by_glob(table: Path) -> list[dict[str, Any]]:
    read = [row for path in sorted(table.glob("**/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(read, key=lambda row: str(row["uri"]))


READERS = (by_duckdb, by_pandas, by_arrow, by_polars, by_glob)


def plain(value: Any) -> Any:
    """Return a value as Python has it: engines have their own arrays, nulls and timestamps."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        return [plain(one) for one in value]
    if isinstance(value, datetime):
        at = value.to_pydatetime() if isinstance(value, pd.Timestamp) else value
        return at if at.tzinfo is None else at.astimezone(UTC)
    return value


@pytest.mark.parametrize("read", READERS)
def test_every_reader_sees_the_published_rows(table: Path, read: Callable[[Path], list[dict[str, Any]]]) -> None:
    rows = [{name: plain(value) for name, value in row.items()} for row in read(table)]

    assert [row["uri"] for row in rows] == [f"s3://lake/{name}" for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")]
    assert [(row["status"], row["error_kind"], row["run_id"]) for row in rows] == [
        ("ok", None, "run-1"),
        ("ok", None, "run-1"),
        ("error", "truncated", "run-2"),
        ("ok", None, "run-2"),
    ]
    assert [row["detections"] for row in rows] == [
        [
            {
                "category_id": 18,
                "label": "dog",
                "score": 0.75,
                "box": {"xmin": 0.0, "ymin": 0.0, "xmax": 8.0, "ymax": 4.0},
            },
            {
                "category_id": 1,
                "label": "person",
                "score": 0.5,
                "box": {"xmin": 1.5, "ymin": 2.0, "xmax": 3.0, "ymax": 4.0},
            },
        ],
        [],
        None,
        [
            {
                "category_id": 18,
                "label": "dog",
                "score": 0.25,
                "box": {"xmin": -1.0, "ymin": 0.0, "xmax": 2.0, "ymax": 2.0},
            }
        ],
    ]
    assert [row["taken_at"] for row in rows] == [TAKEN, TAKEN, None, TAKEN]
    assert {row["labelled_at"] for row in rows} == {NOW}
    assert {(row["etag"], row["size"], row["station"]) for row in rows} == {("e", 9, "north")}


def test_every_reader_sees_the_same_columns_in_the_same_order(table: Path) -> None:
    columns = [list(read(table)[0]) for read in READERS]

    assert all(names == columns[0] for names in columns)
    assert columns[0][:4] == ["uri", "etag", "size", "status"]
    assert columns[0][-1] == "station"


def test_a_new_table_has_its_files_in_one_folder_for_engines_that_read_no_others(table: Path) -> None:
    inside = sorted(path.name for path in (table / "data").iterdir())

    assert inside in (["run-1-00000.parquet", "run-2-00000.parquet"], ["run-1", "run-2"])  # flat, folders
    assert [row["settings"] for row in by_arrow(table)] == ['{"precision":"fp32"}'] * 4


def test_the_query_that_is_offered_can_be_copied_whatever_the_table_is_called(table: Path, tmp_path: Path) -> None:
    named = shutil.copytree(table, tmp_path / """it's "$HOME" `a` [2*?]""")
    printed = query_command(str(named), "detr@1", StoreOptions())
    assert printed.startswith("ray-detr query --table ")
    run_here = printed.replace("ray-detr query", f"{sys.executable} -m jobs.query", 1)

    done = subprocess.run(["bash", "-c", run_here], capture_output=True, text=True, check=False)  # noqa: S607

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()[2:]] == [["dog", "2"], ["person", "1"]]


def queries_of_the_documentation(table: Path) -> list[str]:
    text = (Path(__file__).parents[3] / "docs" / "table.md").read_text()
    return [block.replace("TABLE", str(table)) for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL)]


def test_the_queries_of_the_documentation_give_what_it_says(table: Path) -> None:
    by_class, by_kind, crowded, current = (
        duckdb.sql(query).to_arrow_table().to_pylist() for query in queries_of_the_documentation(table)
    )

    assert by_class == [{"label": "dog", "detections": 2}, {"label": "person", "detections": 1}]
    assert by_kind == [{"error_kind": "truncated", "images": 1, "example": "it ends early"}]
    assert crowded == []
    assert sorted(row["uri"] for row in current) == [f"s3://lake/{name}.jpg" for name in "abcd"]


def test_the_query_for_people_counts_those_above_the_score(tmp_path: Path) -> None:
    people = [{"label": "person", "score": score} for score in (0.95, 0.85, 0.5)] + [{"label": "dog", "score": 0.9}]
    folder = tmp_path / "data" / "run"
    folder.mkdir(parents=True)
    rows = [{"uri": "two", "detections": people}, {"uri": "one", "detections": people[1:]}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")

    assert duckdb.sql(queries_of_the_documentation(tmp_path)[2]).fetchall() == [("two", 2)]
