"""Runs of a table, begun as a driver begins them, for tests that are about something else."""

from __future__ import annotations

import json
from datetime import datetime

from pipelines.labelling.run import Run, RunRequest, begin_run, find_unfinished, latest_run, resume_run
from pipelines.store import Store


def begin_as_an_earlier_release(table: Store) -> None:
    """Have a first run of a release that put the files of each run into a folder; it was sealed without rows."""
    record = {
        "record_version": 2,
        "run_id": "earlier",
        "number": 1,
        "model": "detr@0",
        "model_sha256": "detr@0",
        "configuration": {},
        "shard_images": 1,
        "versions": {},
        "started_at": "2026-11-20T00:00:00+00:00",
        "precision": "fp32",
    }
    end = {"state": "sealed", "ended_at": "2026-11-20T00:01:00+00:00", "totals": {}}
    for key, value in (("_order/0000001.json", record), ("earlier/run.json", record), ("earlier/end.json", end)):
        table.put(f"_runs/{key}", json.dumps(value).encode())


def start_run(table: Store, request: RunRequest, *, now: datetime, tail: str) -> tuple[Run, bool]:
    """Return the run to work on, and whether it was begun before: the table's unfinished run, else a new one."""
    while True:
        unfinished = find_unfinished(table)
        if unfinished is not None:
            return resume_run(table, unfinished, request), True
        run = begin_run(table, request, after=latest_run(table), shard_images=64, precision="fp32", now=now, tail=tail)
        if run is not None:
            return run, False
