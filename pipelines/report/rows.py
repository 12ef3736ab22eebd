"""Read the rows of a report as numpy arrays, one row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UsageError
from pipelines.exports.current import current_rows, with_settings
from pipelines.labelling.recorded_settings import COLUMN, RecordedSettings
from pipelines.marks.marks import read_marks
from pipelines.marks.matching import Matcher
from pipelines.parquet_files import open_listed, parquet_of
from pipelines.report.run_times import RunTimes
from pipelines.store import Store, StoreEntry, join_uri
from pipelines.table.files import in_order_of_runs
from pipelines.table.schema import check_columns

SETTINGS: Final = COLUMN

_COLUMNS: Final = (
    "uri", "etag", "size", "status", "error_kind", "error", "width", "height", "detections", "model", "threshold",
    "run_id", "labelled_at",
)  # fmt: skip
_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class Classes:
    """The class names seen so far, numbered in the order in which they appeared."""

    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names, by number."""
        return list(self.numbers)

    def number(self, name: str) -> int:
        """Return the number of a class, a new one for a new name."""
        return self.numbers.setdefault(name, len(self.numbers))

    def encode(self, labels: pa.StringArray) -> Integers:
        """Return the numbers of N names, `(N,)`."""
        coded = labels.dictionary_encode()
        numbers = np.array([self.number(name) for name in coded.dictionary.to_pylist()], np.int64)
        return numbers[coded.indices.to_numpy()] if len(labels) else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Rows:
    """M rows of one row group with their N detections.

    Attributes:
        table: the columns other than `detections`, M rows.
        is_ok: `(M,)`; False for errors, which have no detections.
        counts: `(M,)`, detections of each row; they add up to N.
        classes: `(N,)`, numbers of `Classes`.
        category_ids: `(N,)`, the data set's own.
        scores: `(N,)` in 0..1.
        boxes: `(N, 4)`: xmin, ymin, xmax, ymax in pixels of the upright picture.
        left_out: `(M,)`, number of detections of each row that were left out because a mark covers them.
    """

    table: pa.Table
    is_ok: npt.NDArray[np.bool_]
    counts: Integers
    classes: Integers
    category_ids: Integers
    scores: Floats
    boxes: Floats
    left_out: Integers

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def owners(self) -> Integers:
        """The row of each detection, `(N,)`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def starts(self) -> Integers:
        """The first detection of each row, `(M,)`."""
        return np.concatenate(([0], np.cumsum(self.counts)[:-1])).astype(np.int64)

    def by_class(self, mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Integers]]:
        """Yield each class of the detections of a mask, `(N,)`, and its detections in order; classes are ascending."""
        chosen = np.flatnonzero(mask)
        ordered = chosen[np.argsort(self.classes[chosen], kind="stable")]
        numbers, firsts = np.unique(self.classes[ordered], return_index=True)
        yield from zip(numbers.tolist(), np.split(ordered, firsts[1:]), strict=len(numbers) > 0)

    def where(self, mask: npt.NDArray[np.bool_]) -> Rows:
        """Return the rows of a mask, `(M,)`, with their detections."""
        found = mask[self.owners]
        return Rows(
            self.table.filter(pa.array(mask)), self.is_ok[mask], self.counts[mask], self.classes[found],
            self.category_ids[found], self.scores[found], self.boxes[found], self.left_out[mask],
        )  # fmt: skip

    def words(self, column: str) -> list[Any]:
        """Return a column as Python values, None if the table does not have it."""
        if column not in self.table.column_names:
            return [None] * len(self)
        values: list[Any] = self.table[column].to_pylist()
        return values


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files of a table for a report, all or those of one run, and the selection of their rows.

    Attributes:
        table: the table.
        entries: its files, in the order of runs.
        matcher: finds detections that a mark covers.
        run_id: only rows of this run.
        settings: only rows with these settings, as in the column `settings`.
    """

    table: Store
    entries: Sequence[StoreEntry]
    matcher: Matcher
    run_id: str | None = None
    settings: str | None = None

    def rows(self, classes: Classes, times: RunTimes | None = None) -> Iterator[Rows]:
        """Yield the rows by row group: all rows of one run, or the current row of each image of a whole table.

        Covered detections are left out, and counted by row. `times` gets all rows, also those that are not current.

        Memory: one row group, and for a whole table temporarily about 70 bytes per row (`current_rows`).

        Raises:
            RayDetrError: a file is damaged.
            StoreError: the store refused.
        """
        recorded = RecordedSettings(self.table)
        current = None
        if self.run_id is None:
            current = current_rows(self._opened(), settings=self.settings, recorded=recorded)
        for number, (name, file) in enumerate(self._opened()):
            first = 0
            columns = [*_COLUMNS, *(one for one in (SETTINGS,) if one in file.schema_arrow.names)]
            for group in range(file.num_row_groups):
                with parquet_of(name):
                    read = file.read_row_group(group, columns=columns)
                    mask = None if current is None else pa.array(current[number][first : first + len(read)])
                    first += len(read)
                    wanted = self._wanted(read, recorded)
                    if self.run_id is not None:
                        mask = wanted
                    if times is not None:
                        times.add(read if wanted is None else read.filter(wanted))
                    chosen = read if mask is None else read.filter(mask)
                    settings = recorded.of_rows(chosen)  # of earlier releases: from the record of their run
                    if SETTINGS in chosen.column_names:
                        chosen = chosen.drop_columns([SETTINGS])
                    chosen, left_out = self.matcher.without_repeats(chosen.append_column(SETTINGS, settings))
                    rows = _rows(chosen, left_out, classes) if len(chosen) else None
                if rows is not None:
                    yield rows

    def _wanted(self, read: pa.Table, recorded: RecordedSettings) -> pa.Array | None:
        """Return which rows are of the run and have the settings, current or not; None is all."""
        mask = None
        if self.run_id is not None:  # tables with all runs in one folder
            mask = pc.equal(read["run_id"].cast(pa.string()), self.run_id)
        if self.settings is not None:
            has_settings = pa.array(with_settings(read, self.settings, recorded))
            mask = has_settings if mask is None else pc.and_(mask, has_settings)
        return mask

    def _opened(self) -> Iterator[tuple[str, pq.ParquetFile]]:
        for entry in self.entries:
            name = join_uri(self.table.uri, entry.key)
            file = open_listed(self.table, entry)
            check_columns(file, _COLUMNS, name=name)
            yield name, file


