"""Watches a run that another process works on, through its table and the lease of that process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pipelines.clock import Clock
from pipelines.labelling.attempts import Attempt, read_attempts
from pipelines.labelling.lease import Holder, current_holder, keeps_lease, last_holder
from pipelines.labelling.manifest import PlannedSegment, read_manifest
from pipelines.labelling.progress import Progress
from pipelines.labelling.publish import read_done
from pipelines.labelling.run import End, Run, latest_run, read_end
from pipelines.labelling.writer_process import Process
from pipelines.store import Store

POLL_SECONDS: Final = 5.0  # each poll lists the run twice, and reads its plan while that is being written
SILENT_SECONDS: Final = 3_600.0  # without a shard, a process stops by itself (the default of --stall-minutes)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a watch has seen last.

    Attributes:
        run: The run; None if none was unfinished and none was begun.
        end: How the run ended; None if it is unfinished and no process works on it.
        holder: The last process that held the table's lease, as far as is known.
        attempts: The recorded attempts of a run that is unfinished.
    """

    run: Run | None
    end: End | None
    holder: Holder | None
    attempts: tuple[Attempt, ...] = ()


def watch_run(table: Store, *, here: Process, clock: Clock, show: Callable[[Progress], None]) -> Watched:
    """Show the progress of a table's run every few seconds, until it has ended or no process works on it.

    The run is the unfinished one or, while a process holds the lease and has not begun its run yet, the next one. If
    that process has finished a run and deletes its parts, it is this run; if it has sealed one, the next one.
    Images count when their shard is committed. `images_this_start` counts from the first poll.

    A lease without a holder is looked at twice, because another process may be taking it over. In a store that cannot
    keep leases, a run counts as left by its process after `SILENT_SECONDS` without a new shard.

    Args:
        table: The table of the run.
        here: This process.
        clock: The clock; its `sleep` waits between two polls.
        show: Called with the progress.

    Raises:
        RayDetrError: a record is damaged.
        StoreError: the store refused.
    """
    latest = latest_run(table)
    end = read_end(table, latest.run_id) if latest is not None else None
    ended = latest if end is not None else None
    watched: _WatchedRun | None = None
    sealed: Watched | None = None
    seen = current_holder(table, here, clock.now())
    if end is not None and seen is not None and end.state == "finished" and end.ended_at >= seen.acquired_at:
        return Watched(latest, end, seen)
    looks = 0  # without a holder, one after the other
    while True:
        # before the end of the run is read: a process records it first, and then releases the lease
        holder = current_holder(table, here, clock.now())
        seen = holder or seen
        looks = looks + 1 if holder is None else 0
        if watched is None:
            latest = latest_run(table)
            if latest is not None and (ended is None or latest.number > ended.number):
                watched = _WatchedRun(table, latest, clock)
        if watched is not None:
            end = read_end(table, watched.run.run_id)
            if end is not None and (end.state == "finished" or holder is None):
                return Watched(watched.run, end, seen)
            if end is not None:  # by `runs --abandon`, or by `label --new-run`, which begins the next run
                ended, sealed, watched = watched.run, Watched(watched.run, end, holder), None
                continue
            progress = watched.look()
            if looks > 1 and (keeps_lease(table) or watched.silent_seconds >= SILENT_SECONDS):
                return Watched(watched.run, None, last_holder(table), read_attempts(table, watched.run.run_id))
            show(progress)
        elif holder is not None:
            show(Progress(f"host {holder.process.host}, pid {holder.process.pid} has not begun a run yet"))
        elif seen is None or looks > 1:
            return sealed or Watched(None, None, seen)
        clock.sleep(POLL_SECONDS)


@dataclass(slots=True)
class _WatchedRun:
    """The unfinished run that is watched, with its counts since the first look."""

    table: Store
    run: Run
    clock: Clock
    began: float = field(init=False)
    moved: float = field(init=False)
    first: int | None = None
    images: int = 0
    planned: list[PlannedSegment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = self.moved = self.clock.monotonic()

    @property
    def silent_seconds(self) -> float:
        """Seconds since a look found a new shard or a new segment."""
        return self.clock.monotonic() - self.moved

    def look(self) -> Progress:
        """Return the progress of now."""
        before = (self.images, len(self.planned))
        if not self.planned or self.planned[-1].ending is None:  # the plan still grows
            self.planned = list(read_manifest(self.table, self.run.run_id))
        segments = [segment for segment in self.planned if segment.ending is None]
        self.images = read_done(self.table, self.run.run_id, self.run.layout).count_images(segments)
        self.first = self.images if self.first is None else self.first
        if (self.images, len(self.planned)) != before:
            self.moved = self.clock.monotonic()
        return Progress(
            "label",
            images=self.images,
            images_this_start=self.images - self.first,
            images_planned=sum(segment.images for segment in segments),
            is_planned=len(self.planned) > len(segments),
            began=self.began,
        )
