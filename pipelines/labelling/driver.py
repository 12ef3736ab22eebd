"""The labelling driver: begins or resumes a table's run and works until it is finished. Independent of Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from pipelines.errors import CapReached, RayDetrError
from pipelines.labelling.attempts import Attempt, Reason, read_attempts, recording_stop, total
from pipelines.labelling.cutting import Look
from pipelines.labelling.job import Environment, LabellingJob, Plan
from pipelines.labelling.labelled_keys import LabelledKeys, read_labelled
from pipelines.labelling.manifest import Counts, PlannedSegment, read_complete, read_manifest
from pipelines.labelling.outcome import ShardReport, Work
from pipelines.labelling.past_settings import PastSettings
from pipelines.labelling.plan import write_plan
from pipelines.labelling.progress import Progress
from pipelines.labelling.publish import read_done, remove_parts, verify_run
from pipelines.labelling.run import Run, begin_run, finish_run, latest_run, read_end, resume_run
from pipelines.labelling.seal import is_seal_begun, seal_run
from pipelines.labelling.segments import MOST_ALIKE, ShardsLost, label_segments
from pipelines.labelling.settings import AUTO, requested_precision
from pipelines.lake.lake_object import LakeObject
from pipelines.store import StoreError
from pipelines.table.schema import Totals


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: what all its attempts planned and published, and what this attempt did.

    `run` is None if there was nothing to do: then no run was begun, and `planned` counts what was listed.
    """

    run: Run | None
    resumed: bool
    totals: Totals
    planned: Counts
    segments: int
    images_this_start: int
    changed_this_start: int
    labelling_seconds: float
    work: Work


def run_labelling(job: LabellingJob, environment: Environment) -> RunResult:
    """Begin a run, or resume the table's unfinished one, and return when each planned image has its published row.

    If every image is labelled already, no run is begun and the job's runner is not used. Concurrent processes, and
    processes that die at any point, produce the same table (docs/decisions.md).

    Raises:
        CapReached: a limit is reached. The shards that were in progress are committed.
        SettingsMismatch: all rows of this model in the table have other settings.
        ShardsLost: some shards could not be labelled; all others are.
        RayDetrError: the run cannot continue. Committed rows stay.
        StoreError: the table's store refused. Committed rows stay.
    """
    attempt = _Attempt(job, environment, environment.clock.now())
    found = attempt.begin_or_resume()
    if isinstance(found, Counts):
        return RunResult(None, False, Totals(), found, 0, 0, 0, 0.0, Work())
    plan = environment.plan_ahead(attempt.plan(found))
    count = _Count(plan, Progress("label", began=environment.clock.monotonic()), environment.show)
    with recording_stop(
        environment.quick or job.table,
        found.run.run_id,
        lambda reason, message: attempt.record(count, reason, message),
        tail=environment.tail,
        meter=environment.meter,
        check_lease=environment.check_lease,
    ):
        return _label_run(attempt, found, count)


def _label_run(attempt: _Attempt, found: _OpenRun, count: _Count) -> RunResult:
    """Label, publish and finish an open run; see `run_labelling`."""
    job, environment = attempt.job, attempt.environment
    table, runner, clock, meter = job.table, job.runner, environment.clock, environment.meter
    run, plan = found.run, count.plan
    lost: ShardsLost | None = None
    for segments in plan.waves():
        environment.check_lease()
        count.add(images_before=read_done(table, run.run_id, run.layout).count_images(segments))
        with environment.watchdog.stage("labelling", detail=runner.why_no_shard) as moved:

            def on_report(report: ShardReport, moved: Callable[..., None] = moved) -> None:
                moved(report.seconds)
                environment.check_lease()
                count.add(report=report)
                environment.on_shard(run.run_id, report)
                for note in report.notes:
                    logging.getLogger(__name__).warning("%s", note)

            try:
                is_complete = label_segments(
                    table,
                    run,
                    segments,
                    runner,
                    on_report=on_report,
                    publisher=environment.publisher,
                    threads=environment.threads,
                    is_to_stop=meter.reached.is_set,
                    has_labelled=count.progress.images_this_start > 0,
                )
            except ShardsLost as error:  # the later waves do not wait for these shards
                lost = error if lost is None else lost + error
                progress = count.progress
                if lost.shards >= MOST_ALIKE and not progress.images_this_start and lost.images > progress.images:
                    raise RayDetrError(
                        f"{lost.what} None was labelled. Run the same command again to resume."
                    ) from error
                continue
        if not is_complete:
            raise CapReached(
                f"{meter.reason}. {count.sentence(run.run_id)} Run the same command again to resume.",
                run_id=run.run_id,
                images=count.progress.images,
                images_this_start=count.progress.images_this_start,
                images_planned=count.progress.images_planned,
                is_planned=count.progress.is_planned,
                errors_this_start=count.progress.errors,
            )
    if lost is not None:
        raise lost
    labelling_seconds = clock.monotonic() - count.progress.began
    segments = [planned for planned in read_manifest(table, run.run_id) if planned.ending is None]
    with environment.watchdog.stage("counting published rows"):
        totals = verify_run(table, run.run_id, run.layout, segments)
    meter.look()
    spent = {**asdict(count.work), "node_hours": meter.node_hours, "cost": meter.cost}
    recorded = {"last_start": spent, **attempt.totals_of_all(found, count)}
    finish_run(table, run.run_id, now=clock.now(), totals={**_record(totals), **recorded})
    try:
        remove_parts(table, run.run_id, threads=environment.threads)
    except StoreError as error:  # the run is finished nevertheless, and the next attempt removes them first
        logging.getLogger(__name__).warning("parts of run %s could not be deleted: %s", run.run_id, error)
    return RunResult(
        run=run,
        resumed=found.resumed,
        totals=totals,
        planned=read_complete(table, run.run_id),
        segments=len(segments),
        images_this_start=count.progress.images_this_start,
        changed_this_start=count.progress.changed,
        labelling_seconds=labelling_seconds,
        work=count.work,
    )