def table_files(
    table: Store, run_id: str | None = None, settings: str | None = None, *, keep_repeats: bool = False
) -> TableFiles:
    """Return the published files of a table or one of its runs, with a selection of rows by settings.

    Args:
        table: the table.
        run_id: only the files of this run.
        settings: only rows with these settings, as in the column `settings`.
        keep_repeats: whether to keep detections that a mark covers.

    Raises:
        UsageError: the table or the run has no published files.
        RayDetrError: a record of marks is damaged.
        StoreError: the store refused.
    """
    entries = [entry for entry in table.list("data/") if entry.key.endswith(".parquet")]
    if run_id is not None:
        entries = [entry for entry in entries if in_order_of_runs(entry.key)[0] == run_id]
    if not entries:
        whose = "" if run_id is None else f" of run {run_id}"
        raise UsageError(
            f"table {table.uri} has no published rows{whose}. Check the address, or list the runs with "
            f"`ray-detr runs --table {table.uri}`."
        )
    matcher = Matcher([] if keep_repeats else read_marks(table))
    ordered = sorted(entries, key=lambda entry: in_order_of_runs(entry.key))
    return TableFiles(table, ordered, matcher, run_id, settings)


def _rows(read: pa.Table, left_out: Integers, classes: Classes) -> Rows:
    column = read["detections"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # pyarrow returns this for an empty column
        column = pa.concat_arrays(column.chunks)
    found = column.flatten()
    box = found.field("box")
    return Rows(
        table=read.drop_columns(["detections"]),
        is_ok=pc.equal(read["status"].cast(pa.string()), "ok").to_numpy(),
        counts=pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64),
        classes=classes.encode(found.field("label")),
        category_ids=found.field("category_id").to_numpy().astype(np.int64),
        scores=found.field("score").to_numpy(),
        boxes=np.stack([box.field(side).to_numpy() for side in _SIDES], axis=1),
        left_out=left_out,
    )
