"""The name by which a table knows a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.labelling.publish import THREADS
from pipelines.labelling.run import list_runs_backwards
from pipelines.models import is_generic_name

if TYPE_CHECKING:
    from pipelines.models import ModelInfo
    from pipelines.store import Store


def with_recorded_name(table: Store, model: ModelInfo) -> ModelInfo:
    """Return the model by the name of its last run in the table, where that is `model@...`, `checkpoint-500@...`.

    Earlier releases called fine-tuned models and checkpoints so. Under another name all images would be labelled again,
    and their unfinished runs could not be resumed. Reads the records of runs from the newest back to one of this model.

    Raises:
        RayDetrError: a run's record is damaged.
        StoreError: the table cannot be read.
    """
    for run in list_runs_backwards(table, threads=THREADS):
        if run.model_sha256 == model.sha256:
            name, _, digest = run.model.partition("@")
            return replace(model, id=run.model) if is_generic_name(name) and digest == model.sha256[:12] else model
    return model
