"""Runs of a table, begun as a driver begins them, for tests that are about something else."""

from __future__ import annotations

from datetime import datetime

from pipelines.labelling.run import Run, RunRequest, begin_run, find_unfinished, latest_run, resume_run
from pipelines.store import Store


def start_run(table: Store, request: RunRequest, *, now: datetime, tail: str) -> tuple[Run, bool]:
    """Return the run to work on, and whether it was begun before: the table's unfinished run, else a new one."""
    while True:
        unfinished = find_unfinished(table)
        if unfinished is not None:
            return resume_run(table, unfinished, request), True
        run = begin_run(table, request, after=latest_run(table), shard_images=64, precision="fp32", now=now, tail=tail)
        if run is not None:
            return run, False
