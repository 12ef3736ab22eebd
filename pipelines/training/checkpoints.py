"""Checkpoints of a training run in an object store: complete or absent, with one writer at a time."""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from detr.checkpoints.checkpoint import CheckpointError, load, save
from detr.checkpoints.model_directory import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHT_FILES
from detr.model import Detr
from pipelines.errors import RayDetrError
from pipelines.labelling.run import check_run_id
from pipelines.store import NotFound, Store, join_uri
from pipelines.training.checkpoint_card import checkpoint_card
from pipelines.training.checkpoint_index import (
    Manifest,
    Overtaken,
    SavedCheckpoint,
    advance,
    check_owned,
    claim_run,
    read_manifest,
)
from pipelines.training.run_record import RunRecord, damaged, run_name, start_record, to_json

WEIGHTS_FILE: Final = WEIGHT_FILES[0]
TENSORS_FILE: Final = "training.safetensors"
TRAINING_FILE: Final = "training.json"
METRICS_FILE: Final = "metrics.json"
CARD_FILE: Final = "README.md"
MODEL_FOLDER: Final = "model/"

_CHECKPOINTS = "checkpoints/"
_FOLDER = re.compile(rf"{_CHECKPOINTS}([0-9]+-[^/]+-([0-9]+))/")
_MODEL_FILES = (WEIGHTS_FILE, PREPROCESSOR_FILE, CONFIG_FILE)


@dataclass(frozen=True, slots=True)
class TrainingPosition:
    """Where training stands: `step_in_epoch` steps of epoch `epoch` are done (both from 0), `step` in all."""

    epoch: int
    step_in_epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """What resuming needs; the model is on the CPU, float32, in evaluation mode, its norms frozen."""

    position: TrainingPosition
    record: Mapping[str, Any]
    training_tensors: dict[str, Tensor]
    model: Detr


