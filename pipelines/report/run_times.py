"""When the rows of each run were written: its duration without pauses, and its rows per second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PAUSE_SECONDS: Final = 3600
USUAL_TIMES: Final = 3
"""A time without a new row is a pause, in which the run was stopped, if it is longer than `PAUSE_SECONDS` and than this
many times the median time of the run, which is long where few workers label large shards."""

RATE_BARS: Final = 60


@dataclass(frozen=True, slots=True)
class WorkingTime:
    """The times at which a run wrote rows, without its pauses.

    Attributes:
        rows: number of rows by the second of the run, from 0, in which they were written.
        seconds: duration of the run.
        pauses: number of pauses.
        paused: their seconds.
    """

    rows: Mapping[int, int]
    seconds: int
    pauses: int
    paused: int

    def rates(self) -> list[tuple[int, int]]:
        """Return the number of rows in each of at most 60 equal periods, as pairs with the second of its end."""
        width = max(1, -(-(self.seconds + 1) // RATE_BARS))
        counted: Counter[int] = Counter()
        for second, rows in self.rows.items():
            counted[second // width] += rows
        return [((bar + 1) * width, counted[bar]) for bar in range(self.seconds // width + 1)]


@dataclass(slots=True)
class RunTimes:
    """The seconds, since 1970, in which each run wrote rows: all rows, also those that later runs replaced.

    Memory: one entry for each second of each run; the rows of a shard get their time together.
    """

    seconds: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Process rows with the columns `run_id` and `labelled_at`."""
        run_ids = table["run_id"].cast(pa.string())
        for run_id in pc.unique(run_ids).to_pylist():
            times = table["labelled_at"].filter(pc.equal(run_ids, run_id)).cast(pa.timestamp("us", "UTC"))
            seconds, counts = np.unique(times.cast(pa.int64()).to_numpy() // 1_000_000, return_counts=True)
            of_run = self.seconds.setdefault(run_id, Counter())
            for second, count in zip(seconds.tolist(), counts.tolist(), strict=True):
                of_run[second] += count

    def rows(self, run_id: str) -> int:
        """Return the number of all rows of a run."""
        return self.seconds[run_id].total()

    def span(self, run_id: str) -> tuple[int, int]:
        """Return the first and the last second of a run, since 1970."""
        return min(self.seconds[run_id]), max(self.seconds[run_id])

    def working(self, run_id: str, started: datetime | None = None) -> WorkingTime:
        """Return the times of a run without its pauses.

        Args:
            run_id: one of `seconds`.
            started: start time of the run from its record; None counts from the first row.
        """
        of_run = sorted(self.seconds[run_id].items())
        first = of_run[0][0]
        began = first if started is None else min(first, int(started.timestamp()))
        waits = np.diff([began, *(second for second, _ in of_run)])
        usual = np.sort(waits[waits > 0])
        limit = max(PAUSE_SECONDS, USUAL_TIMES * int(usual[(len(usual) - 1) // 2])) if len(usual) else PAUSE_SECONDS
        is_pause = waits > limit
        rows: Counter[int] = Counter()
        for worked, (_, count) in zip(np.cumsum(np.where(is_pause, 0, waits)).tolist(), of_run, strict=True):
            rows[worked] += count
        return WorkingTime(rows, max(rows), int(is_pause.sum()), int(waits[is_pause].sum()))
