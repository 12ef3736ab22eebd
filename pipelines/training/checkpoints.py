"""The contents of a checkpoint of a training run: its files, written to and read from the run's directory.

`checkpoints/<name>/` is a model directory that `transformers` loads, with `training.json` (the position) and
`training.safetensors` (optimizer, moving averages) for resuming. Configuration and recipe are in the run's record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from detr.checkpoints.checkpoint import CheckpointError, load_files
from detr.checkpoints.model_directory import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHT_FILES
from detr.model import Detr
from pipelines.errors import RayDetrError
from pipelines.store import NotFound, Store, join_uri
from pipelines.strict_json import parse_object
from pipelines.training.checkpoint_index import SavedCheckpoint, read_manifest
from pipelines.training.run_record import damaged, run_name, to_json

TENSORS_FILE: Final = "training.safetensors"
TRAINING_FILE: Final = "training.json"
METRICS_FILE: Final = "metrics.json"
CARD_FILE: Final = "README.md"
MODEL_FILES: Final = (WEIGHT_FILES[0], PREPROCESSOR_FILE, CONFIG_FILE)
CHECKPOINTS: Final = "checkpoints/"

FIGURES: Final = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
"""The twelve COCO figures that a card shows, by pycocotools' names."""


@dataclass(frozen=True, slots=True)
class TrainingPosition:
    """A position in training: `step_in_epoch` steps of epoch `epoch` are done (both from 0), `step` steps in all."""

    epoch: int
    step_in_epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """The state for resuming. The model is on the CPU, float32, in evaluation mode, with frozen norms.

    Attributes:
        position: where training continues.
        trainable_norm: whether training turns the norms into trainable ones.
        training_tensors: tensors of optimizer and moving averages by name; none for a run that has not taken a step.
        model: the model.
    """

    position: TrainingPosition
    trainable_norm: bool
    training_tensors: dict[str, Tensor]
    model: Detr


def checkpoint_key(name: str, file: str) -> str:
    """Return the key of a file of a checkpoint in the run's directory."""
    return f"{CHECKPOINTS}{name}/{file}"


def write_checkpoint(
    store: Store,
    saved: SavedCheckpoint,
    model_files: Mapping[str, bytes],
    training_tensors: Mapping[str, Tensor],
    *,
    trainable_norm: bool,
    configuration: Mapping[str, Any],
) -> dict[str, int]:
    """Write the files of a checkpoint, config.json last, and return the sizes of those that never change.

    Args:
        store: The run's directory.
        saved: Name and position of the checkpoint.
        model_files: The model directory, from `detr.checkpoints.checkpoint.dump`.
        training_tensors: Tensors for resuming, on any device; no two share memory.
        trainable_norm: Whether training has trainable norms.
        configuration: The run's, for the model card.

    Raises:
        StoreError: the store refused.
    """
    sizes = {}

    def write(file: str, data: bytes) -> None:
        store.put(checkpoint_key(saved.name, file), data)
        sizes[file] = len(data)

    write(
        TENSORS_FILE,
        safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in training_tensors.items()}),
    )
    write(
        TRAINING_FILE,
        to_json(
            {
                "epoch": saved.epoch,
                "step_in_epoch": saved.step_in_epoch,
                "step": saved.step,
                "record": {"trainable_norm": trainable_norm},  # where earlier releases look for it
            }
        ),
    )
    write_metrics(store, saved, model_files[CONFIG_FILE], configuration)
    for file in MODEL_FILES:
        write(file, model_files[file])
    return sizes


def write_metrics(store: Store, saved: SavedCheckpoint, config: bytes, configuration: Mapping[str, Any]) -> None:
    """Write the metrics of a checkpoint, if it has any, and its model card.

    Args:
        store: The run's directory.
        saved: The checkpoint.
        config: The contents of its config.json.
        configuration: The run's.

    Raises:
        StoreError: the store refused.
    """
    if saved.metrics is not None:
        store.put(checkpoint_key(saved.name, METRICS_FILE), to_json(saved.metrics))
    classes = tuple(json.loads(config)["id2label"].values())
    card = checkpoint_card(run_name(store), configuration, saved, classes)
    store.put(checkpoint_key(saved.name, CARD_FILE), card.encode())


