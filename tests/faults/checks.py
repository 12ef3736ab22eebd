"""What must hold of a table after whatever was done to the runs that wrote it; each fault's test ends with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.labelling.manifest import PlannedSegment, read_complete, read_manifest, read_planned
from pipelines.store import open_store
from pipelines.table.files import table_file_key
from tests.faults.reader import read_once, table_files

READER = Path(__file__).with_name("reader.py")


@contextmanager
def watched(table: Path | str, history: Path) -> Iterator[list[Mapping[str, Any]]]:
    """Read the table in another process all the while; the list holds what was seen, once the block is left."""
    seen: list[Mapping[str, Any]] = []
    reader = subprocess.Popen(
        [sys.executable, str(READER), str(table), str(history)], stderr=subprocess.PIPE, text=True
    )
    try:
        yield seen
        history.with_name(history.name + ".stop").touch()
        _, err = reader.communicate(timeout=120)
        assert reader.returncode == 0, err
    finally:
        if reader.poll() is None:
            reader.kill()
            reader.communicate()
    seen += [json.loads(line) for line in history.read_text().splitlines()]


def check_history(seen: Sequence[Mapping[str, Any]]) -> None:
    """Each reading was of whole files and unique rows; what was there once stayed, byte for byte."""
    assert seen, "the reader never read"
    before: Mapping[str, str] = {}
    for reading in seen:
        assert reading["twice"] == [], f"rows that were there twice: {reading['twice']}"
        assert before.items() <= reading["files"].items(), "a file that readers had seen is gone or changed"
        before = reading["files"]


def check_table(table: Path | str, run_id: str) -> int:
    """The one finished run of a table holds what was planned, once, and nothing else; return its images."""
    store = open_store(str(table))
    segments = [segment for segment in read_manifest(store, run_id) if segment.ending is None]
    planned = Counter(
        uri for segment in segments for uri in read_planned(store, run_id, segment.index)[0]["uri"].to_pylist()
    )
    reading = read_once(str(table))

    assert planned
    assert max(planned.values()) == 1
    assert set(reading["files"]) == {
        table_file_key(run_id, segment.index, "flat").removeprefix("data/") for segment in segments
    }, "files that no segment has, or segments without their file"
    assert reading["twice"] == []
    assert labelled_uris(table) == planned
    assert [entry.key for entry in store.list("_runs/") if "/parts/" in entry.key] == [], "parts are left"
    assert read_complete(store, run_id).images == planned.total()
    return planned.total()


def labelled_uris(table: Path | str) -> Counter[str]:
    """Return how many rows each URI has."""
    found: Counter[str] = Counter()
    for _, blob in table_files(str(table)):
        found.update(pq.ParquetFile(pa.BufferReader(blob)).read(columns=["uri"])["uri"].to_pylist())
    return found


def images_begun(work: Path, table: Path | str, run_id: str) -> int:
    """Return how many images lie in the shards that actors began, each time counted."""
    shards: dict[int, int] = {}
    for segment in read_manifest(open_store(str(table)), run_id):
        shards.update(_images(segment))
    return sum(shards[one.shard] for one in begun(work) if one.run_id == run_id)


class Begun(NamedTuple):
    """One beginning of a shard, by the process that did it."""

    run_id: str
    shard: int
    pid: int
    host: str


def begun(work: Path) -> list[Begun]:
    """Return what actors began, in order."""
    lines = (line.split() for line in work.read_text().splitlines())
    return [Begun(run_id, int(shard), int(pid), host) for run_id, shard, pid, host in lines]


def _images(segment: PlannedSegment) -> dict[int, int]:
    return dict(zip(segment.shards, segment.shard_images, strict=True))
