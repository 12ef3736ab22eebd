"""Whether a table is whole: each file as planned, no image's version twice, nothing missing and nothing foreign."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipelines.clock import Clock
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.duplicates import find_duplicate_rows
from pipelines.labelling.manifest import PlannedSegment, read_manifest
from pipelines.labelling.publish import read_done
from pipelines.labelling.run import Run, State, list_runs, read_state, run_key
from pipelines.labelling.verify_file import check_parts, check_table_file
from pipelines.store import NotFound, Store, StoreEntry, join_uri
from pipelines.strict_json import count_field, parse_object, text_field
from pipelines.table.files import parse_table_file_key, table_file_key

POSITION_VERSION: Final = 1
SAVE_SECONDS: Final = 60.0  # how much of a start that is killed is verified again


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found, and how much of the table it has seen.

    Attributes:
        findings: sentences, each of which names a file.
        findings_before: how many the earlier starts of this pass found in the files that they verified.
        files: table files that are verified, by the earlier starts of this pass, too.
        files_total: that there are.
        images: planned images of the verified files.
        images_total: planned images of all files.
        is_complete: whether the pass is through: all files, and that no version of an image has two rows.
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
) -> Verification:
    """Verify a table against the plans of its runs; return all that is wrong with it.

    First what the listings tell: files of no plan, files that are missing. Then parts that are not published yet, then
    the files in the order of their keys, read whole, then whether two rows are of the same version of an image: over
    all runs, and as one step that is not divided, which reads what planning a run reads. Rows of a live run may be
    added meanwhile; they are not looked at. Memory: 3 kB a table file, one row group, and for the last step 16 bytes an
    `ok` row, twice that for a moment.

    With `max_seconds` it stops, behind at least one file, when they are over, and keeps where it stopped in
    `_runs/_verified.json` (of one run: `_runs/<run_id>/_verified.json`); the next verification with `max_seconds` goes
    on there, and after the last step begins anew. That object is written over by plain puts: of two verifications at
    once the later decides, which costs no more than files that are verified twice. Without `max_seconds` everything is
    verified and nothing is written.

    Args:
        table: The table.
        run_id: Only the files of this run; None means all. Second rows are looked for in all runs all the same.
        max_seconds: After how long to stop.
        clock: What time it is.
        show: Called in this thread behind every file.

    Raises:
        RayDetrError: there is no such run, a run's record is damaged, or where an earlier verification stopped is.
        StoreError: the store refused.
    """
    deadline = math.inf if max_seconds is None else clock.monotonic() + max_seconds
    is_partial = max_seconds is not None
    contents = _look(table, run_id)
    findings = list(contents.findings)
    position = _read_position(table, run_id) if is_partial else _Position()
    if is_partial:
        _write_position(table, run_id, position)  # rather now than at the end: it may be refused
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
    for file in left:
        found = list(check_table_file(table, file.entry, file.run, file.segment, is_finished=file.state == "finished"))
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
    findings.extend(sentence for sentence in find_duplicate_rows(table, contents.of_runs) if sentence not in findings)
    if is_partial:
        _write_position(table, run_id, _Position())
    return replace(done, findings=tuple(findings), is_complete=True)


@dataclass(frozen=True, slots=True)
class _File:
    """A published file of a run; `segment` is None where the run's plan is damaged."""

    entry: StoreEntry
    run: Run
    state: State
    segment: PlannedSegment | None


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a table holds by its listings: files to verify by key, those of all runs, and parts not published yet."""

    files: Sequence[_File]
    of_runs: Sequence[StoreEntry]
    unpublished: Sequence[tuple[Run, PlannedSegment, list[int]]]
    findings: Sequence[str]


def _look(table: Store, run_id: str | None) -> _Contents:
    # In this order: runs that had ended before have all their files in the listing, and files of the listing have
    # their run and their plan afterwards.
    states = {run.run_id: read_state(table, run.run_id) for run in list_runs(table)}
    entries = {entry.key: entry for entry in table.list("data/")}
    runs = {run.run_id: run for run in list_runs(table)}
    if run_id is not None and run_id not in runs:
        raise UsageError(f"table {table.uri} has no run {run_id}. `ray-detr runs` lists its runs.")
    findings: list[str] = []
    unpublished: list[tuple[Run, PlannedSegment, list[int]]] = []
    files: dict[str, _File] = {}
    damaged: set[str] = set()
    for run in runs.values():
        if run_id not in (None, run.run_id):
            continue
        state = states.get(run.run_id, "planning")
        try:
            segments = [segment for segment in read_manifest(table, run.run_id) if segment.ending is None]
        except RayDetrError as error:
            findings.append(str(error))
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
        # in the other layout than the table's, some engines would not see it
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
    """Behind which file a pass stands, and what it has found in the files up to there."""

    after: str = ""
    findings: int = 0


def _position_key(run_id: str | None) -> str:
    # the underscore: no run's name begins with it, so neither is in the way of a run's folder
    return "_runs/_verified.json" if run_id is None else run_key(run_id, "_verified.json")


def _read_position(table: Store, run_id: str | None) -> _Position:
    key = _position_key(run_id)
    try:
        record = parse_object(table.get(key).data)
        if record.get("version") != POSITION_VERSION:
            raise ValueError("of another version")  # noqa: TRY301 - told like all else
        return _Position(text_field(record, "after"), count_field(record, "findings"))
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
