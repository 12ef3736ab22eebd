"""Summaries of a table's runs, from their records and published files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime

from pipelines.concurrently import map_concurrently
from pipelines.errors import RayDetrError
from pipelines.labelling.attempts import Attempt, Spent, read_attempts, total
from pipelines.labelling.manifest import list_segments, read_complete, read_manifest, read_segment
from pipelines.labelling.outcome import work_values
from pipelines.labelling.publish import THREADS, footer_totals, is_sealed_file, read_done
from pipelines.labelling.run import (
    End,
    Run,
    State,
    map_runs_backwards,
    read_end,
    read_numbered,
    read_state,
    run_key,
    run_numbers,
)
from pipelines.parquet_files import open_listed
from pipelines.store import NotFound, Store, join_uri
from pipelines.strict_json import record_of
from pipelines.table.files import table_file_key
from pipelines.table.schema import Totals


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, as `ray-detr runs` shows it.

    Attributes:
        run_id: name of the run.
        state: planning, labelling, finished or sealed.
        model: `name@sha256[:12]`, as in the rows.
        started_at: when it began.
        ended_at: when it was finished or sealed; None if it is unfinished.
        images_planned: images in the plan so far.
        rows: published rows.
        detections: detections in these rows.
        errors: error rows by kind.
        settings: the settings of these rows.
        attempts: the recorded attempts of a run that is not finished, oldest first. A process that was killed, or is
            still working, has no record.
        spent: totals of all recorded attempts, with the one that finished the run; None without a record, as for
            runs that an earlier release finished.
    """

    run_id: str
    state: State
    model: str
    started_at: datetime
    ended_at: datetime | None
    images_planned: int
    rows: int
    detections: int
    errors: Mapping[str, int]
    settings: str
    attempts: tuple[Attempt, ...] = ()
    spent: Spent | None = None


def summarise_runs(table: Store, *, threads: int = THREADS) -> Iterator[RunSummary]:
    """Yield a summary of each run of a table, oldest first. Ended runs without images are skipped.

    A finished run is summarised from its record and its end, because all its planned images are published; for other
    runs their attempts and the footers of their table files are read. Reads `threads` runs concurrently, and `threads`
    files of each unfinished run.

    Raises:
        RayDetrError: a record or a file is damaged.
        StoreError: the store refused.
    """
    yield from _summarise(table, run_numbers(table), threads)


def summarise_last_runs(table: Store, count: int, *, threads: int = THREADS) -> tuple[list[RunSummary], int]:
    """Return summaries of the newest `count` runs, oldest first as in `summarise_runs`, and the number of older runs.

    Reads nothing of the older ones.
    """
    older, found = list(run_numbers(table)), list[RunSummary]()
    while older and len(found) < count:  # again, if ended runs without images were skipped
        first = max(0, len(older) - (count - len(found)))
        older, chosen = older[:first], older[first:]
        found = [*_summarise(table, chosen, threads), *found]
    return found, len(older)


def _summarise(table: Store, numbers: Iterable[int], threads: int) -> Iterator[RunSummary]:
    def summarise(number: int) -> RunSummary | None:
        run = read_numbered(table, number)
        end = read_end(table, run.run_id)
        state = end.state if end is not None else read_state(table, run.run_id)
        totals = _totals(table, run, end, threads)
        planned = totals.rows if state == "finished" else _planned(table, run, is_sealed=state == "sealed")
        if end is not None and not planned and not totals.rows:
            return None
        is_finished = end is not None and end.state == "finished"
        attempts = () if is_finished else read_attempts(table, run.run_id, threads=threads)
        return RunSummary(
            run_id=run.run_id,
            state=state,
            model=run.model,
            started_at=run.started_at,
            ended_at=None if end is None else end.ended_at,
            images_planned=planned,
            rows=totals.rows,
            detections=totals.detections,
            errors=totals.errors,
            settings=run.settings,
            attempts=attempts,
            spent=_spent(table, run, end) if end is not None and is_finished else total(attempts) if attempts else None,
        )

    summaries = map_concurrently(summarise, numbers, threads=threads)
    yield from (summary for summary in summaries if summary is not None)


def settings_of_runs(table: Store, model: str, *, threads: int = THREADS) -> Iterator[str]:
    """Yield the settings of a model's runs with published rows, newest first. Reads records as it is iterated.

    Raises:
        RayDetrError: a record or a file is damaged.
        StoreError: the store refused.
    """

    def settings(run: Run) -> str | None:
        if run.model != model or not _totals(table, run, read_end(table, run.run_id), threads).rows:
            return None
        return run.settings

    yield from (found for found in map_runs_backwards(table, settings, threads=threads) if found is not None)


def _totals(table: Store, run: Run, end: End | None, threads: int) -> Totals:
    if end is not None and end.state == "finished":
        return _recorded(table, run, end.totals)
    return _published(table, run, threads)


def _recorded(table: Store, run: Run, totals: Mapping[str, object]) -> Totals:
    try:
        return record_of(Totals, {name: totals.get(name) for name in ("rows", "detections", "errors")})
    except ValueError as error:
        raise _damaged_end(table, run) from error


def _spent(table: Store, run: Run, end: End) -> Spent | None:
    recorded = end.totals.get("all_attempts")
    if recorded is None:
        return None
    if not isinstance(recorded, Mapping):
        raise _damaged_end(table, run)
    try:
        known = {one.name: recorded.get(one.name) for one in fields(Spent)}
        known["work"] = work_values(known["work"])
        return record_of(Spent, known)
    except ValueError as error:
        raise _damaged_end(table, run) from error


def _damaged_end(table: Store, run: Run) -> RayDetrError:
    uri = join_uri(table.uri, run_key(run.run_id, "end.json"))
    return RayDetrError(f"{uri} is damaged: its totals cannot be read.")


def _published(table: Store, run: Run, threads: int) -> Totals:
    def read(segment: int) -> Totals:
        key = table_file_key(run.run_id, segment, run.layout)
        entry = table.head(key)
        file = open_listed(table, entry)
        return Totals() if is_sealed_file(file) else footer_totals(file, join_uri(table.uri, key))

    published = sorted(read_done(table, run.run_id, run.layout).published)
    return sum(map_concurrently(read, published, threads=threads), start=Totals())


def _planned(table: Store, run: Run, *, is_sealed: bool) -> int:
    try:
        return read_complete(table, run.run_id).images
    except NotFound:
        pass
    try:
        return sum(segment.images for segment in read_manifest(table, run.run_id))
    except RayDetrError as error:
        if not is_sealed:
            raise
        # nobody needs the plan any more, and the other runs must be listed
        logging.getLogger(__name__).warning("%s Its images are not counted as planned.", error)
    images = 0
    for index, entry in list_segments(table, run.run_id):
        with suppress(RayDetrError):  # reported above
            images += read_segment(table, entry, index)[0].images
    return images
