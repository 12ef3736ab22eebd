"""Sealing a run that will not be finished: whatever of it is still alive can publish nothing any more."""

from __future__ import annotations

import json
from datetime import datetime

from pipelines.labelling.manifest import ListingPosition, Segment, read_kept_schema, read_manifest, write_segment
from pipelines.labelling.publish import write_sealed_file
from pipelines.labelling.run import End, Run, end_run, run_key
from pipelines.store import NotFound, Store, put_if_absent
from pipelines.table.schema import NO_COLUMNS


def seal_run(table: Store, run: Run, *, now: datetime) -> End:
    """Close a run's manifest, create its unpublished table files without rows, then write that it has ended.

    In this order, so that after a crash anywhere the run is still unfinished and sealing it again completes it, which
    every start does that finds the seal begun. What the run has published stays. Whoever else ended it in the same
    moment is right: how it ended is returned.

    Raises:
        RayDetrError: the manifest is damaged.
        StoreError: the store refused; seal again.
    """
    record = {"sealed_at": now.isoformat()}
    put_if_absent(table, _begun_key(run.run_id), (json.dumps(record, indent=2) + "\n").encode())
    segments = list(read_manifest(table, run.run_id))
    while not segments or segments[-1].ending is None:
        # a planner that is still alive may be faster: then there is one segment more to close behind
        position = segments[-1].position if segments else ListingPosition()
        planned, _ = write_segment(table, run.run_id, Segment(len(segments), (), position), NO_COLUMNS, ending="sealed")
        segments.append(planned)
    kept = read_kept_schema(table, run.run_id)
    for segment in segments[:-1]:
        write_sealed_file(table, run, segment.index, kept)
    return end_run(table, run.run_id, End("sealed", now, {}))


def is_seal_begun(table: Store, run_id: str) -> bool:
    """Return whether a start has begun to seal a run: some of its files may be closed, and it cannot be resumed."""
    try:
        table.head(_begun_key(run_id))
    except NotFound:
        return False
    return True


def _begun_key(run_id: str) -> str:
    return run_key(run_id, "sealing.json")
