"""A training worker: Ray Train starts it on every GPU, and it trains from the newest checkpoint to the last epoch."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar, cast

import ray
import ray.train
import ray.train.torch
import torch

from detr.training.step import OutOfDeviceMemory
from pipelines.errors import RayDetrError
from pipelines.store import StoreError, open_store
from pipelines.training.batch import TrainBatch
from pipelines.training.begun_step import BegunStep, LeftPeers, out_of_memory, refuse_step
from pipelines.training.checkpoint_index import SavedCheckpoint
from pipelines.training.checkpoints import LoadedCheckpoint, TrainingPosition, latest_checkpoint, load_checkpoint
from pipelines.training.collective import Collective
from pipelines.training.data import Batches, TrainData, open_data
from pipelines.training.evaluation import evaluate_on_all
from pipelines.training.experiment_trackers import check_trackers
from pipelines.training.learner import Learner
from pipelines.training.metrics import StepTotals
from pipelines.training.order import EpochOrder
from pipelines.training.pinning import pinned_batches
from pipelines.training.reporter import Reporter
from pipelines.training.training_log import TrainLog
from pipelines.training.training_run import CheckpointSaver, TrainingRun, open_run
from pipelines.training.worker_spec import WorkerSpec

T = TypeVar("T")

LEAST_SECONDS: Final = 30.0  # between a checkpoint and that of the end of an epoch, if epochs are short
NOTICE_SECONDS: Final = 5.0  # between two requests for a preemption notice


def train_worker(spec: WorkerSpec) -> None:
    """Train until the last epoch, or until the run must stop; then `RunStatus` has the reason, and nothing is raised.

    After an error that is raised, such as a lost peer or a bug, Ray Train restarts all workers from the newest
    checkpoint.
    """
    if Path(spec.scratch).is_dir():
        tempfile.tempdir = spec.scratch  # the driver removes it: a worker that is killed cannot
    collective = Collective(seconds=spec.config.collective_seconds)
    # before anything that can fail, so that repeated failures are counted
    if collective.broadcast(collective.rank == 0 and _is_stopped(spec)):
        return
    reason = None
    try:
        with ExitStack() as stack:
            _Worker(spec, collective, stack).run()
    except LeftPeers as error:
        ray.get(spec.status.stop.remote(str(error)))
        raise  # so that Ray Train ends the other workers, which wait for this one
    except (RayDetrError, StoreError) as error:
        reason = str(error)
    except StoppedElsewhere:
        pass  # the worker that failed reports the reason
    if reason is not None:
        ray.get(spec.status.stop.remote(reason))


def _is_stopped(spec: WorkerSpec) -> bool:
    """Report that the workers begin, and return whether the run is stopped."""
    saved = latest_checkpoint(open_store(spec.config.run_uri, spec.config.options))
    assert saved is not None, "the driver writes the first checkpoint"
    return ray.get(spec.status.begin.remote(saved.step)) is not None


class StoppedElsewhere(Exception):
    """Another worker must stop and reports why; this worker only ends."""


class _Worker:
    """The state of a worker."""

    def __init__(self, spec: WorkerSpec, collective: Collective, stack: ExitStack) -> None:
        self.spec, self.config, self.recipe = spec, spec.config, spec.config.recipe
        self.collective, self.stack = collective, stack
        self.is_first = collective.rank == 0
        self.run_store = open_store(self.config.run_uri, self.config.options)
        self.reporter = Reporter(self.config, spec.status, collective)
        self.looked = self.saved = time.monotonic()  # for a preemption notice; the last checkpoint
        self.answered: object = None  # the last preemption notice for which a checkpoint was written
        self.pending: BegunStep | None = None  # the step that the device may still be computing
        self.agreed: StepTotals | None = None  # totals of the last step that was begun
        self.problem: str | None = None  # why all workers must stop
        self.saver: CheckpointSaver | None = None  # on rank 0 only

    def run(self) -> None:
        """Train to the end.

        Raises:
            RayDetrError: the run must stop because of this worker.
            StoppedElsewhere: the run must stop because of another worker.
        """
        self._together(self._claim)
        # rank 0 decides: all workers must continue from the same checkpoint
        saved = self.collective.broadcast(latest_checkpoint(self.run_store) if self.is_first else None)
        assert saved is not None, "the driver writes the first checkpoint"
        self.data, checkpoint = self._together(lambda: self._load(saved))
        learner = Learner(
            checkpoint.model,
            self.recipe,
            device=_own_device(),
            workers=self.collective.workers,
            trainable_norm=checkpoint.trainable_norm,
            fused=self.config.fused,
            compiled=self.config.compiled,
            gradient_checkpointing=self.config.gradient_checkpointing,
            tf32=self.config.tf32,
        )
        self.queries = learner.network.config.queries
        learner.restore(checkpoint.training_tensors, source=f"{self.config.run_uri}/checkpoints/{saved.name}")
        position = checkpoint.position
        if position.step_in_epoch == 0 and saved.metrics is None and self._is_evaluated(position):
            self._evaluate(learner, position)  # the workers were lost before this evaluation
        while position.epoch < self.recipe.epochs:
            position = self._train_epoch(learner, position)
            self._end_epoch(learner, position)
        if self.saver is not None:
            self._finish(self.saver)

    def _finish(self, saver: CheckpointSaver) -> None:
        """Mark the run as finished, on rank 0."""
        self._note(saver.finish)
        if self.problem is not None:
            raise RayDetrError(self.problem)
        self.reporter.finish()

    def _together(self, work: Callable[[], T]) -> T:
        """Call `work` on all workers and return its result if no call failed, so that no worker waits for another.

        Raises:
            RayDetrError: the call failed on this worker.
            StoppedElsewhere: the call failed on another worker.
        """
        value = problem = None
        try:
            value = work()
        except (RayDetrError, StoreError) as error:
            problem = error
        stopped = self.collective.sum([problem is not None])[0]
        if problem is not None:
            raise problem
        if stopped:
            raise StoppedElsewhere
        return cast(T, value)

    def _claim(self) -> None:
        """Claim the run, on rank 0 for all workers."""
        if self.is_first:
            run = open_run(
                self.run_store,
                self.spec.configuration,
                start_id=self.spec.start_id,
                now=datetime.now(UTC),
                versions=self.spec.versions,
            )
            newest = run.latest()
            if newest is not None and newest.epoch < self.recipe.epochs:
                run.reopen()  # it was finished after fewer epochs
            self._open(run)

    def _load(self, saved: SavedCheckpoint) -> tuple[TrainData, LoadedCheckpoint]:
        """Open the shards, and read a checkpoint."""
        data = open_data(self.config, worker=self.collective.rank, workers=self.collective.workers)
        return data, load_checkpoint(self.run_store, saved)

    def _open(self, run: TrainingRun) -> None:
        """Create what only rank 0 has: saver and log."""
        newest, best = run.latest(), run.best()
        assert newest is not None, "the driver writes the first checkpoint"
        self.saver = CheckpointSaver(run, keep=self.config.keep)
        self.stack.callback(self.saver.close)
        position = TrainingPosition(newest.epoch, newest.step_in_epoch, newest.step)
        log_id = f"{self.spec.start_id}-{run.claim_number}"
        check_trackers(self.config.trackers)
        log = self.stack.enter_context(TrainLog(self.run_store, self.config, position, log_id, note=self._tell_user))
        self.reporter.open(log, step=newest.step, best=None if best is None else (best.metrics or {}).get("AP"))

    def _train_epoch(self, learner: Learner, position: TrainingPosition) -> TrainingPosition:
        """Train from a position to the end of its epoch, and return the new position."""
        order = self.data.order(position.epoch, learner.network.config)
        batches = self.data.batches(order, position, learner.network.config, threads=self.spec.threads)
        if learner.device.type == "cuda":
            batches = pinned_batches(batches)
        with closing(batches):
            while position.step_in_epoch < order.steps:
                self._train_step(learner, position, order, batches)
                position = replace(position, step_in_epoch=position.step_in_epoch + 1, step=position.step + 1)
                if self.reporter.is_due(position, order):
                    self._settle()
                self.reporter.step_done(learner, position, order)
                if position.step_in_epoch == order.steps:
                    position = TrainingPosition(position.epoch + 1, 0, position.step)
                self._between_steps(learner, position)
                if position.step_in_epoch == 0:
                    return position
        return TrainingPosition(position.epoch + 1, 0, position.step)

    def _train_step(self, learner: Learner, position: TrainingPosition, order: EpochOrder, batches: Batches) -> None:
        """Begin a step, then check the result of the step before.

        While the device computes a step, the host exchanges totals with the other workers and begins the next step.

        Raises:
            RayDetrError: this worker must stop.
            LeftPeers: this worker must stop, and the others wait for it.
            StoppedElsewhere: another worker must stop.
        """
        began = time.monotonic()
        own, problem = _next(batches)
        waited = time.monotonic() - began
        self.agreed = agreed = self._agree(own, problem)
        factor = self.recipe.learning_schedule.factor(
            epoch=position.epoch,
            step=position.step,
            share=(position.epoch + position.step_in_epoch / order.steps) / self.recipe.epochs,
        )
        try:
            begun = learner.begin_step(
                own,
                step=position.step,
                num_boxes=agreed.targets / agreed.micro_batches,
                micro_batches=int(agreed.micro_batches),
                factor=factor,
            )
        except OutOfDeviceMemory as error:
            raise LeftPeers(out_of_memory(str(error), position, self.recipe)) from error
        self._settle()
        self.pending = BegunStep(begun, position, agreed, waited=waited, seconds=time.monotonic() - began)

    def _settle(self) -> None:
        """Wait for the step in progress and check its result. All workers call this at the same points.

        Raises:
            RayDetrError: the step was not taken, and this worker reports why.
            StoppedElsewhere: the step was not taken, and another worker reports why.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        began = time.monotonic()
        result = pending.step.result()
        if not math.isfinite(result.gradient_norm):
            is_told = result.diverged is not None or result.out_of_memory is not None
            known = self.collective.sum([is_told])[0]
            refuse_step(result, pending.position, self.recipe, speaks_for_all=self.is_first and not known)
            raise StoppedElsewhere
        seconds = pending.seconds + time.monotonic() - began
        self.reporter.window.add(result, pending.agreed, waited=pending.waited, seconds=seconds)

    def _agree(self, own: Sequence[TrainBatch], problem: str | None) -> StepTotals:
        """Sum up the micro-batches of all workers before a step, and what is due by the clock of rank 0.

        Args:
            own: the micro-batches of this worker.
            problem: why this worker has no micro-batches, or None.

        Raises:
            RayDetrError: this worker must stop.
            StoppedElsewhere: another worker must stop.
        """
        now = time.monotonic()
        if self.saver is not None:
            self._note(self.saver.check)
            problem = problem or self.problem
        counts = [len(target.labels) for batch in own for target in batch.targets]
        agreed = StepTotals(
            *self.collective.sum(
                [
                    sum(counts),
                    len(own),
                    len(counts),
                    sum(int(batch.extents.prod(1).sum()) for batch in own),
                    sum(max(0, count - self.queries) for count in counts),
                    problem is not None,
                    self.is_first and now - self.saved >= self.config.checkpoint_minutes * 60,
                    self.is_first and now - self.looked >= NOTICE_SECONDS,
                    self.reporter.is_capped(),
                ]
            )
        )
        if problem is not None:
            raise RayDetrError(problem)
        if agreed.stopped:
            raise StoppedElsewhere
        return agreed

    def _between_steps(self, learner: Learner, position: TrainingPosition) -> None:
        """Write a checkpoint if it is due, or if a machine is about to be preempted."""
        assert self.agreed is not None, "a step was taken"
        wants = bool(self.agreed.checkpoint or self.agreed.capped)
        if wants or position.step_in_epoch == 0:
            self._settle()  # before a checkpoint, and at the end of an epoch
        notice = None
        if self.agreed.notice:
            self.looked = time.monotonic()
            notice = ray.train.get_preemption_info()  # collective: all workers call it at the same step
            notice = None if notice == self.answered else notice
            if notice is not None:
                self._settle()
        if (wants or notice is not None) and self.saver is not None:
            self._save(learner, position)
            if notice is not None:
                self._note(self.saver.wait)  # the machine may be preempted soon
        if notice is not None:
            self.answered = notice
        if self.agreed.capped and position.epoch < self.recipe.epochs:
            self._stop_at_cap(position)

    def _stop_at_cap(self, position: TrainingPosition) -> None:
        """End all workers at a limit; rank 0 waits for the checkpoint first, and reports the reason.

        Raises:
            RayDetrError: writing the checkpoint failed.
            StoppedElsewhere: the checkpoint is written.
        """
        if self.saver is not None:
            self._note(self.saver.wait)
            if self.problem is not None:
                raise RayDetrError(self.problem)
            ray.get(self.spec.status.stop_at_cap.remote(position.step))
        raise StoppedElsewhere

    def _save(self, learner: Learner, position: TrainingPosition) -> None:
        assert self.saver is not None
        self.saved = time.monotonic()
        self.reporter.flush()
        saver = self.saver
        self._note(lambda: saver.save(position, learner))

    def _end_epoch(self, learner: Learner, position: TrainingPosition) -> None:
        """Write a checkpoint, unless the last one is very recent, and evaluate it if that is due."""
        evaluates = self._is_evaluated(position)
        is_young = time.monotonic() - self.saved < LEAST_SECONDS
        if self.saver is not None and (evaluates or position.epoch == self.recipe.epochs or not is_young):
            self._save(learner, position)
        if evaluates:
            self._evaluate(learner, position)

    def _is_evaluated(self, position: TrainingPosition) -> bool:
        """Return whether the model is evaluated at this end of an epoch."""
        every = self.config.evaluate_epochs
        is_due = position.epoch == self.recipe.epochs or (every > 0 and position.epoch % every == 0)
        return self.config.val is not None and position.epoch > 0 and is_due

    def _evaluate(self, learner: Learner, position: TrainingPosition) -> None:
        """Evaluate the model of the newest checkpoint, and report the metrics."""
        assert self.data.val is not None
        self.reporter.begin_evaluation()
        metrics = evaluate_on_all(
            learner.kept,
            self.data.val,
            self.data.truth,
            self.collective,
            device=str(learner.device),
            precision="fp32",  # bf16 loses 0.017 to 0.03 of AP (docs/measurements.md)
        )
        self.collective.barrier()  # only rank 0 computes the metrics, which may take long
        if metrics is not None and self.saver is not None:
            saver = self.saver
            self._note(lambda: saver.rate(metrics))
        self.reporter.end_evaluation(position, metrics)

    def _tell_user(self, sentence: str) -> None:
        ray.get(self.spec.status.note.remote(sentence))  # or it would be lost if this process ends now

    def _note(self, work: Callable[[], object]) -> None:
        """Call `work` on rank 0; if it fails, all workers stop before the next step, so that none waits for rank 0."""
        try:
            work()
        except RayDetrError as error:
            self.problem = self.problem or str(error)


def _own_device() -> torch.device:
    """Make the device that Ray gave this worker the default of PyTorch, and return it."""
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # otherwise pinned memory would open a context on the GPU of another worker
    return device


def _next(batches: Iterator[list[TrainBatch]]) -> tuple[list[TrainBatch], str | None]:
    """Return the batches of a step, or an error message: the other workers must receive it before any worker stops."""
    try:
        return next(batches), None
    except RayDetrError as error:
        return [], str(error)