class TrainingRun:
    """A claimed run: the only way to write checkpoints into its directory. Made by `open_run`.

    Methods may be called from several threads: uploads of one do not hold up the others.
    """

    def __init__(self, store: Store, record: RunRecord, manifest: Manifest) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest
        self._is_settled = True  # False while it is not known whether the last manifest was written
        self._being_written: set[str] = set()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The run's name: the last part of its directory's URI."""
        return run_name(self._store)

    @property
    def record(self) -> RunRecord:
        """What the run was begun with."""
        return self._record

    @property
    def claim_number(self) -> int:
        """The number of this claim: each group of workers makes one, and later ones have higher numbers."""
        return self._manifest.owner.number

    @property
    def is_finished(self) -> bool:
        """Whether `finish` was called, in this start or an earlier one."""
        return self._manifest.finished

    def latest(self) -> SavedCheckpoint | None:
        """Return the checkpoint to resume from, None before the first."""
        return self._manifest.latest

    def best(self) -> SavedCheckpoint | None:
        """Return the checkpoint of the highest AP, of equals the later; None before any evaluation."""
        return self._manifest.best

    def checkpoints(self) -> tuple[SavedCheckpoint, ...]:
        """Return all that are kept, by step."""
        return self._manifest.checkpoints

    def load(self, name: str) -> LoadedCheckpoint:
        """Return a checkpoint that is kept.

        Raises:
            RayDetrError: it is damaged.
            StoreError: it cannot be read.
        """
        return load_checkpoint(self._store, self._kept(name))

    def save(
        self,
        position: TrainingPosition,
        model_files: Mapping[str, bytes],
        training_tensors: Mapping[str, Tensor],
        record: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        *,
        keep: int,
    ) -> str:
        """Write a checkpoint, drop those that are kept no longer, and return its name.

        It exists from the moment that the manifest names it; what breaks off before is as if it had not begun. A
        position that has its checkpoint already is not written again. Memory: the training tensors
        once more.

        Args:
            position: Where training stands; never before the newest checkpoint.
            model_files: The model's directory, as `model_directory_files` gives it.
            training_tensors: What resuming needs beside the model, on any device; no two share memory.
            record: What resuming needs beside tensors, as values of JSON.
            metrics: The evaluation of this very model, if there was one: see `set_metrics`.
            keep: How many of the newest checkpoints stay, beside the best.

        Raises:
            Overtaken: a later start owns the run; nothing of this checkpoint counts.
            StoreError: the store refused. Call again, or start again: the checkpoint is there whole or not at all.
            ValueError: the position is before the newest checkpoint, or the run is finished.
        """
        if keep < 1:
            raise ValueError(f"keep: {keep} is not a number of checkpoints; give 1 or more.")
        self._check_owned()
        newest = self.latest()
        if self.is_finished or (newest is not None and position.step < newest.step):
            raise ValueError(f"run {self.name}: step {position.step} comes after the newest checkpoint or the end.")
        if newest is not None and position.step == newest.step:
            if metrics is not None:
                self.set_metrics(newest.name, metrics)
            return newest.name

        owner = self._manifest.owner
        saved = SavedCheckpoint(
            f"{position.step:09d}-{owner.start_id}-{owner.number}",
            position.epoch,
            position.step_in_epoch,
            position.step,
            None if metrics is None else without_nan(metrics),
            {},
        )
        with self._writing(saved.name):
            saved = replace(saved, files=self._write(saved, model_files, training_tensors, record))
            try:
                self._commit(lambda manifest: manifest.with_checkpoint(saved).pruned(keep))
            except Overtaken as overtaken:
                if overtaken.is_unseen:  # else the new owner's manifest may name it; then it is the new owner's
                    self._remove(saved.name)
                raise
        self._sweep()
        return saved.name

    def set_metrics(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Add the evaluation of a checkpoint that is kept. `metrics["AP"]` decides which is the best.

        Raises:
            Overtaken: a later start owns the run.
            StoreError: the store refused; call again.
            ValueError: the checkpoint is not kept any more.
        """
        self._check_owned()
        saved = replace(self._kept(name), metrics=without_nan(metrics))
        config = self._store.get(_key(name, CONFIG_FILE)).data
        self._store.put(_key(name, METRICS_FILE), to_json(saved.metrics or {}))
        self._store.put(_key(name, CARD_FILE), self._card(saved, config))

        def with_metrics(manifest: Manifest) -> Manifest:
            return manifest.with_checkpoint(saved) if manifest.find(name) else manifest

        self._commit(with_metrics)

    def finish(self, name: str | None = None) -> str:
        """Copy a checkpoint's model to `model/`, mark the run as finished, and return the checkpoint's name.

        Args:
            name: Which; None is the best, or the newest where none was evaluated.

        Raises:
            Overtaken: a later start owns the run.
            StoreError: the store refused; call again.
            ValueError: there is no such checkpoint.
        """
        self._check_owned()
        chosen = self.best() or self.latest() if name is None else self._kept(name)
        if chosen is None:
            raise ValueError(f"run {self.name} has no checkpoint to finish with.")
        self._store.delete(MODEL_FOLDER + CONFIG_FILE)  # a model without it is none: nobody loads a mixture
        extra = (CARD_FILE,) if chosen.metrics is None else (CARD_FILE, METRICS_FILE)
        for file in (*extra, *_MODEL_FILES):
            self._store.put(MODEL_FOLDER + file, self._store.get(_key(chosen.name, file)).data)
        self._commit(lambda manifest: replace(manifest, finished=True))
        self._sweep()
        return chosen.name

    def reopen(self) -> None:
        """Mark a finished run as unfinished, so that it can be trained for more epochs; do nothing to another.

        `model/` stays as it is until the run is finished again.

        Raises:
            Overtaken: a later start owns the run.
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

    def _write(
        self,
        saved: SavedCheckpoint,
        model_files: Mapping[str, bytes],
        training_tensors: Mapping[str, Tensor],
        record: Mapping[str, Any],
    ) -> dict[str, int]:
        """Write the objects of a checkpoint, config.json last, and return the sizes of those that never change."""
        sizes = {}

        def write(file: str, data: bytes) -> None:
            self._store.put(_key(saved.name, file), data)
            sizes[file] = len(data)

        write(TENSORS_FILE, _encode_tensors(training_tensors))
        training = {
            "epoch": saved.epoch,
            "step_in_epoch": saved.step_in_epoch,
            "step": saved.step,
            "record": dict(record),
            "configuration": dict(self._record.configuration),
        }
        write(TRAINING_FILE, to_json(training))
        if saved.metrics is not None:
            self._store.put(_key(saved.name, METRICS_FILE), to_json(saved.metrics))
        self._store.put(_key(saved.name, CARD_FILE), self._card(saved, model_files[CONFIG_FILE]))
        for file in _MODEL_FILES:
            write(file, model_files[file])
        return sizes

    def _card(self, saved: SavedCheckpoint, config: bytes) -> bytes:
        return checkpoint_card(
            self.name, self._record.configuration, saved, tuple(json.loads(config)["id2label"].values())
        ).encode()

    def _commit(self, change: Callable[[Manifest], Manifest]) -> None:
        with self._lock:
            self._is_settled = False
            self._manifest = advance(self._store, self._manifest, change)
            self._is_settled = True

    def _check_owned(self) -> None:
        """Ask whether the run is still ours, and settle whether the last manifest was written if that is not known."""
        if not self._is_settled:
            self._commit(lambda manifest: manifest)
        with self._lock:
            check_owned(self._store, self._manifest)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Keep a directory that no manifest names yet from being taken for an orphan."""
        with self._lock:
            self._being_written.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._being_written.discard(name)

    def _sweep(self) -> None:
        """Remove what no manifest names: pruned checkpoints, and what starts that are dead or fenced off left.

        Directories carry the number of their claim: those of a later claim may be checkpoints in the making.
        """
        folders = {
            found[1]: int(found[2])
            for entry in self._store.list(_CHECKPOINTS)
            if (found := _FOLDER.match(entry.key)) is not None
        }
        with self._lock:
            wanted = self._being_written | {saved.name for saved in self._manifest.checkpoints}
        for name, claim in folders.items():
            if claim <= self._manifest.owner.number and name not in wanted:
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._store.delete(_key(name, CONFIG_FILE))  # first: without it nobody takes the rest for a model
        for entry in list(self._store.list(_key(name, ""))):
            self._store.delete(entry.key)


