"""A claimed training run: the one writer of its checkpoints, which are complete or absent."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from torch import Tensor

from detr.checkpoints.checkpoint import dump
from detr.checkpoints.model_directory import CONFIG_FILE
from pipelines.errors import RayDetrError
from pipelines.labelling.run import check_run_id
from pipelines.store import Store, StoreError
from pipelines.training.checkpoint_index import (
    Manifest,
    Overtaken,
    SavedCheckpoint,
    advance,
    check_owned,
    claim_run,
)
from pipelines.training.checkpoints import (
    CARD_FILE,
    CHECKPOINTS,
    METRICS_FILE,
    MODEL_FILES,
    TrainingPosition,
    checkpoint_key,
    without_nan,
    write_checkpoint,
    write_metrics,
)
from pipelines.training.learner import Learner
from pipelines.training.run_record import RunRecord, run_name, start_record

MODEL_FOLDER = "model/"

_FOLDER = re.compile(rf"{CHECKPOINTS}([0-9]+-[^/]+-([0-9]+))/")


class TrainingRun:
    """A training run that this process has claimed, so that it may write checkpoints. Made by `open_run`.

    Methods can be called from several threads; uploads in one thread do not block the others.
    """

    def __init__(self, store: Store, record: RunRecord, manifest: Manifest) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest
        self._is_settled = True  # False while it is unknown whether the last manifest was written
        self._being_written: set[str] = set()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Name of the run: the last part of its directory's URI."""
        return run_name(self._store)

    @property
    def claim_number(self) -> int:
        """Number of this claim. Each group of workers claims the run; later claims have higher numbers."""
        return self._manifest.owner.number

    @property
    def is_finished(self) -> bool:
        """Whether `finish` was called, by this or an earlier process."""
        return self._manifest.finished

    def latest(self) -> SavedCheckpoint | None:
        """Return the newest checkpoint, or None before the first."""
        return self._manifest.latest

    def best(self) -> SavedCheckpoint | None:
        """Return the checkpoint with the highest AP, the later of equals; None before the first evaluation."""
        return self._manifest.best

    def checkpoints(self) -> tuple[SavedCheckpoint, ...]:
        """Return all kept checkpoints in the order of steps."""
        return self._manifest.checkpoints

    def save(
        self,
        position: TrainingPosition,
        model_files: Mapping[str, bytes],
        training_tensors: Mapping[str, Tensor],
        *,
        trainable_norm: bool,
        keep: int,
    ) -> str:
        """Write a checkpoint, remove checkpoints that are not kept any more, and return its name.

        The checkpoint exists from the moment that the manifest names it; an interrupted write has no effect. If the
        newest checkpoint has this position, it is not written again. Memory: the training tensors once more, encoded.

        Args:
            position: The position of training, not before the newest checkpoint.
            model_files: The model directory, from `detr.checkpoints.checkpoint.dump`.
            training_tensors: Tensors for resuming, on any device; no two share memory.
            trainable_norm: Whether training has trainable norms.
            keep: Number of the newest checkpoints to keep, beside the best.

        Raises:
            Overtaken: another process has claimed the run; this checkpoint does not exist.
            StoreError: the store refused. Call again; the checkpoint exists completely or not at all.
            ValueError: the position is before the newest checkpoint, or the run is finished.
        """
        if keep < 1:
            raise ValueError(f"keep: {keep} is not a number of checkpoints; give 1 or more.")
        self._check_owned()
        newest = self.latest()
        if self.is_finished or (newest is not None and position.step < newest.step):
            raise ValueError(f"run {self.name}: step {position.step} comes after the newest checkpoint or the end.")
        if newest is not None and position.step == newest.step:
            return newest.name

        owner = self._manifest.owner
        saved = SavedCheckpoint(
            f"{position.step:09d}-{owner.start_id}-{owner.number}",
            position.epoch,
            position.step_in_epoch,
            position.step,
            None,
            {},
        )
        with self._writing(saved.name):
            sizes = write_checkpoint(
                self._store,
                saved,
                model_files,
                training_tensors,
                trainable_norm=trainable_norm,
                configuration=self._record.configuration,
            )
            saved = replace(saved, files=sizes)
            try:
                self._commit(lambda manifest: manifest.with_checkpoint(saved).pruned(keep))
            except Overtaken as overtaken:
                if overtaken.is_unseen:  # otherwise the new owner's manifest may contain it
                    self._remove(saved.name)
                raise
        self._sweep()
        return saved.name

    def set_metrics(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Add an evaluation to a kept checkpoint. The best checkpoint is the one with the highest `metrics["AP"]`.

        Raises:
            Overtaken: another process has claimed the run.
            StoreError: the store refused; call again.
            ValueError: the checkpoint is not kept any more.
        """
        self._check_owned()
        saved = replace(self._kept(name), metrics=without_nan(metrics))
        config = self._store.get(checkpoint_key(name, CONFIG_FILE)).data
        write_metrics(self._store, saved, config, self._record.configuration)

        def with_metrics(manifest: Manifest) -> Manifest:
            return manifest.with_checkpoint(saved) if manifest.find(name) else manifest

        self._commit(with_metrics)

    def finish(self, name: str | None = None) -> str:
        """Copy a checkpoint's model to `model/`, mark the run as finished, and return the checkpoint's name.

        Args:
            name: The checkpoint; None means the best, or the newest if no checkpoint was evaluated.

        Raises:
            Overtaken: another process has claimed the run.
            StoreError: the store refused; call again.
            ValueError: there is no such checkpoint.
        """
        self._check_owned()
        chosen = self.best() or self.latest() if name is None else self._kept(name)
        if chosen is None:
            raise ValueError(f"run {self.name} has no checkpoint to finish with.")
        self._store.delete(MODEL_FOLDER + CONFIG_FILE)  # without it, a mixture of two models cannot be loaded
        extra = (CARD_FILE,) if chosen.metrics is None else (CARD_FILE, METRICS_FILE)
        for file in (*extra, *MODEL_FILES):
            self._store.put(MODEL_FOLDER + file, self._store.get(checkpoint_key(chosen.name, file)).data)
        self._commit(lambda manifest: replace(manifest, finished=True))
        self._sweep()
        return chosen.name

    def reopen(self) -> None:
        """Mark a finished run as unfinished, so that it can be trained for more epochs.

        `model/` stays until the run is finished again.

        Raises:
            Overtaken: another process has claimed the run.
            StoreError: the store refused; call again.
        """
        if self.is_finished:
            self._check_owned()
            self._commit(lambda manifest: replace(manifest, finished=False))

    def _kept(self, name: str) -> SavedCheckpoint:
        saved = self._manifest.find(name)
        if saved is None:
            kept = ", ".join(one.name for one in self.checkpoints()) or "none"
            raise ValueError(f"run {self.name} keeps no checkpoint {name}; it keeps {kept}.")
        return saved

    def _commit(self, change: Callable[[Manifest], Manifest]) -> None:
        with self._lock:
            self._is_settled = False
            self._manifest = advance(self._store, self._manifest, change)
            self._is_settled = True

    def _check_owned(self) -> None:
        """Check that this process still owns the run. Repeat the last manifest if its write may have failed."""
        if not self._is_settled:
            self._commit(lambda manifest: manifest)
        with self._lock:
            check_owned(self._store, self._manifest)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Protect a directory that no manifest contains yet from `_sweep`."""
        with self._lock:
            self._being_written.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._being_written.discard(name)

    def _sweep(self) -> None:
        """Remove directories that the manifest does not contain: old checkpoints, and those of dead processes.

        Names contain the number of the claim; directories of a later claim may be checkpoints in progress.
        """
        folders = {
            found[1]: int(found[2])
            for entry in self._store.list(CHECKPOINTS)
            if (found := _FOLDER.match(entry.key)) is not None
        }
        with self._lock:
            wanted = self._being_written | {saved.name for saved in self._manifest.checkpoints}
        for name, claim in folders.items():
            if claim <= self._manifest.owner.number and name not in wanted:
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._store.delete(checkpoint_key(name, CONFIG_FILE))  # first: without it the rest cannot be loaded as a model
        for entry in list(self._store.list(checkpoint_key(name, ""))):
            self._store.delete(entry.key)


def open_run(
    store: Store,
    configuration: Mapping[str, object],
    *,
    start_id: str,
    now: datetime,
    versions: Mapping[str, str],
) -> TrainingRun:
    """Begin the run of a directory, or claim it from an earlier process and remove that process's unfinished writes.

    One process of each group of workers calls this once. Afterwards earlier groups cannot add checkpoints any more,
    even if they are alive.

    Args:
        store: The run's directory.
        configuration: The options that determine the weights: see `start_record`.
        start_id: Identifies the execution of the command: letters, digits, '.', '_' and '-'.
        now: The time, UTC.
        versions: Versions of this package and its dependencies, for the records.

    Raises:
        RayDetrError: the run has another configuration, or its records are damaged.
        StoreError: the store refused; call again.
        ValueError: `start_id` cannot name a folder.
    """
    check_run_id(start_id)
    record = start_record(store, configuration, versions=versions, now=now)
    manifest = claim_run(
        store, start_id, token=secrets.token_hex(8), claimed_at=now.isoformat(), versions=dict(versions)
    )
    run = TrainingRun(store, record, manifest)
    run._sweep()  # noqa: SLF001 - part of opening it
    return run


class CheckpointSaver:
    """Saves checkpoints during training: copies them to memory between two steps, and uploads them in a thread.

    Only the worker of rank 0 has one. One upload runs at a time. If it fails, the next call and all later ones raise
    its error, because later checkpoints must not hide a missing one. Memory: a copy of the tensors of one checkpoint,
    and for a moment their encoded bytes.
    """

    def __init__(self, run: TrainingRun, *, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[object] | None = None
        self._failure: RayDetrError | None = None

    def save(self, position: TrainingPosition, learner: Learner) -> None:
        """Wait for the upload before, copy model and tensors, and begin to upload them."""
        self.wait()
        files, tensors, trainable_norm = dump(learner.kept), learner.tensors(), learner.trainable_norm
        self._begin(lambda: self._run.save(position, files, tensors, trainable_norm=trainable_norm, keep=self._keep))

    def rate(self, metrics: Mapping[str, Any]) -> None:
        """Add an evaluation to the newest checkpoint, whose model was evaluated."""
        self.wait()
        newest = self._run.latest()
        assert newest is not None
        self._begin(lambda: self._run.set_metrics(newest.name, metrics))

    def finish(self) -> str:
        """Mark the run as finished, and return the name of the checkpoint that was copied to `model/`."""
        self.wait()
        self._begin(self._run.finish)
        return str(self.wait())

    def check(self) -> None:
        """Raise the error of an upload that has ended.

        Raises:
            RayDetrError: the store refused, or another process has claimed the run.
        """
        if self._failure is not None or (self._pending is not None and self._pending.done()):
            self.wait()

    def wait(self) -> object:
        """Wait for the upload and return its result. Raises the same errors as `check`."""
        if self._failure is not None:
            raise self._failure
        pending, self._pending = self._pending, None
        try:
            return None if pending is None else pending.result()
        except RayDetrError as stopped:
            self._failure = stopped
            raise
        except StoreError as error:
            self._failure = RayDetrError(
                f"a checkpoint cannot be written: {error} Training stops at the last complete one; run the same "
                "command again to resume."
            )
            raise self._failure from error

    def close(self) -> None:
        """End the thread after the current upload."""
        self._thread.shutdown()

    def _begin(self, work: Callable[[], object]) -> None:
        self._pending = self._thread.submit(work)
