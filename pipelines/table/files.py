"""The names of a table's files: in one folder, or in a folder for each run (tables that earlier releases began).

All files of a table have the layout of its first run. Engines that read a single folder, such as Spark, would miss some
files of a table with both layouts.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import pyarrow as pa

from pipelines.parquet_files import open_listed
from pipelines.store import Store
from pipelines.table.schema import NO_COLUMNS

Layout = Literal["flat", "folders"]
LAYOUTS: Final[tuple[Layout, ...]] = ("flat", "folders")

DATA: Final = "data/"
SUFFIX: Final = ".parquet"

_SEPARATOR: Final[dict[Layout, str]] = {"flat": "-", "folders": "/"}
# the number has no hyphen; the run's name before the last hyphen may have some
_KEY = re.compile(rf"{DATA}(?P<run>[^/]+)(?P<separator>[-/])(?P<number>[0-9]+){re.escape(SUFFIX)}")


def table_file_key(run_id: str, segment: int, layout: Layout) -> str:
    """Return the key of the table file of a segment: `data/<run>-<segment>.parquet` in a flat table."""
    return f"{table_files_prefix(run_id, layout)}{segment:05d}{SUFFIX}"


def table_files_prefix(run_id: str, layout: Layout) -> str:
    """Return the prefix of the keys of a run's files; keys of another run may have it, too."""
    return f"{DATA}{run_id}{_SEPARATOR[layout]}"


def parse_table_file_key(key: str) -> tuple[str, int] | None:
    """Return the run and segment of a table file's key, or None for other keys."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    run_id, number = found["run"], int(found["number"])
    layout: Layout = "flat" if found["separator"] == "-" else "folders"
    return (run_id, number) if table_file_key(run_id, number, layout) == key else None


def in_order_of_runs(key: str) -> tuple[str, int, str]:
    """Return the sort key for files: by run, then by segment. As strings, run `a-b` would come before run `a`."""
    run_id, number = parse_table_file_key(key) or (key, 0)
    return run_id, number, key


def layout_without_runs(table: Store) -> Layout:
    """Return the layout for the first run of a table: that of files which exist already, otherwise flat.

    Raises:
        StoreError: the store refused.
    """
    there = (entry.key for entry in table.list(DATA) if entry.key.endswith(SUFFIX))
    first = next(there, None)
    return "folders" if first is not None and "/" in first.removeprefix(DATA) else "flat"


def newest_columns(table: Store) -> pa.Schema:
    """Return the columns of the table file that was written last, or no columns if the table has no file.

    Raises:
        RayDetrError: its footer is damaged.
        StoreError: the store refused.
    """
    files = [entry for entry in table.list(DATA) if parse_table_file_key(entry.key) is not None]
    if not files:
        return NO_COLUMNS
    newest = max(files, key=lambda entry: (entry.modified or 0.0, in_order_of_runs(entry.key)))
    return open_listed(table, newest).schema_arrow
