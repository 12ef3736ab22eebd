"""Names that lead out of a folder, in whatever names keys: a store, a run's record, a plan, a list, annotations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling.run import latest_run, read_end
from pipelines.lake.listing import list_objects
from pipelines.store import NotFound, StoreError, open_store

OUTSIDE = ["../outside", "data/../../outside", "..", "data/..", "../store/../outside", "./../outside"]
NO_FILES = ["a\0b", "\0", "../outside\0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a store, and beside it a file that none of its keys may reach."""
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "store" / "data").mkdir(parents=True)
    return tmp_path / "store"


@pytest.mark.parametrize("kind", ["a folder", "a folder through fsspec"])
@pytest.mark.parametrize("key", OUTSIDE + NO_FILES)
def test_no_key_reads_writes_or_removes_what_is_beside_the_store(folder: Path, key: str, kind: str) -> None:
    store = open_store(str(folder) if kind == "a folder" else f"local://{folder}")

    for call in (
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.get_range(key, 0, 3),
        lambda: store.put(key, b"1"),
        lambda: store.put(key, b"1", create=True),
        lambda: store.delete(key),
    ):
        try:
            call()
        except StoreError:
            continue

    assert (folder.parent / "outside").read_bytes() == b"secret"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["outside", "store"]
    assert list((folder / "data").iterdir()) == []
    with pytest.raises(StoreError):
        store.get(key)


@pytest.mark.parametrize("prefix", ["../", "data/../../"])
def test_no_prefix_lists_what_is_beside_the_store(folder: Path, prefix: str) -> None:
    with pytest.raises(NotFound, match="leads outside"):
        list(open_store(str(folder)).list(prefix))


def test_an_absolute_key_is_a_name_below_the_store(folder: Path) -> None:
    store = open_store(str(folder))

    store.put(str(folder.parent / "outside"), b"1")

    assert (folder.parent / "outside").read_bytes() == b"secret"
    assert (folder / str(folder.parent / "outside").lstrip("/")).read_bytes() == b"1"


@pytest.mark.parametrize("run_id", ["../outside", "/etc", "a/../../b", "..", "a\0b", ""])
def test_a_run_of_such_a_name_is_a_damaged_record(folder: Path, run_id: str) -> None:
    store = open_store(str(folder))
    record = {
        "record_version": 1, "run_id": run_id, "number": 1, "shard_images": 4, "model": "m", "model_sha256": "0",
        "configuration": {}, "versions": {}, "started_at": "2026-11-26T00:00:00+00:00",
    }  # fmt: skip
    store.put("_runs/_order/0000001.json", json.dumps(record).encode())

    with pytest.raises(RayDetrError, match="is damaged"):
        latest_run(store)


def test_an_end_is_not_looked_for_outside(folder: Path) -> None:
    (folder.parent / "end.json").write_text('{"state": "finished", "ended_at": "2026-11-26T00:00:00", "totals": {}}')

    assert read_end(open_store(str(folder)), "../..") is None


def test_a_name_in_a_list_means_the_same_file_everywhere(folder: Path) -> None:
    (folder / "list.csv").write_text("uri\n../outside\ndata/../data/a.jpg\n")

    found = [item.uri for item in list_objects([str(folder / "list.csv")])]  # type: ignore[union-attr]

    assert found == sorted([f"file://{folder.parent}/outside", f"file://{folder}/data/a.jpg"])
