"""Verifies a table file, or a part of an unfinished run, against its plan. Each finding is a sentence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RayDetrError
from pipelines.labelling.manifest import PlannedSegment, read_planned
from pipelines.labelling.publish import footer_totals, is_sealed_file, part_key
from pipelines.labelling.run import Run
from pipelines.parquet_files import open_for_rows, parquet_of
from pipelines.store import NotFound, Store, StoreEntry, join_uri
from pipelines.table.schema import FIRST_COLUMNS, NO_COLUMNS, Totals, decode, is_of_table, total


def check_table_file(
    table: Store, entry: StoreEntry, run: Run, segment: PlannedSegment | None, *, is_finished: bool
) -> Iterator[str]:
    """Yield what is wrong with the table file of a segment, after reading all its pages and verifying their checksums.

    The rows must be the planned images, each once and in the order of the plan; they must be complete, name their run
    and shard, and have the totals of the footer. Statistics and page indices, by which engines skip rows, have no
    checksums and are not verified: reading those of a damaged footer can end the process in pyarrow 26
    (measurements.md, 2026-11-27). Memory: one row group, and the names of the segment's images.

    Args:
        table: the table.
        entry: the listed file.
        run: the run of the file.
        segment: the planned segment; None if the plan is damaged: then the file is checked without it.
        is_finished: whether the run is finished, so that every planned image must have its row.

    Raises:
        StoreError: the store refused.
    """
    try:
        yield from _check(table, entry, run, segment, is_finished=is_finished)
    except RayDetrError as damaged:
        yield str(damaged)


def check_parts(table: Store, run: Run, segment: PlannedSegment, shards: list[int]) -> Iterator[str]:
    """Yield what is wrong with parts of a segment that is not published. Memory: one part.

    Raises:
        StoreError: the store refused.
    """
    try:
        planned, kept = read_planned(table, run.run_id, segment.index)
    except RayDetrError as damaged:
        yield str(damaged)
        return
    firsts = dict(zip(segment.shards, np.cumsum([0, *segment.shard_images]).tolist(), strict=False))
    images = dict(zip(segment.shards, segment.shard_images, strict=True))
    for shard in shards:
        key = part_key(run.run_id, shard)
        name = join_uri(table.uri, key)
        try:
            rows = decode(table.get(key).data, name=name)
        except RayDetrError as damaged:
            yield f"{damaged} Delete it: the next run labels its shard again."
            continue
        except NotFound:  # the run has ended since its parts were listed
            return
        is_planned = is_of_table(rows.schema.remove_metadata(), kept) and rows["uri"].equals(
            planned["uri"].slice(firsts[shard], images[shard])
        )
        if not is_planned:
            yield (
                f"{name} does not contain its {images[shard]:,} planned images with one row each ({rows.num_rows:,} "
                "rows). Delete it: the next run labels its shard again."
            )


def _check(
    table: Store, entry: StoreEntry, run: Run, segment: PlannedSegment | None, *, is_finished: bool
) -> Iterator[str]:
    name = join_uri(table.uri, entry.key)
    file = open_for_rows(table, entry)
    if is_sealed_file(file):
        if file.metadata.num_rows:
            yield f"{name} is sealed, and has {file.metadata.num_rows:,} rows where it should have none."
        elif is_finished and segment is not None:
            yield f"{name} is sealed though run {run.run_id} finished: its {segment.images:,} images have no row."
        return
    planned, kept = (None, NO_COLUMNS) if segment is None else read_planned(table, run.run_id, segment.index)
    with parquet_of(name):
        columns = file.schema_arrow.remove_metadata()
    if not is_of_table(columns, kept) if planned is not None else not set(FIRST_COLUMNS) <= set(columns.names):
        yield f"{name} has other columns than its run planned: {', '.join(columns.names)}."
        return
    found = _Rows(run, segment, planned)
    for group in range(file.num_row_groups):
        with parquet_of(name):
            found.add(file.read_row_group(group))
    yield from found.findings(name)
    said = footer_totals(file, name)
    if said != found.totals:
        yield f"{name} records totals of {_told(said)}, but its rows have {_told(found.totals)}."


class _Rows:
    """Compares the row groups of a file, one after the other, with the plan."""

    def __init__(self, run: Run, segment: PlannedSegment | None, planned: pa.Table | None) -> None:
        self.totals = Totals()
        self._run, self._segment, self._planned = run, segment, planned
        self._departure: str | None = None  # the first difference from the plan
        self._is_foreign = self._is_halved = False
        if segment is not None:
            self._shards = pa.array(np.repeat(np.array(segment.shards, np.int32), segment.shard_images))

    def add(self, rows: pa.Table) -> None:
        first = self.totals.rows
        self.totals += total(rows)
        is_ok = pc.equal(rows["status"].cast(pa.string()), "ok")
        halves = [pc.xor(is_ok, rows["detections"].is_valid()), pc.xor(is_ok, rows["error_kind"].is_null())]
        self._is_halved |= any(pc.any(half).as_py() for half in halves)
        origins = [pc.equal(rows[name].cast(pa.string()), getattr(self._run, name)) for name in ("run_id", "model")]
        if "settings" in rows.column_names:  # null: the settings are in the run's record
            origins.append(pc.equal(rows["settings"].cast(pa.string()), self._run.settings))
        self._is_foreign |= not all(pc.all(origin, min_count=0).as_py() for origin in origins)
        if self._planned is None or self._departure is not None:
            return
        expected = self._planned["uri"].slice(first, len(rows))
        if not rows["uri"].equals(expected):
            self._departure = _departure(rows["uri"], expected, first)
        elif not rows["shard"].equals(pa.chunked_array([self._shards.slice(first, len(rows))])):
            self._is_foreign = True

    def findings(self, name: str) -> Iterator[str]:
        if self._segment is not None and (self._departure or self.totals.rows != self._segment.images):
            yield (
                f"{name} does not contain its planned images with one row each: it has {self.totals.rows:,} rows for "
                f"{self._segment.images:,} images{self._departure or ''}."
            )
        if self._is_foreign:
            yield f"{name} has rows whose run, model, settings or shard differ from those of the file."
        if self._is_halved:
            yield f"{name} has rows that are neither `ok` with detections nor an error with its kind."


def _departure(uris: pa.ChunkedArray, expected: pa.ChunkedArray, first: int) -> str:
    count = min(len(uris), len(expected))
    differs = pc.fill_null(pc.not_equal(uris.slice(0, count), expected.slice(0, count)), fill_value=True)
    row = pc.index(differs, True).as_py()
    row = count if row < 0 else row
    planned = expected[row].as_py() if row < len(expected) else "no image more"
    return f", and row {first + row + 1:,} is of {uris[row].as_py()} where the plan has {planned}"


def _told(totals: Totals) -> str:
    errors = ", ".join(f"{kind} {count:,}" for kind, count in totals.errors.items())
    return f"{totals.rows:,} rows with {totals.detections:,} detections" + (f" and {errors}" if errors else "")
