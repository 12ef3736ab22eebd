"""The name by which a table knows a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.labelling.run import latest_run

if TYPE_CHECKING:
    from pipelines.models import ModelInfo
    from pipelines.store import Store


def named_as_before(table: Store, model: ModelInfo) -> ModelInfo:
    """Return the model by the name that the table's newest run gave it, where that is `model@...`.

    Earlier releases called every fine-tuned model so. Under another name all images would be labelled again.

    Raises:
        StoreError: the table cannot be read.
    """
    old = f"model@{model.sha256[:12]}"
    newest = latest_run(table)
    if newest is not None and newest.model == old and newest.model_sha256 == model.sha256:
        return replace(model, id=old)
    return model
