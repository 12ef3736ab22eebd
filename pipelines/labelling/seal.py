"""Seals an unfinished run, so that processes that still work on it cannot publish any more."""

from __future__ import annotations

import json
from datetime import datetime

from pipelines.labelling.manifest import ListingPosition, Segment, read_kept_schema, read_manifest, write_segment
from pipelines.labelling.publish import write_sealed_file
from pipelines.labelling.run import End, Run, end_run, run_key
from pipelines.store import NotFound, Store, put_if_absent
from pipelines.table.schema import NO_COLUMNS


def seal_run(table: Store, run: Run, *, now: datetime) -> End:
    """End a run's manifest, create its unpublished table files without rows, then record that the run has ended.

    In this order a crash anywhere leaves an unfinished run whose seal is begun. The next attempt finds that and
    completes the seal. Published rows stay. If another process ended the run at the same moment, its record is
    returned.

    Raises:
        RayDetrError: the manifest is damaged.
        StoreError: the store refused; call again.
    """
    record = {"sealed_at": now.isoformat()}
    put_if_absent(table, _begun_key(run.run_id), (json.dumps(record, indent=2) + "\n").encode())
    segments = list(read_manifest(table, run.run_id))
    while not segments or segments[-1].ending is None:
        # a process that is still planning may have written one more segment: end the manifest after that
        position = segments[-1].position if segments else ListingPosition()
        planned, _ = write_segment(table, run.run_id, Segment(len(segments), (), position), NO_COLUMNS, ending="sealed")
        segments.append(planned)
    kept = read_kept_schema(table, run.run_id)
    for segment in segments[:-1]:
        write_sealed_file(table, run, segment.index, kept)
    return end_run(table, run.run_id, End("sealed", now, {}))


def is_seal_begun(table: Store, run_id: str) -> bool:
    """Return whether a process has begun to seal a run, which therefore cannot be resumed."""
    try:
        table.head(_begun_key(run_id))
    except NotFound:
        return False
    return True


def _begun_key(run_id: str) -> str:
    return run_key(run_id, "sealing.json")
