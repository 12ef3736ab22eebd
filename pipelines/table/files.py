"""The names of a table's files: in one folder, or in a folder for each run as earlier releases began tables.

All files of a table are in the layout of its first run. Engines that look into one folder only, such as Spark, would
read half of a table that had both.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from pipelines.store import Store

Layout = Literal["flat", "folders"]
LAYOUTS: Final[tuple[Layout, ...]] = ("flat", "folders")

DATA: Final = "data/"
SUFFIX: Final = ".parquet"

_SEPARATOR: Final[dict[Layout, str]] = {"flat": "-", "folders": "/"}
# a number has no hyphen: what is before the last one is the run's name, which may have some
_KEY = re.compile(rf"{DATA}(?P<run>[^/]+)(?P<separator>[-/])(?P<number>[0-9]+){re.escape(SUFFIX)}")


def table_file_key(run_id: str, segment: int, layout: Layout) -> str:
    """Return the key of the table file of a segment: `data/<run>-<segment>.parquet` in a flat table."""
    return f"{table_files_prefix(run_id, layout)}{segment:05d}{SUFFIX}"


def table_files_prefix(run_id: str, layout: Layout) -> str:
    """Return what the keys of a run's files begin with; those of another run may, too."""
    return f"{DATA}{run_id}{_SEPARATOR[layout]}"


def parse_table_file_key(key: str) -> tuple[str, int] | None:
    """Return run and segment of a key that `table_file_key` gives in one of the layouts, None of any other key."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    run_id, number = found["run"], int(found["number"])
    layout: Layout = "flat" if found["separator"] == "-" else "folders"
    return (run_id, number) if table_file_key(run_id, number, layout) == key else None


def in_order_of_runs(key: str) -> tuple[str, int, str]:
    """Return what sorts the keys of files by run, then by segment: as whole strings, run `a-b` comes before run `a`."""
    run_id, number = parse_table_file_key(key) or (key, 0)
    return run_id, number, key


def layout_without_runs(table: Store) -> Layout:
    """Return the layout that the first run of a table takes: that of files which somebody has put there already.

    Raises:
        StoreError: the store refused.
    """
    there = (entry.key for entry in table.list(DATA) if entry.key.endswith(SUFFIX))
    first = next(there, None)
    return "folders" if first is not None and "/" in first.removeprefix(DATA) else "flat"
