"""The name of a model in a table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.labelling.publish import THREADS
from pipelines.labelling.run import map_runs_backwards
from pipelines.models import is_generic_name

if TYPE_CHECKING:
    from pipelines.models import ModelInfo
    from pipelines.store import Store


def with_recorded_name(table: Store, model: ModelInfo) -> ModelInfo:
    """Return the model with the name of its last run in the table if that is `model@...` or `checkpoint-500@...`.

    Earlier releases used these names for fine-tuned models and checkpoints. With another name all images would be
    labelled again, and unfinished runs could not be resumed. Reads the records of runs backwards from the newest to one
    of this model.

    Raises:
        RayDetrError: a run's record is damaged.
        StoreError: the table cannot be read.
    """
    for run in map_runs_backwards(table, lambda run: run, threads=THREADS):
        if run.model_sha256 == model.sha256:
            name, _, digest = run.model.partition("@")
            return replace(model, id=run.model) if is_generic_name(name) and digest == model.sha256[:12] else model
    return model
