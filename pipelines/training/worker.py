"""One training worker: Ray Train starts it on every GPU, and it runs from the newest checkpoint to the last epoch."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

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
from pipelines.training.checkpoint_saver import Saver
from pipelines.training.checkpoints import (
    LoadedCheckpoint,
    TrainingPosition,
    TrainingRun,
    latest_checkpoint,
    load_checkpoint,
    open_run,
)
from pipelines.training.collective import Collective
from pipelines.training.data import Batches, TrainData, open_data
from pipelines.training.evaluation import evaluate_on_all
from pipelines.training.learner import Learner
from pipelines.training.metrics import MetricsWindow, StepTotals
from pipelines.training.order import EpochOrder
from pipelines.training.pinning import pinned_batches
from pipelines.training.run_status import TrainProgress
from pipelines.training.training_log import TrainLog
from pipelines.training.worker_spec import WorkerSpec

T = TypeVar("T")

TELL_SECONDS: Final = 1.0  # from one word to the driver to the next
LEAST_SECONDS: Final = 30.0  # from one checkpoint to that of an epoch's end, where epochs are short
NOTICE_SECONDS: Final = 5.0  # from one look for a preemption notice to the next


def train_worker(spec: WorkerSpec) -> None:
    """Train until the last epoch, or until the run has to stop for good: then the board knows why, and nothing raises.

    What does raise - a lost peer, a bug - makes Ray Train start all workers again from the newest checkpoint.
    """
    if Path(spec.scratch).is_dir():
        tempfile.tempdir = spec.scratch  # a worker that is killed removes nothing
    collective = Collective(seconds=spec.config.collective_seconds)
    # before anything that can fail, so that a failure which comes again and again is counted
    if collective.broadcast(collective.rank == 0 and _is_stopped(spec)):
        return
    sentence = None
    try:
        with ExitStack() as stack:
            _Worker(spec, collective, stack).run()
    except LeftPeers as error:
        ray.get(spec.board.stop.remote(str(error)))
        raise  # so that Ray Train ends the others, which wait for this worker
    except (RayDetrError, StoreError) as error:
        sentence = str(error)
    except StoppedElsewhere:
        pass  # whoever knows why tells the board
    if sentence is not None:
        ray.get(spec.board.stop.remote(sentence))


def _is_stopped(spec: WorkerSpec) -> bool:
    """Tell the board that the workers start, and return whether they must not."""
    saved = latest_checkpoint(open_store(spec.config.run_uri, spec.config.options))
    assert saved is not None, "the driver writes the first"
    return ray.get(spec.board.begin.remote(saved.step)) is not None


class StoppedElsewhere(Exception):
    """Another worker cannot go on and says why; this one only has to end."""


class _Worker:
    """All state of one worker."""

    def __init__(self, spec: WorkerSpec, collective: Collective, stack: ExitStack) -> None:
        self.spec, self.config, self.recipe = spec, spec.config, spec.config.recipe
        self.collective, self.stack = collective, stack
        self.is_first = collective.rank == 0
        self.run_store = open_store(self.config.run_uri, self.config.options)
        self.progress = TrainProgress("train", epochs=self.recipe.epochs, workers=collective.workers)
        self.window = MetricsWindow()
        self.told = self.looked = self.saved = time.monotonic()
        self.capped: Any = None  # the board's last answer, which comes later: whether a limit is reached
        self.answered: object = None  # the last preemption notice that a checkpoint was written for
        self.pending: BegunStep | None = None  # the step that the device may still be computing
        self.agreed: StepTotals | None = None  # about the last step that was begun
        self.problem: str | None = None  # what this worker has to stop all for
        self.saver: Saver | None = None  # this and the next at rank 0 only
        self.log: TrainLog | None = None

    def run(self) -> None:
        """Train to the end.

        Raises:
            RayDetrError: the run must stop for good, and this worker knows why.
            StoppedElsewhere: another worker does.
        """
        self._together(self._claim)
        # rank 0's word counts: two workers must never go on from two checkpoints
        saved = self.collective.broadcast(latest_checkpoint(self.run_store) if self.is_first else None)
        assert saved is not None, "the driver writes the first"
        self.data, checkpoint = self._together(lambda: self._load(saved))
        learner = Learner(
            checkpoint.model,
            self.recipe,
            device=_own_device(),
            workers=self.collective.workers,
            trainable_norm=bool(checkpoint.record["trainable_norm"]),
            fused=self.config.fused,
            compiled=self.config.compiled,
            gradient_checkpointing=self.config.gradient_checkpointing,
            tf32=self.config.tf32,
        )
        self.queries = learner.network.config.queries
        learner.restore(checkpoint.training_tensors, source=f"{self.config.run_uri}/checkpoints/{saved.name}")
        position = checkpoint.position
        if position.step_in_epoch == 0 and saved.metrics is None and self._is_evaluated(position):
            self._evaluate(learner, position)  # the workers were lost before they had
        while position.epoch < self.recipe.epochs:
            position = self._train_epoch(learner, position)
            self._end_epoch(learner, position)
        if self.saver is not None:
            self._finish(self.saver)

    def _finish(self, saver: Saver) -> None:
        """Mark the run as finished; at rank 0."""
        self._note(saver.finish)
        if self.problem is not None:
            raise RayDetrError(self.problem)
        assert self.log is not None
        self.log.finish()
        ray.get(self.spec.board.finish.remote())

    def _together(self, work: Callable[[], T]) -> T:
        """Do what may fail at one worker only, and go on if it failed at none, so that none waits for another.

        Raises:
            RayDetrError: it failed here.
            StoppedElsewhere: it failed at another worker.
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
        """Claim the run, at rank 0 for all."""
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
                run.reopen()  # it was finished with fewer epochs
            self._open(run)

    def _load(self, saved: SavedCheckpoint) -> tuple[TrainData, LoadedCheckpoint]:
        """Open the shards, and read a checkpoint."""
        data = open_data(self.config, worker=self.collective.rank, workers=self.collective.workers)
        return data, load_checkpoint(self.run_store, saved)

    def _open(self, run: TrainingRun) -> None:
        """Make what only rank 0 has."""
        newest, best = run.latest(), run.best()
        assert newest is not None, "the driver writes the first"
        self.progress = replace(self.progress, step=newest.step, best=None if best is None else _ap(best.metrics))
        self.saver = Saver(run, keep=self.config.keep)
        self.stack.callback(self.saver.close)
        position = TrainingPosition(newest.epoch, newest.step_in_epoch, newest.step)
        log_id = f"{self.spec.start_id}-{run.claim_number}"
        self.log = self.stack.enter_context(TrainLog(self.run_store, self.config, position, log_id))

    def _train_epoch(self, learner: Learner, position: TrainingPosition) -> TrainingPosition:
        """Train from a position to the end of its epoch, and return where that is."""
        order = self.data.order(position.epoch, learner.network.config)
        batches = self.data.batches(order, position, learner.network.config, threads=self.spec.threads)
        if learner.device.type == "cuda":
            batches = pinned_batches(batches)
        with closing(batches):
            while position.step_in_epoch < order.steps:
                self._train_step(learner, position, order, batches)
                position = replace(position, step_in_epoch=position.step_in_epoch + 1, step=position.step + 1)
                self._tell(learner, position, order)
                if position.step_in_epoch == order.steps:
                    position = TrainingPosition(position.epoch + 1, 0, position.step)
                self._between_steps(learner, position)
                if position.step_in_epoch == 0:
                    return position
        return TrainingPosition(position.epoch + 1, 0, position.step)

    def _train_step(self, learner: Learner, position: TrainingPosition, order: EpochOrder, batches: Batches) -> None:
        """Begin the step at a position, and then look at what the one before it gave.

        While the device computes a step, the host agrees with the others about the next one and begins it.

        Raises:
            RayDetrError: this worker cannot go on.
            LeftPeers: this worker cannot, and the others wait for it.
            StoppedElsewhere: another one cannot.
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
        """Wait for the last step that was begun, and look at what it gave; at the same places in every worker.

        Raises:
            RayDetrError: it was not taken, and this worker says why.
            StoppedElsewhere: it was not taken, and another worker says why.
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
        self.window.add(result, pending.agreed, waited=pending.waited, seconds=seconds)

    def _agree(self, own: Sequence[TrainBatch], problem: str | None) -> StepTotals:
        """Add up what all workers know before a step and what rank 0's clock wants.

        Args:
            own: the micro-batches of this worker.
            problem: why it has none.

        Raises:
            RayDetrError: this worker cannot go on.
            StoppedElsewhere: another one cannot.
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
                    self.is_first and self._is_capped(),
                ]
            )
        )
        if problem is not None:
            raise RayDetrError(problem)
        if agreed.stopped:
            raise StoppedElsewhere
        return agreed

    def _between_steps(self, learner: Learner, position: TrainingPosition) -> None:
        """Write a checkpoint when it is time, or when a machine is about to be taken away."""
        assert self.agreed is not None, "a step was taken"
        wants = bool(self.agreed.checkpoint or self.agreed.capped)
        if wants or position.step_in_epoch == 0:
            self._settle()  # a checkpoint is written, or an epoch ends
        notice = None
        if self.agreed.notice:
            self.looked = time.monotonic()
            notice = ray.train.get_preemption_info()  # collective, so it is asked for where all agreed to
            notice = None if notice == self.answered else notice
            if notice is not None:
                self._settle()
        if (wants or notice is not None) and self.saver is not None:
            self._save(learner, position)
            if notice is not None:
                self._note(self.saver.wait)  # the machine may be gone soon
        if notice is not None:
            self.answered = notice
        if self.agreed.capped and position.epoch < self.recipe.epochs:
            self._stop_at_cap(position)

    def _stop_at_cap(self, position: TrainingPosition) -> None:
        """End all workers; rank 0 waits for the checkpoint first, and tells why.

        Raises:
            RayDetrError: the checkpoint cannot be written.
            StoppedElsewhere: it is written.
        """
        if self.saver is not None:
            self._note(self.saver.wait)
            if self.problem is not None:
                raise RayDetrError(self.problem)
            ray.get(self.spec.board.stop_at_cap.remote(position.step))
        raise StoppedElsewhere

    def _is_capped(self) -> bool:
        if self.capped is None or not ray.wait([self.capped], timeout=0)[0]:
            return False
        return bool(ray.get(self.capped))

    def _save(self, learner: Learner, position: TrainingPosition) -> None:
        assert self.saver is not None
        self.saved = time.monotonic()
        if self.log is not None:
            self.log.flush()
        saver = self.saver
        self._note(lambda: saver.save(position, learner))

    def _end_epoch(self, learner: Learner, position: TrainingPosition) -> None:
        """Write a checkpoint, unless the last one is very young, and evaluate it when it is time."""
        evaluates = self._is_evaluated(position)
        is_young = time.monotonic() - self.saved < LEAST_SECONDS
        if self.saver is not None and (evaluates or position.epoch == self.recipe.epochs or not is_young):
            self._save(learner, position)
        if evaluates:
            self._evaluate(learner, position)

    def _is_evaluated(self, position: TrainingPosition) -> bool:
        """Whether the end of an epoch is one at which the model is measured."""
        every = self.config.evaluate_epochs
        is_due = position.epoch == self.recipe.epochs or (every > 0 and position.epoch % every == 0)
        return self.config.val is not None and position.epoch > 0 and is_due

    def _evaluate(self, learner: Learner, position: TrainingPosition) -> None:
        """Measure the newest checkpoint's model, and tell."""
        assert self.data.val is not None
        self.progress = replace(self.progress, stage="evaluate")
        self._post()
        metrics = evaluate_on_all(
            learner.kept,
            self.data.val,
            self.data.truth,
            self.collective,
            device=str(learner.device),
            precision="fp32",  # bf16 loses 0.017 to 0.03 of AP (docs/measurements.md)
        )
        self.collective.barrier()  # rank 0 asks the official evaluator alone, which may take long
        self.progress = replace(self.progress, stage="train")
        if metrics is None:
            return
        assert self.saver is not None
        assert self.log is not None
        saver = self.saver
        self._note(lambda: saver.rate(metrics))
        self.log.evaluated(position.step, metrics)
        self.log.flush()
        best = max(value for value in (self.progress.best, metrics["AP"]) if value is not None)
        self.progress = replace(self.progress, AP=metrics["AP"], best=best)
        self._post()

    def _note(self, work: Callable[[], object]) -> None:
        """Do what only rank 0 does; where it fails, all workers hear of it before the next step, so that none waits."""
        try:
            work()
        except RayDetrError as error:
            self.problem = self.problem or str(error)

    def _tell(self, learner: Learner, position: TrainingPosition, order: EpochOrder) -> None:
        """Log what the last steps gave when it is time, and tell the driver now and then."""
        at_end = position.step_in_epoch == order.steps
        if position.step % self.config.log_steps == 0 or at_end:
            self._settle()
            line = self.window.close(self.collective, learner)
            if self.log is not None:
                self.log.add({"step": position.step, "epoch": position.epoch, **line})
            self.progress = replace(
                self.progress,
                images_per_second=line["images_per_second"],
                losses={"loss": line["loss"]},
                figures=line,
            )
        self.progress = replace(
            self.progress,
            epoch=position.epoch,
            step=position.step,
            steps_done=position.step_in_epoch,
            steps=order.steps,
        )
        if at_end or time.monotonic() - self.told >= TELL_SECONDS:
            self._post()

    def _post(self) -> None:
        self.told = time.monotonic()
        if self.is_first:
            self.capped = self.spec.board.tell.remote(self.progress)


def _own_device() -> torch.device:
    """Return the device that Ray gave this worker, after making it the one that PyTorch takes by default."""
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or pinned memory would open a context on the GPU of another worker
    return device


def _next(batches: Iterator[list[TrainBatch]]) -> tuple[list[TrainBatch], str | None]:
    """Return the batches of a step, or why there are none: the others must hear of it before anybody stops."""
    try:
        return next(batches), None
    except RayDetrError as error:
        return [], str(error)


def _ap(metrics: Mapping[str, Any] | None) -> float | None:
    return None if metrics is None else metrics.get("AP")
