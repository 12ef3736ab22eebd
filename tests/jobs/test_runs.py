"""The command `runs`: what a table's runs are and whether what they wrote is whole, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.runs import main
from pipelines.labelling.lease import holding
from pipelines.labelling.manifest import read_shard
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, publish_group
from pipelines.labelling.run import Run, RunRequest, finish_run, start_run
from pipelines.lake.listing import LakeObject, Listing
from pipelines.stopped import RunStopped
from pipelines.store import Store, open_store
from pipelines.table import NO_COLUMNS, Detected, Origin, Row, rows_to_table

NOW = datetime(2026, 11, 22, 18, 15, 3, tzinfo=UTC)
FOUND = Detected([1], ("dog",), [0.5], [[0, 0, 1, 1]])


@pytest.fixture
def table(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "table"))


def start(table: Store, run_id: str) -> Run:
    return start_run(table, RunRequest("detr@1", "1", {}, 2, {}, run_id=run_id), now=NOW, tail="0001")[0]


def label(table: Store, run: Run) -> None:
    """Plan, label and publish three images, of which one cannot be read; the run is not ended."""

    def stream(after: str | None) -> Iterator[LakeObject]:
        return (LakeObject(f"s3://b/{run.run_id}/{number}", "e") for number in range(3))

    listing = Listing((stream,), NO_COLUMNS)
    (segment,) = write_plan(table, run.run_id, listing, lambda objects: [False] * len(objects), shard_images=2)
    for shard in segment.shards:
        rows = [
            Row(item.uri, "e", detections=FOUND) if item.uri[-1] != "2" else Row(item.uri, "e", error_kind="truncated")
            for item in read_shard(table, run.run_id, shard)
        ]
        origin = Origin("detr@1", 0.5, run.run_id, shard, NOW)
        commit_part(table, run.run_id, shard, rows_to_table(rows, origin=origin), token="t")
    publish_group(table, run, segment)


def finish(table: Store, run_id: str) -> None:
    finish_run(table, run_id, now=NOW, totals={"rows": 3, "detections": 2, "errors": {"truncated": 1}})


@pytest.fixture
def labelled(table: Store) -> Store:
    """A table of a finished run, and of one that has published all and not ended."""
    label(table, start(table, "night-1"))
    finish(table, "night-1")
    label(table, start(table, "night-2"))
    return table


def test_each_run_has_its_lines_oldest_first(labelled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--table", labelled.uri])

    assert capsys.readouterr().out.splitlines() == [
        f"table {labelled.uri}: 2 runs, nobody writes it now",
        "night-1  finished  2026-11-22 18:15:03 to 2026-11-22 18:15:03  detr@1",
        "  3 of 3 planned images are published, 2 detections, 1 error: truncated 1",
        "night-2  labelling  2026-11-22 18:15:03  detr@1",
        "  3 of 3 planned images are published, 2 detections, 1 error: truncated 1",
    ]


def test_who_writes_the_table_is_told(table: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with holding(table, can_swap=False, token="a", wait_seconds=0.0, say=lambda _: None):
        main(["--table", table.uri])

    assert f"table {table.uri}: 0 runs, being written by host " in capsys.readouterr().out


def test_json_is_one_document_of_the_same(labelled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--table", labelled.uri, "--json"])

    record = json.loads(capsys.readouterr().out)
    assert (record["table"], record["holder"]) == (labelled.uri, None)
    assert record["runs"][0] == {
        "run_id": "night-1",
        "state": "finished",
        "model": "detr@1",
        "started_at": "2026-11-22T18:15:03+00:00",
        "ended_at": "2026-11-22T18:15:03+00:00",
        "images_planned": 3,
        "rows": 3,
        "detections": 2,
        "errors": {"truncated": 1},
    }
    assert (record["runs"][1]["run_id"], record["runs"][1]["ended_at"]) == ("night-2", None)


def test_a_damaged_record_stops_it_with_a_sentence(labelled: Store) -> None:
    labelled.put("_runs/_order/0000001.json", b"{")

    with pytest.raises(RunStopped, match=r"_order/0000001\.json is damaged"):
        main(["--table", labelled.uri])