@dataclass(frozen=True, slots=True)
class _OpenRun:
    """The run to work on, and for a new run what was read to decide that there is something to do."""

    run: Run
    resumed: bool
    labelled: LabelledKeys | None = None
    look: Look | None = None
    spread: int | None = None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One process's work on a job."""

    job: LabellingJob
    environment: Environment
    started_at: datetime

    def record(self, count: _Count, reason: Reason, message: str = "") -> Attempt:
        """Return the record of this attempt, as it is now."""
        meter = self.environment.meter
        return Attempt(
            started_at=self.started_at,
            ended_at=self.environment.clock.now(),
            reason=reason,
            message=message,
            images=count.progress.images_this_start,
            work=count.work,
            nodes=meter.most_nodes,
            node_hours=meter.node_hours,
            cost=meter.cost,
        )

    def totals_of_all(self, found: _OpenRun, count: _Count) -> dict[str, object]:
        """Return the totals of all attempts of a run that this one finishes; nothing if they cannot be read."""
        table, run_id, threads = self.job.table, found.run.run_id, self.environment.threads
        try:
            before = read_attempts(table, run_id, threads=threads) if found.resumed else ()
        except StoreError as error:  # the run is finished nevertheless
            logging.getLogger(__name__).warning("run %s has no totals of all attempts: %s", run_id, error)
            return {}
        return {"all_attempts": asdict(total([*before, self.record(count, "finished")]))}

    def begin_or_resume(self) -> _OpenRun | Counts:
        """Return the run to work on: the unfinished run of the table or a new one; counts if there is nothing to do.

        Several processes at the same moment get the same run, which one of them begins.
        """
        job, new_run = self.job, self.job.new_run
        while True:
            latest, is_unfinished = self._settle_latest(new_run=new_run)
            new_run = False  # a run that others begin from now on is resumed
            if latest is not None and is_unfinished:
                run = resume_run(job.table, latest, job.request)
                job.runner.prepare()
                since = (
                    "" if run.modified_since is None else f", of images modified since {run.modified_since:%F %R %Z}"
                )
                self.environment.show(Progress(f"resuming run {run.run_id}{since}"))
                return _OpenRun(run, resumed=True)
            self.environment.show(Progress("planning"))
            if latest is None:
                job.runner.prepare()  # nothing is labelled
            # All runs have ended and published all their rows. No rows are added until the next run begins, and
            # `begin_run` returns whether this process has begun it.
            past = PastSettings(job.table, job.request.model, threads=self.environment.threads)
            # resolving "auto" needs the cluster; until there is something to do, assume the precision of the rows
            guess = past.guess_precision(job.request.configuration)
            settings = (
                None if guess is None else past.check(job.request.configuration, guess, relabel=job.mixes_settings)
            )
            labelled, look = self._look(settings)
            if not look.has_new:
                return look.counts
            workforce = job.runner.workforce()
            if settings is not None:
                resolved = past.check(job.request.configuration, workforce.precision, relabel=job.mixes_settings)
                if resolved != settings and job.selection.skip_labelled != "any":  # otherwise settings do not matter
                    labelled, look = self._look(resolved)
                if not look.has_new:
                    return look.counts
                if not job.mixes_settings and (note := past.note(resolved)):
                    logging.getLogger(__name__).warning("%s", note)
            begun = begin_run(
                job.table,
                job.request,
                after=latest,
                shard_images=workforce.shard_images,
                precision=workforce.precision,
                now=self.environment.clock.now(),
                tail=self.environment.tail,
            )
            if begun is not None:
                return _OpenRun(begun, resumed=False, labelled=labelled, look=look, spread=workforce.spread)

    def plan(self, begun: _OpenRun) -> Iterator[PlannedSegment]:
        """Yield the segments of the plan, each when it is durable. Does nothing before it is iterated."""
        # for a resumed run, read the rows now: from now on no other run adds rows
        labelled, since = begun.labelled, begun.run.modified_since
        if labelled is None:
            labelled = self._read_labelled(begun.run.settings if begun.run.tells_settings_apart else None)
        with self.environment.watchdog.stage("planning") as moved:
            yield from write_plan(
                self.job.table,
                begun.run.run_id,
                # the run's own time: the option may have a later time when the run is resumed
                self.job.listing if since is None else replace(self.job.listing, modified_since=since.timestamp()),
                _contains(labelled, moved),
                shard_images=begun.run.shard_images,
                selection=self.job.selection,
                spread=lambda: self.job.runner.workforce().spread if begun.spread is None else begun.spread,
                look=begun.look,
            )

    def _settle_latest(self, *, new_run: bool) -> tuple[Run | None, bool]:
        """Return the last run and whether to resume it, after sealing it or removing its parts if that is due."""
        latest = latest_run(self.job.table)
        if latest is None:
            return None, False
        if read_end(self.job.table, latest.run_id) is None:
            if not new_run and not is_seal_begun(self.job.table, latest.run_id):
                return latest, True
            if new_run:  # before anything is sealed
                self._check_before_sealing()
            self.job.runner.try_model()
            seal_run(self.job.table, latest, now=self.environment.clock.now())
        # the process that ended it may have died before it removed them
        remove_parts(self.job.table, latest.run_id, threads=self.environment.threads)
        return latest, False

    def _check_before_sealing(self) -> None:
        job = self.job
        past = PastSettings(job.table, job.request.model, threads=self.environment.threads)
        guess = past.guess_precision(job.request.configuration)
        if guess is not None:
            is_open = requested_precision(job.request.configuration) == AUTO and not job.mixes_settings
            precision = job.runner.workforce().precision if is_open else guess
            past.check(job.request.configuration, precision, relabel=job.mixes_settings)

    def _look(self, settings: str | None) -> tuple[LabelledKeys, Look]:
        labelled = self._read_labelled(settings)
        with self.environment.watchdog.stage("planning") as moved:
            return labelled, Look(self.job.listing, _contains(labelled, moved), self.job.selection)

    def _read_labelled(self, settings: str | None) -> LabelledKeys:
        with self.environment.watchdog.stage("reading the table"):
            skips_any = self.job.selection.skip_labelled == "any"
            return read_labelled(
                self.job.table,
                None if skips_any else self.job.request.model,
                settings=None if skips_any else settings,
                retry_errors=self.job.selection.retry_errors,
                threads=self.environment.threads,
            )


def _contains(labelled: LabelledKeys, moved: Callable[..., None]) -> Callable[[Sequence[LakeObject]], Iterable[bool]]:
    def is_labelled(objects: Sequence[LakeObject]) -> Iterable[bool]:
        moved()  # listing is progress even if no image is new
        return labelled.contains(objects)

    return is_labelled


@dataclass
class _Count:
    """The counts of this attempt, shown whenever they change."""

    plan: Plan
    progress: Progress
    show: Callable[[Progress], None]
    work: Work = field(default_factory=Work)

    def add(self, *, images_before: int = 0, report: ShardReport | None = None) -> None:
        progress = self.progress
        images = report.images if report else 0
        if report:
            self.work.add(report)
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

    def sentence(self, run_id: str) -> str:
        progress = self.progress
        planned = f"{'' if self.plan.is_complete else 'more than '}{self.plan.images_planned:,} planned"
        return (
            f"{progress.images:,} of {planned} images of run {run_id} are labelled, {progress.images_this_start:,} of "
            "them by this command."
        )


def _record(totals: Totals) -> dict[str, object]:
    return {"rows": totals.rows, "detections": totals.detections, "errors": dict(totals.errors)}
