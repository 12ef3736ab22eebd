"""A table keeps the name by which earlier releases knew a fine-tuned model."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipelines.labelling.model_names import named_as_before
from pipelines.labelling.run import RunRequest, begin_run
from pipelines.models import ModelInfo
from pipelines.store import Store, memory_store

SHA256 = "0123456789ab" + "c" * 52
CELLS = ModelInfo(f"cells@{SHA256[:12]}", SHA256, ())


def table_of(model: str, sha256: str = SHA256) -> Store:
    store = memory_store()
    request = RunRequest(model, sha256, {}, shard_images=8, versions={}, run_id="a")
    now = datetime(2026, 11, 28, tzinfo=UTC)
    begin_run(store, request, after=None, shard_images=8, precision="fp32", now=now, tail="ab12")
    return store


def test_a_new_table_has_the_name_of_the_training_run() -> None:
    assert named_as_before(memory_store(), CELLS) == CELLS


def test_a_table_of_an_earlier_release_keeps_its_name_so_that_nothing_is_labelled_again() -> None:
    table = table_of(f"model@{SHA256[:12]}")

    assert named_as_before(table, CELLS).id == "model@0123456789ab"


@pytest.mark.parametrize(
    ("model", "sha256"),
    [
        (f"model@{SHA256[:12]}", SHA256[:12] + "d" * 52),
        ("model@ffffffffffff", "f" * 64),
        (f"night@{SHA256[:12]}", SHA256),
    ],
)
def test_any_other_name_changes_nothing(model: str, sha256: str) -> None:
    assert named_as_before(table_of(model, sha256), CELLS) == CELLS
