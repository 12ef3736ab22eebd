"""Each record in `bucket.zip` is read as its earlier version wrote it, and would be written with the same bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pipelines.labelling import lease
from pipelines.labelling.manifest import read_complete, read_manifest
from pipelines.labelling.run import list_runs, read_end, read_run
from pipelines.labelling.run_summaries import summarise_runs
from pipelines.shards.reader import read_index
from pipelines.store import Store
from pipelines.training import checkpoint_index, run_record
from tests.memory_store import memory_store


def earlier(folder: str) -> Store:
    store = memory_store(f"memory://{folder}")
    with zipfile.ZipFile(Path(__file__).with_name("bucket.zip")) as archive:
        for name in archive.namelist():
            if name.startswith(f"{folder}/"):
                store.put(name.removeprefix(f"{folder}/"), archive.read(name))
    return store


@pytest.mark.parametrize(
    ("name", "state", "planned", "rows"),
    [("finished", "finished", 72, 72), ("unfinished", None, 72, 64), ("sealed", "sealed", 72, 64),
     ("quarantined", "finished", 4, 4)],
)  # fmt: skip
def test_a_table_is_read(name: str, state: str | None, planned: int, rows: int) -> None:
    table = earlier(f"tables/{name}")
    (run,) = list_runs(table)
    end = read_end(table, run.run_id)

    assert read_run(table, run.run_id) == run
    assert (run.precision, run.tells_settings_apart, run.layout) == ("fp32", False, "folders")
    assert run.configuration["retry_errors"] == "passing"
    assert (end and end.state) == state
    assert read_complete(table, run.run_id).images == planned
    assert sum(segment.images for segment in read_manifest(table, run.run_id)) == planned
    assert [summary.rows for summary in summarise_runs(table)] == [rows]
    holder, _ = lease._read(table)
    assert holder.is_released == (name != "unfinished")
    assert lease._encode(holder) == table.get(lease.LEASE_KEY).data


@pytest.mark.parametrize(("name", "number", "steps"), [("stopped", 20, [17]), ("straight", 5, [240])])
def test_a_training_run_is_read(name: str, number: int, steps: list[int]) -> None:
    run = earlier(f"runs/{name}")
    record, manifest = run_record.read_record(run), checkpoint_index.read_manifest(run)

    assert record is not None
    assert record.configuration["epochs"] > 0
    assert manifest is not None
    assert (manifest.number, [saved.step for saved in manifest.checkpoints]) == (number, steps)
    assert checkpoint_index._encode(manifest) == run.get(checkpoint_index._key(number)).data


def test_training_shards_are_read() -> None:
    index = read_index(earlier("shards"))

    assert (index.images, index.annotations, len(index.files), len(index.categories)) == (12, 48, 1, 6)
