"""A table keeps the name by which earlier releases knew a fine-tuned model."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipelines.labelling.model_names import with_recorded_name
from pipelines.labelling.run import RunRequest, begin_run
from pipelines.models import ModelInfo
from pipelines.store import Store
from tests.memory_store import memory_store

SHA256 = "0123456789ab" + "c" * 52
CELLS = ModelInfo(f"cells@{SHA256[:12]}", SHA256, ())


def table_of(*models: tuple[str, str]) -> Store:
    store = memory_store()
    now = datetime(2026, 11, 28, tzinfo=UTC)
    run = None
    for number, (model, sha256) in enumerate(models):
        request = RunRequest(model, sha256, {}, shard_images=8, versions={}, run_id=f"r{number}")
        run = begin_run(store, request, after=run, shard_images=8, precision="fp32", now=now, tail="ab12")
    return store


def test_a_new_table_has_the_name_of_the_training_run() -> None:
    assert with_recorded_name(memory_store(), CELLS) == CELLS


@pytest.mark.parametrize("name", ["model", "checkpoint-500", "000001200-20261128-211811-bf05-3"])
def test_a_table_of_an_earlier_release_keeps_its_name_so_that_nothing_is_labelled_again(name: str) -> None:
    table = table_of((f"{name}@{SHA256[:12]}", SHA256))

    assert with_recorded_name(table, CELLS).id == f"{name}@0123456789ab"


def test_each_of_two_models_that_label_one_table_keeps_its_name() -> None:
    table = table_of((f"model@{SHA256[:12]}", SHA256), ("model@ffffffffffff", "f" * 64))

    assert with_recorded_name(table, CELLS).id == "model@0123456789ab"
    assert with_recorded_name(table, ModelInfo("night@ffffffffffff", "f" * 64, ())).id == "model@ffffffffffff"


@pytest.mark.parametrize(
    ("model", "sha256"),
    [
        (f"model@{SHA256[:12]}", SHA256[:12] + "d" * 52),
        ("model@ffffffffffff", "f" * 64),
        (f"night@{SHA256[:12]}", SHA256),
    ],
)
def test_any_other_name_changes_nothing(model: str, sha256: str) -> None:
    assert with_recorded_name(table_of((model, sha256)), CELLS) == CELLS
