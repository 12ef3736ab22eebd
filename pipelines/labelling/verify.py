"""Verifies a table: every file as planned, no version of an image twice, no file missing and no other file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

from pipelines.clock import Clock
from pipelines.concurrently import map_concurrently, map_small
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.duplicates import find_duplicate_rows
from pipelines.labelling.manifest import PlannedSegment, read_manifest
from pipelines.labelling.publish import THREADS, read_done
from pipelines.labelling.run import Run, State, list_runs, read_state, run_key
from pipelines.labelling.verify_file import check_parts, check_table_file
from pipelines.parquet_files import is_small
from pipelines.store import NotFound, Store, StoreEntry, join_uri
from pipelines.strict_json import Count, parse_object, record_of
from pipelines.table.files import parse_table_file_key, table_file_key

POSITION_VERSION: Final = 1
SAVE_SECONDS: Final = 60.0  # the most that is verified again after a process was killed


@dataclass(frozen=True, slots=True)
class Verification:
    """The findings of a verification, and how much of the table it has read.

    Attributes:
        findings: messages, each of which names a file.
        findings_before: number of findings of earlier calls in the same pass.
        files: verified table files, including those of earlier calls in the same pass.
        files_total: all table files.
        images: planned images of the verified files.
        images_total: planned images of all files.
        is_complete: whether the pass has ended, including the search for versions of an image with two rows.
    """

    findings: tuple[str, ...] = ()
    findings_before: int = 0
    files: int = 0
    files_total: int = 0
    images: int = 0
    images_total: int = 0
    is_complete: bool = False


def verify_table(
    table: Store,
    *,
    run_id: str | None = None,
    max_seconds: float | None = None,
    clock: Clock,
    show: Callable[[Verification], None] = lambda _: None,
    threads: int = THREADS,
) -> Verification:
    """Verify a table against the plans of its runs and return what is wrong.

    Four steps: compare listings with the plans (missing and unknown files); check parts that are not published; read
    every table file in the order of keys; search all runs for versions of an image with two rows. The last step cannot
    be divided and reads the same columns as planning does. Rows that a live run adds meanwhile are ignored. Memory:
    3 kB for each table file, one row group (of small files `threads`), and in the last step 16 bytes (for a moment 32)
    for each `ok` row.

    With `max_seconds` it stops after that time, but after at least one file, and saves its position in
    `_runs/_verified.json` (with `run_id`: `_runs/<run_id>/_verified.json`). The next call with `max_seconds` continues
    there; after the last step a new pass begins. If two verifications run concurrently, the later put of the position
    wins, and some files are verified twice. Without `max_seconds` everything is verified and nothing is written.

    Args:
        table: The table.
        run_id: Verify the files of this run only; None means all. Duplicate rows are searched in all runs anyway.
        max_seconds: Time after which to stop.
        clock: The clock.
        show: Called in this thread after every file.
        threads: Records of runs and small files to read concurrently.

    Raises:
        RayDetrError: there is no such run, or a run's record or the saved position is damaged.
        StoreError: the store refused.
    """
    deadline = math.inf if max_seconds is None else clock.monotonic() + max_seconds
    is_partial = max_seconds is not None
    contents = _look(table, run_id, threads)
    findings = list(contents.findings)
    position = _read_position(table, run_id) if is_partial else _Position()
    if is_partial:
        _write_position(table, run_id, position)  # now rather than at the end: the store may refuse it
    left = [file for file in contents.files if file.entry.key > position.after]
    done = Verification(
        findings_before=position.findings,
        files=len(contents.files) - len(left),
        files_total=len(contents.files),
        images=_images(contents.files) - _images(left),
        images_total=_images(contents.files),
    )
    for run, segment, shards in contents.unpublished:
        findings.extend(check_parts(table, run, segment, shards))
    saved_at = clock.monotonic()

    def check(file: _File) -> list[str]:
        is_finished = file.state == "finished"
        return list(check_table_file(table, file.entry, file.run, file.segment, is_finished=is_finished))

    # closed here: otherwise one of its own threads may drop the last reference, and a thread cannot wait for itself
    with closing(map_small(check, left, is_small=lambda file: is_small(file.entry), threads=threads)) as checks:
        for file, found in zip(left, checks, strict=False):  # left early, at the deadline
            findings.extend(found)
            position = _Position(file.entry.key, position.findings + len(found))
            done = replace(done, files=done.files + 1, images=done.images + _images([file]))
            show(done)
            if clock.monotonic() >= deadline:
                break
            if is_partial and clock.monotonic() >= saved_at + SAVE_SECONDS:
                _write_position(table, run_id, position)
                saved_at = clock.monotonic()
    if left and clock.monotonic() >= deadline:
        _write_position(table, run_id, position)
        return replace(done, findings=tuple(findings))
    duplicates = find_duplicate_rows(table, contents.of_runs, threads=threads)
    findings.extend(sentence for sentence in duplicates if sentence not in findings)
    if is_partial:
        _write_position(table, run_id, _Position())
    return replace(done, findings=tuple(findings), is_complete=True)


@dataclass(frozen=True, slots=True)
class _File:
    """A published file of a run; `segment` is None if the plan of the run is damaged."""

    entry: StoreEntry
    run: Run
    state: State
    segment: PlannedSegment | None


@dataclass(frozen=True, slots=True)
class _Contents:
    """The contents of a table by its listings: files to verify by key, files of all runs, and unpublished parts."""

    files: Sequence[_File]
    of_runs: Sequence[StoreEntry]
    unpublished: Sequence[tuple[Run, PlannedSegment, list[int]]]
    findings: Sequence[str]


def _look(table: Store, run_id: str | None, threads: int) -> _Contents:
    # The order matters: files of runs that ended before are all in the listing, and the plans of listed files exist
    # when they are read afterwards.
    before = list(list_runs(table, threads=threads))
    found_states = map_concurrently(lambda run: read_state(table, run.run_id), before, threads=threads)
    states = {run.run_id: state for run, state in zip(before, found_states, strict=True)}
    entries = {entry.key: entry for entry in table.list("data/")}
    known = {run.number: run for run in before}
    runs = {run.run_id: run for run in list_runs(table, known=known, threads=threads)}
    if run_id is not None and run_id not in runs:
        raise UsageError(f"table {table.uri} has no run {run_id}. `ray-detr runs` lists its runs.")
    findings: list[str] = []
    unpublished: list[tuple[Run, PlannedSegment, list[int]]] = []
    files: dict[str, _File] = {}
    damaged: set[str] = set()

    def read_segments(run: Run) -> list[PlannedSegment] | RayDetrError:
        try:
            return [segment for segment in read_manifest(table, run.run_id) if segment.ending is None]
        except RayDetrError as error:
            return error

    wanted = [run for run in runs.values() if run_id in (None, run.run_id)]
    for run, segments in zip(wanted, map_concurrently(read_segments, wanted, threads=threads), strict=True):
        state = states.get(run.run_id, "planning")
        if isinstance(segments, RayDetrError):
            findings.append(str(segments))
            damaged.add(run.run_id)
            continue
        for segment in segments:
            key = table_file_key(run.run_id, segment.index, run.layout)
            if key in entries:
                files[key] = _File(entries[key], run, state, segment)
            elif state in ("finished", "sealed"):
                findings.append(f"{join_uri(table.uri, key)} is missing: its {segment.images:,} images have no row.")
        if state in ("planning", "labelling"):
            done = read_done(table, run.run_id, run.layout)
            unpublished += [
                (run, segment, shards)
                for segment in segments
                if segment.index not in done.published
                and (shards := [shard for shard in segment.shards if shard in done.parts])
            ]
    of_runs: list[StoreEntry] = []
    for key, entry in entries.items():
        found = parse_table_file_key(key)
        owner = None if found is None else runs.get(found[0])
        # not in the layout of the table: some engines would not see the file
        if found is None or owner is None or key != table_file_key(*found, owner.layout):
            findings.append(f"{join_uri(table.uri, key)} belongs to no run of this table. Move it out of data/.")
            continue
        of_runs.append(entry)
        if owner.run_id in damaged:
            files[key] = _File(entry, owner, states.get(owner.run_id, "planning"), None)
        elif key not in files and run_id in (None, owner.run_id):
            findings.append(f"{join_uri(table.uri, key)} is not in the plan of its run. Move it out of data/.")
    return _Contents([files[key] for key in sorted(files)], of_runs, unpublished, findings)


def _images(files: Iterable[_File]) -> int:
    return sum(file.segment.images for file in files if file.segment is not None)


@dataclass(frozen=True, slots=True)
class _Position:
    """The last file that a pass has verified, and its findings so far."""

    after: str = ""
    findings: Count = 0


def _position_key(run_id: str | None) -> str:
    # no run's name begins with an underscore, so this cannot be a run's folder
    return "_runs/_verified.json" if run_id is None else run_key(run_id, "_verified.json")


def _read_position(table: Store, run_id: str | None) -> _Position:
    key = _position_key(run_id)
    try:
        record = parse_object(table.get(key).data)
        if record.pop("version", None) != POSITION_VERSION:
            raise ValueError("of another version")  # noqa: TRY301 - reported like other damage
        return record_of(_Position, record)
    except NotFound:
        return _Position()
    except ValueError as error:
        raise RayDetrError(
            f"{join_uri(table.uri, key)} is damaged: the position of the last verification cannot be read from it. "
            "Remove it to verify from the first file."
        ) from error


def _write_position(table: Store, run_id: str | None, position: _Position) -> None:
    record = {"version": POSITION_VERSION, "after": position.after, "findings": position.findings}
    table.put(_position_key(run_id), (json.dumps(record, indent=2) + "\n").encode())
