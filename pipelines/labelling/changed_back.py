"""Images that changed, while a run went on, to a version that an earlier run has labelled: no second row of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.concurrently import map_concurrently
from pipelines.labelling.recorded_settings import RecordedSettings, columns_of
from pipelines.labelling.table_files import parse_table_file_key
from pipelines.parquet_files import open_listed, parquet_of
from pipelines.store import Entry, Store, join_uri
from pipelines.table import check_columns

KIND: Final = "fetch_failed"  # transient: whatever the object is at the next run, the plan of that run sees it

_TEXT: Final = "BYTE_ARRAY"  # of Parquet

Version = tuple[str, str]
"""The URI and etag of an object."""


def without_second_rows(
    table: Store,
    run_id: str,
    rows: pa.Table,
    planned_etags: pa.ChunkedArray,
    *,
    settings: str | None = None,
    threads: int,
) -> pa.Table:
    """Return a run's rows with those that the table has already, from an earlier run, turned into errors.

    A plan leaves out what is labelled, by the etag of the listing. An object that was overwritten afterwards is
    labelled as what was read; where that is a version of before, its row would be the second of one (uri, etag, model,
    settings).
    The rows of runs before this one do not change any more, so every caller gets the same. Fetches the names in those
    row groups of earlier files that may hold such an image, nothing if no object changed.

    Args:
        table: the table.
        run_id: of the rows.
        rows: of one segment.
        planned_etags: as listed, one for each row.
        settings: of the rows; None: rows of any settings count as the same.
        threads: how many files are read at once.

    Raises:
        RunStopped: a file of the table is damaged.
        StoreError: the store refused.
    """
    is_ok = pc.equal(rows["status"].cast(pa.string()), "ok")
    changed = rows.filter(pc.and_(is_ok, pc.fill_null(pc.not_equal(rows["etag"], planned_etags), fill_value=False)))
    if not len(changed):
        return rows
    wanted = set(zip(changed["uri"].to_pylist(), changed["etag"].to_pylist(), strict=True))
    found = _labelled_before(table, run_id, changed["model"][0].as_py(), settings, wanted, threads)
    if not found:
        return rows
    pairs = zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True)
    second = pc.and_(pa.chunked_array([[pair in found for pair in pairs]], pa.bool_()), is_ok)
    said = {
        "status": "error",
        "error_kind": KIND,
        "error": "the object changed during the run, back to a version that already has a row in the table",
        "detections": None,
    }
    for name, value in said.items():
        column = rows.schema.field(name)
        plain = rows[name].cast(column.type.value_type) if pa.types.is_dictionary(column.type) else rows[name]
        settled = pc.if_else(second, pa.scalar(value, plain.type), plain)
        rows = rows.set_column(rows.schema.get_field_index(name), column, settled.cast(column.type))
    return rows


def _labelled_before(
    table: Store, run_id: str, model: str, settings: str | None, wanted: Collection[Version], threads: int
) -> frozenset[Version]:
    """Return which versions have an `ok` row of a model and settings in the table's files of other runs."""
    uris = sorted(uri for uri, _ in wanted)
    recorded = RecordedSettings(table)

    def in_file(entry: Entry) -> set[Version]:
        with parquet_of(join_uri(table.uri, entry.key)):
            file = open_listed(table, entry)
            columns = ["uri", "etag", "status", "model", *(() if settings is None else columns_of(file))]
            check_columns(file, columns, name=join_uri(table.uri, entry.key))
            groups = [group for group in range(file.num_row_groups) if _may_hold(file, group, uris)]
            if not groups:
                return set()
            rows = file.read_row_groups(groups, columns=columns)
            is_ok = pc.equal(rows["status"].cast(pa.string()), "ok")
            rows = rows.filter(pc.and_(is_ok, pc.equal(rows["model"].cast(pa.string()), model)))
            if settings is not None:
                is_same = pc.fill_null(pc.equal(recorded.of_rows(rows), settings), fill_value=True)
                rows = rows.filter(is_same)
            rows = rows.filter(pc.is_in(rows["uri"], value_set=pa.array(uris, pa.string())))
            return set(zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True)) & set(wanted)

    entries = [
        entry
        for entry in table.list("data/")
        if entry.key.endswith(".parquet") and (parse_table_file_key(entry.key) or ("", 0))[0] != run_id
    ]
    return frozenset().union(*map_concurrently(in_file, entries, threads=threads))


def _may_hold(file: pq.ParquetFile, group: int, uris: list[str]) -> bool:
    """Return whether a row group may hold one of some sorted URIs, by its statistics."""
    index = file.schema_arrow.get_field_index("uri")
    # asked for what a damaged footer contradicts itself about, pyarrow ends the process; reading the column says so
    if file.schema.column(index).physical_type != _TEXT:
        return True
    column = file.metadata.row_group(group).column(index)
    statistics = column.statistics if column.physical_type == _TEXT else None
    if statistics is None or not statistics.has_min_max:
        return True
    return any(statistics.min <= uri <= statistics.max for uri in uris)
