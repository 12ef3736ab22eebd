"""Seals an unfinished run, so that processes that still work on it cannot publish any more."""

from __future__ import annotations

import json
import logging
from datetime import datetime

import pyarrow as pa

from pipelines.errors import RayDetrError
from pipelines.labelling.manifest import (
    Ending,
    ListingPosition,
    Segment,
    UnknownVersion,
    list_segments,
    read_planned,
    read_segment,
    segment_of,
    write_segment,
)
from pipelines.labelling.publish import read_done, write_sealed_file
from pipelines.labelling.run import End, Run, end_run, run_key
from pipelines.parquet_files import open_listed
from pipelines.store import NotFound, Store, put_if_absent
from pipelines.table.files import DATA, parse_table_file_key
from pipelines.table.schema import NO_COLUMNS, SCHEMA, check_kept


def seal_run(table: Store, run: Run, *, now: datetime) -> End:
    """End a run's manifest, create its unpublished table files without rows, then record that the run has ended.

    In this order a crash anywhere leaves an unfinished run whose seal is begun. The next attempt finds that and
    completes the seal. Published rows stay. If another process ended the run at the same moment, its record is
    returned.

    Files of the manifest may be missing or damaged: each number up to the highest one is sealed.

    Raises:
        UnknownVersion: a later release wrote the manifest.
        StoreError: the store refused; call again.
    """
    done = read_done(table, run.run_id, run.layout)
    last = max([*done.published, *map(segment_of, done.parts)], default=-1)
    position = ListingPosition()
    kept: pa.Schema | None = None
    ending: Ending | None = None
    for index, entry in list_segments(table, run.run_id):
        last, ending = max(last, index), None
        try:
            planned, columns = read_segment(table, entry, index)
        except UnknownVersion:
            raise
        except (RayDetrError, NotFound) as error:
            logging.getLogger(__name__).warning("%s The run is sealed without it.", error)
            continue
        position, ending = planned.position, planned.ending if index == last else None
        if kept is None and planned.ending is None:
            kept = columns
    record = {"sealed_at": now.isoformat()}
    put_if_absent(table, _begun_key(run.run_id), (json.dumps(record, indent=2) + "\n").encode())
    while ending is None:
        # a process that is still planning may have written one more segment: end the manifest after that
        last += 1
        planned, _ = write_segment(table, run.run_id, Segment(last, (), position), NO_COLUMNS, ending="sealed")
        position, ending = planned.position, planned.ending
        if kept is None and ending is None:
            _, kept = read_planned(table, run.run_id, last)
    if kept is None:
        kept = _kept_of_rows(table, run)
    for index in range(last):
        if index not in done.published:
            write_sealed_file(table, run, index, kept)
    return end_run(table, run.run_id, End("sealed", now, {}))


def _kept_of_rows(table: Store, run: Run) -> pa.Schema:
    """Return the kept columns of the table's rows, of those of this run if it has any; without rows no columns."""
    listed = [(entry, parse_table_file_key(entry.key)) for entry in table.list(DATA)]
    files = [(found[0] != run.run_id, entry) for entry, found in listed if found]
    for _, entry in sorted(files, key=lambda file: file[0]):
        try:
            columns = open_listed(table, entry).schema_arrow
            kept = pa.schema([column for column in columns if column.name not in SCHEMA.names])
            check_kept(kept.names)
        except (RayDetrError, ValueError):
            continue  # `runs --verify` reports a damaged table file
        return kept
    return NO_COLUMNS


def is_seal_begun(table: Store, run_id: str) -> bool:
    """Return whether a process has begun to seal a run, which therefore cannot be resumed."""
    try:
        table.head(_begun_key(run_id))
    except NotFound:
        return False
    return True


def _begun_key(run_id: str) -> str:
    return run_key(run_id, "sealing.json")
