"""One start of a table's labelling: begin or resume its run, and work on it until it is finished. Knows no Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from pipelines.clock import Clock
from pipelines.labelling.labeler import ShardReport
from pipelines.labelling.labelled import read_labelled
from pipelines.labelling.manifest import Counts, PlannedSegment, read_complete, read_manifest
from pipelines.labelling.plan import write_plan
from pipelines.labelling.progress import Progress
from pipelines.labelling.publish import THREADS, read_done, remove_parts, verify_run
from pipelines.labelling.run import Run, RunRequest, find_unfinished, finish_run, latest_run, read_end, start_run
from pipelines.labelling.seal import is_seal_begun, seal_run
from pipelines.labelling.segments import Outcome, label_segments
from pipelines.lake.listing import LakeObject, Listing
from pipelines.store import Store, StoreError
from pipelines.table import Totals
from pipelines.watchdog import Watchdog


class Plan(Protocol):
    """A plan that is being made: `planning.Planner`, or what tests put in its place."""

    images_planned: int
    is_complete: bool

    def waves(self) -> Iterator[list[PlannedSegment]]:
        """Yield the segments that are labelled together, each when it is durable."""
        ...


class LabelShards(Protocol):
    """What labels and commits shards of a run, in any order; a shard whose process died has no outcome."""

    def __call__(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Iterator[Outcome]:
        """Yield the outcome of each shard; `isolated` ones were lost before and are given no chance to kill again."""
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the listed images a run is about.

    Args:
        max_images: Take the first N of the listing, labelled ones included.
        sample: Draw N at random instead.
        seed: What the draw depends on, besides the URIs.
        retry_errors: "all": images with errors of permanent kinds are labelled again, too.
    """

    max_images: int | None = None
    sample: int | None = None
    seed: int = 0
    retry_errors: Literal["passing", "all"] = "passing"


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that has ended: what it planned and published over all its starts, and what this start did of it."""

    run: Run
    resumed: bool
    totals: Totals
    planned: Counts
    segments: int
    images_this_start: int
    changed_this_start: int
    labelling_seconds: float


def run_start(
    table: Store,
    request: RunRequest,
    listing: Listing,
    selection: Selection,
    *,
    new_run: bool,
    label_shards: LabelShards,
    plan_ahead: Callable[[Iterator[PlannedSegment]], Plan],
    publisher: Executor,
    clock: Clock,
    tail: str,
    spread: int = 1,
    threads: int = THREADS,
    show: Callable[[Progress], None] = lambda _: None,
    watchdog: Watchdog | None = None,
    still_ours: Callable[[], None] = lambda: None,
    why_no_shard: Callable[[], str] = str,
) -> Finished:
    """Begin a run or resume the table's unfinished one, and return when each planned image has its published row.

    Several starts at once, and starts of which any dies anywhere, end in the same table (docs/decisions.md).

    Args:
        table: The table, whose store refuses a second create-only put.
        request: What the run shall do.
        listing: The images.
        selection: Which of them.
        new_run: Seal the unfinished run instead of resuming it. One whose sealing was begun before is sealed anyway.
        label_shards: Labels and commits.
        plan_ahead: Makes the plan while what is durable of it is labelled.
        publisher: What table files are published in, beside labelling.
        clock: What time it is.
        tail: Four random hexadecimal digits, of a new run's name.
        spread: Into about how many shards, at least, the end of the plan is cut.
        threads: How many objects of the table are read at once.
        show: Called in this thread whenever something is done.
        watchdog: Names the stages that do not move; None names none.
        still_ours: Called now and then; stops a start that has lost the table's lease by raising `RunStopped`.
        why_no_shard: Says what may be the reason when no shard comes back; "" for nothing.

    Raises:
        RunStopped: the world is in the way; what is committed stays.
        StoreError: the table's store refused; likewise.
    """
    watchdog = watchdog or Watchdog(clock)
    latest = latest_run(table)
    if latest is not None and read_end(table, latest.run_id) is not None:
        remove_parts(table, latest.run_id, threads=threads)  # the start that ended it may have died before it had
    unfinished = find_unfinished(table)
    if unfinished is not None and (new_run or is_seal_begun(table, unfinished.run_id)):
        seal_run(table, unfinished, now=clock.now())
        remove_parts(table, unfinished.run_id, threads=threads)
    run, resumed = start_run(table, request, now=clock.now(), tail=tail)
    show(Progress(f"resuming run {run.run_id}" if resumed else "planning"))

    def write() -> Iterator[PlannedSegment]:
        # read after the run was begun: from then on no other run adds rows
        with watchdog.stage("reading what is labelled already"):
            labelled = read_labelled(table, run.model, retry_errors=selection.retry_errors, threads=threads)
        with watchdog.stage("planning") as moved:

            def is_labelled(objects: Sequence[LakeObject]) -> Iterable[bool]:
                moved()  # listed, though perhaps nothing of it is to be planned
                return labelled.contains(objects)

            yield from write_plan(
                table,
                run.run_id,
                listing,
                is_labelled,
                shard_images=run.shard_images,
                max_images=selection.max_images,
                sample=selection.sample,
                seed=selection.seed,
                spread=spread,
            )

    plan = plan_ahead(write())
    began = clock.monotonic()
    count = _Count(plan, Progress("label", began=began), show)
    for segments in plan.waves():
        still_ours()
        count.add(images_before=read_done(table, run.run_id).count_images(segments))
        with watchdog.stage("labelling", detail=why_no_shard) as moved:

            def on_report(report: ShardReport, moved: Callable[..., None] = moved) -> None:
                moved(report.seconds)
                still_ours()
                count.add(report=report)
                for note in report.notes:
                    logging.getLogger(__name__).warning("%s", note)

            label_segments(
                table,
                run,
                segments,
                label_shards=lambda shards, isolated: label_shards(run, shards, isolated=isolated),
                on_report=on_report,
                publisher=publisher,
                threads=threads,
            )
    labelling_seconds = clock.monotonic() - began
    segments = [planned for planned in read_manifest(table, run.run_id) if planned.ending is None]
    with watchdog.stage("counting what is published"):
        totals = verify_run(table, run.run_id, segments)
    finish_run(table, run.run_id, now=clock.now(), totals=_record(totals))
    try:
        remove_parts(table, run.run_id, threads=threads)
    except StoreError as error:  # the run is finished all the same, and the next start removes them first of all
        logging.getLogger(__name__).warning("parts of run %s could not be removed: %s", run.run_id, error)
    return Finished(
        run=run,
        resumed=resumed,
        totals=totals,
        planned=read_complete(table, run.run_id),
        segments=len(segments),
        images_this_start=count.progress.images_this_start,
        changed_this_start=count.progress.changed,
        labelling_seconds=labelling_seconds,
    )


@dataclass
class _Count:
    """What this start has counted so far, shown whenever it changes."""

    plan: Plan
    progress: Progress
    show: Callable[[Progress], None]

    def add(self, *, images_before: int = 0, report: ShardReport | None = None) -> None:
        progress = self.progress
        images = report.images if report else 0
        self.progress = replace(
            progress,
            images=progress.images + images_before + images,
            images_this_start=progress.images_this_start + images,
            errors=progress.errors + (sum(report.errors.values()) if report else 0),
            changed=progress.changed + (report.changed if report else 0),
            images_planned=self.plan.images_planned,
            is_planned=self.plan.is_complete,
        )
        self.show(self.progress)


def _record(totals: Totals) -> dict[str, object]:
    return {"rows": totals.rows, "detections": totals.detections, "errors": dict(totals.errors)}