def open_run(
    store: Store,
    configuration: Mapping[str, object],
    *,
    start_id: str,
    now: datetime,
    versions: Mapping[str, str],
) -> TrainingRun:
    """Begin the run whose directory is `store`, or take it over from whoever had it, and remove what they left undone.

    To be called by one process of a group of workers, and once by each group: from here on earlier ones cannot add
    checkpoints any more, whether they are dead or not.

    Args:
        store: The run's directory.
        configuration: What decides how the weights come out: see `start_record`.
        start_id: Names the start of the command: letters, digits, '.', '_' and '-'.
        now: The time, UTC.
        versions: Of the code and its packages, for the records.

    Raises:
        RayDetrError: the run was begun with another configuration, or its records are damaged.
        StoreError: the store refused; the same call may be made again.
        ValueError: `start_id` cannot name a folder.
    """
    check_run_id(start_id)
    record = start_record(store, configuration, versions=versions, now=now)
    manifest = claim_run(
        store, start_id, token=secrets.token_hex(8), claimed_at=now.isoformat(), versions=dict(versions)
    )
    run = TrainingRun(store, record, manifest)
    run._sweep()  # noqa: SLF001 - the rest of its making
    return run


def latest_checkpoint(store: Store) -> SavedCheckpoint | None:
    """Return the checkpoint that a start would resume from, without claiming the run."""
    manifest = read_manifest(store)
    return None if manifest is None else manifest.latest


def load_checkpoint(store: Store, saved: SavedCheckpoint) -> LoadedCheckpoint:
    """Return what a checkpoint holds. Memory: the checkpoint once more while it is read.

    Raises:
        RayDetrError: a file is missing or damaged.
        StoreError: it cannot be read.
    """
    training = json.loads(_read(store, saved, TRAINING_FILE))
    try:
        tensors = safetensors.torch.load(_read(store, saved, TENSORS_FILE))
    except safetensors.SafetensorError as error:
        raise damaged(store, _key(saved.name, TENSORS_FILE)) from error
    with TemporaryDirectory(prefix="ray-detr-") as folder:
        for file in _MODEL_FILES:
            (Path(folder) / file).write_bytes(_read(store, saved, file))
        try:
            model = load(folder)
        except CheckpointError as error:
            place = join_uri(store.uri, f"{_CHECKPOINTS}{saved.name}")
            reason = str(error).replace(folder, place)
            raise RayDetrError(f"the model of {place} cannot be loaded: {reason}") from error
    return LoadedCheckpoint(
        TrainingPosition(saved.epoch, saved.step_in_epoch, saved.step), training["record"], tensors, model
    )


def model_directory_files(model: Detr) -> dict[str, bytes]:
    """Return the files of a model directory as `detr.save` writes them, by name.

    Raises:
        CheckpointError: `transformers` has no words for the network.
    """
    with TemporaryDirectory(prefix="ray-detr-") as folder:
        save(model, folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics as JSON can hold them: None for NaN and infinities: there was nothing to measure."""

    def shown(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(name): shown(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [shown(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: shown(value) for name, value in values.items()}


def _encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def _read(store: Store, saved: SavedCheckpoint, file: str) -> bytes:
    key = _key(saved.name, file)
    try:
        data = store.get(key).data
    except NotFound as error:
        raise RayDetrError(
            f"{join_uri(store.uri, key)} is missing: it was removed by something else. Restore it, or give another "
            "--name."
        ) from error
    if len(data) != saved.files[file]:
        raise damaged(store, key)
    return data


def _key(name: str, file: str) -> str:
    return f"{_CHECKPOINTS}{name}/{file}"
