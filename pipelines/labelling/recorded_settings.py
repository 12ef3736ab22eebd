"""The settings of a table's rows: from their column, or from the record of their run if they have none."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.labelling.run import read_run
from pipelines.store import Store

COLUMN: Final = "settings"


class RecordedSettings:
    """Reads the record of a run once, if one of its rows has no settings. Thread-safe."""

    def __init__(self, table: Store) -> None:
        """Create without reading."""
        self._table = table
        self._known: dict[str, str | None] = {}
        self._lock = Lock()

    def of_rows(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return the settings of each row as text, null if neither the row nor the record of its run has them.

        Args:
            rows: With the columns of `columns_of`.

        Raises:
            RayDetrError: a run's record is damaged.
            StoreError: the store refused.
        """
        own = rows[COLUMN].cast(pa.string()) if COLUMN in rows.column_names else None
        if own is not None and not own.null_count:
            return own
        run_ids = pa.chunked_array([rows["run_id"].cast(pa.string()).combine_chunks()]).combine_chunks()
        encoded = run_ids.dictionary_encode()
        recorded = pa.array([self.of_run(run_id) for run_id in encoded.dictionary.to_pylist()], pa.string())
        of_runs = pa.chunked_array([recorded.take(encoded.indices)])
        return of_runs if own is None else pc.coalesce(own, of_runs)

    def of_run(self, run_id: str) -> str | None:
        """Return the settings in the record of a run; None if there is no such run.

        Raises:
            RayDetrError: the record is damaged.
            StoreError: the store refused.
        """
        with self._lock:
            if run_id not in self._known:
                run = read_run(self._table, run_id)
                self._known[run_id] = None if run is None else run.settings
            return self._known[run_id]


def columns_of(file: pq.ParquetFile) -> Sequence[str]:
    """Return the columns of a file with the settings of its rows; files of earlier releases have only the run."""
    return ["run_id", COLUMN] if COLUMN in file.schema_arrow.names else ["run_id"]