def latest_checkpoint(store: Store) -> SavedCheckpoint | None:
    """Return the newest checkpoint of a run, without claiming the run."""
    manifest = read_manifest(store)
    return None if manifest is None else manifest.latest


def load_checkpoint(store: Store, saved: SavedCheckpoint) -> LoadedCheckpoint:
    """Read a checkpoint. Memory: the checkpoint twice.

    Raises:
        RayDetrError: a file is missing or damaged.
        StoreError: the store refused.
    """
    try:
        training = parse_object(_read(store, saved, TRAINING_FILE))
        trainable_norm = bool(training["record"]["trainable_norm"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(store, checkpoint_key(saved.name, TRAINING_FILE)) from error
    try:
        tensors = safetensors.torch.load(_read(store, saved, TENSORS_FILE))
    except safetensors.SafetensorError as error:
        raise damaged(store, checkpoint_key(saved.name, TENSORS_FILE)) from error
    place = join_uri(store.uri, f"{CHECKPOINTS}{saved.name}")
    try:
        model = load_files({file: _read(store, saved, file) for file in MODEL_FILES}, source=place)
    except CheckpointError as error:
        raise RayDetrError(f"the model of {place} cannot be loaded: {error}") from error
    position = TrainingPosition(saved.epoch, saved.step_in_epoch, saved.step)
    return LoadedCheckpoint(position, trainable_norm, tensors, model)


def checkpoint_card(
    run: str, configuration: Mapping[str, Any], saved: SavedCheckpoint, class_names: Sequence[str]
) -> str:
    """Return the Markdown text of a model card.

    Args:
        run: Name of the run.
        configuration: Configuration of the run.
        saved: The checkpoint, with its metrics if it was evaluated.
        class_names: Names of the classes, in the model's order.
    """
    where = f"{saved.step:,} steps, {saved.epoch} whole epochs" + (
        f" and {saved.step_in_epoch:,} steps" if saved.step_in_epoch else ""
    )
    return "\n".join(
        [
            f"# {run}, step {saved.step:,}",
            "",
            f"A DETR after {where}, written by ray-detr. `ray-detr label --model` and `transformers` load this "
            "directory directly.",
            "",
            *_metrics(saved.metrics),
            f"Classes, {len(class_names):,}: {', '.join(class_names)}.",
            "",
            "| trained with | |",
            "| --- | --- |",
            *(f"| {name} | {_cell(value)} |" for name, value in configuration.items()),
            "",
        ]
    )


def _metrics(metrics: Mapping[str, Any] | None) -> list[str]:
    if metrics is None:
        return []
    # pycocotools reports -1 if there is nothing to measure
    known = [name for name in FIGURES if isinstance(metrics.get(name), int | float) and metrics[name] >= 0]
    if not known:
        return []
    return [
        f"| {' | '.join(known)} |",
        f"|{' --- |' * len(known)}",
        f"| {' | '.join(f'{metrics[name]:.3f}' for name in known)} |",
        "",
    ]


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics as JSON values: NaN and infinities, for what could not be measured, become None."""

    def shown(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(name): shown(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [shown(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: shown(value) for name, value in values.items()}


def _read(store: Store, saved: SavedCheckpoint, file: str) -> bytes:
    key = checkpoint_key(saved.name, file)
    try:
        data = store.get(key).data
    except NotFound as error:
        raise RayDetrError(
            f"{join_uri(store.uri, key)} is missing: another program removed it. Restore it, or give another --name."
        ) from error
    if len(data) != saved.files[file]:
        raise damaged(store, key)
    return data
