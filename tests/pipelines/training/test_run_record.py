"""The record of a training run: the same command resumes it, another configuration is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.errors import RayDetrError
from pipelines.store import Store
from pipelines.training.recipe import RECIPES
from pipelines.training.run_record import RunRecord, extended_epochs, read_record, start_record
from tests.memory_store import memory_store

NOW = datetime(2026, 11, 22, 18, 15, 3, tzinfo=UTC)
CONFIGURATION = {"lr": 1e-4, "scales": (480, 512), "augment": {"flip": 0.5, "crop": {"share": 0.5}}, "ema": None}


def start(store: Store, configuration: dict[str, object] | None = None, *, day: int = 22) -> RunRecord:
    return start_record(
        store, configuration or CONFIGURATION, versions={"torch": f"2.14.{day}"}, now=NOW.replace(day=day)
    )


def test_the_first_start_writes_what_it_was_given(store: Store) -> None:
    record = start(store)

    assert read_record(store) == record
    assert record.created == NOW
    assert json.loads(store.get("run.json").data) == {
        "record_version": 1,
        "created": "2026-11-22T18:15:03+00:00",
        "configuration": {
            "lr": 1e-4,
            "scales": [480, 512],
            "augment": {"flip": 0.5, "crop": {"share": 0.5}},
            "ema": None,
        },
        "versions": {"torch": "2.14.22"},
    }


def test_a_later_start_is_given_the_first_ones_record() -> None:
    store = memory_store()
    first = start(store)

    assert start(store, day=23) == first
    assert read_record(memory_store()) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"lr": 2e-4},
            "run r50 exists with another configuration (lr 0.0001, now 0.0002). "
            "Use the old value to resume it, or another --name.",
        ),
        (
            {"augment": {"flip": 0.5, "crop": {"share": 0.0}}, "ema": 0.9997, "epochs": 500},
            "run r50 exists with another configuration (augment.crop.share 0.5, now 0.0; ema none, now 0.9997; "
            "epochs none, now 500). Use the old values to resume it, or another --name.",
        ),
    ],
)
def test_another_configuration_is_refused_with_every_difference(changes: dict[str, object], sentence: str) -> None:
    store = memory_store("memory://lake/runs/r50")
    start(store)
    before = store.get("run.json").data

    with pytest.raises(RayDetrError) as caught:
        start(store, {**CONFIGURATION, **changes})

    assert str(caught.value) == sentence
    assert store.get("run.json").data == before


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"record_version": 1, "configuration": 3}'])
def test_a_damaged_record_is_said_to_be_damaged(data: bytes) -> None:
    store = memory_store("memory://lake/runs/r50")
    store.put("run.json", data)

    with pytest.raises(RayDetrError, match=r"memory://lake/runs/r50/run.json is damaged"):
        read_record(store)


def test_a_record_of_another_release_is_not_guessed_at() -> None:
    store = memory_store()
    store.put("run.json", b'{"record_version": 2}')

    with pytest.raises(RayDetrError, match="version 2, and this release reads version 1"):
        start(store)


def begun(epochs: int, **changes: Any) -> RunRecord:
    recipe = replace(RECIPES["finetune"], epochs=epochs, **changes)
    return RunRecord(recipe.as_json(), {}, datetime(2026, 11, 28, tzinfo=UTC))


@pytest.mark.parametrize(("epochs", "expected"), [(80, {"epochs": 60}), (60, {}), (40, {})])
def test_more_epochs_go_on_with_the_record_of_fewer(epochs: int, expected: dict[str, object]) -> None:
    assert extended_epochs(begun(60), replace(RECIPES["finetune"], epochs=epochs), run="cells") == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"schedule": "cosine"},
            "with --schedule cosine the learning rates of all epochs depend on how many there are",
        ),
        ({"scale_phases": ((0.5, (96,)), (1.0, (128,)))}, "its picture sizes (--scales) change at shares of the run"),
    ],
)
def test_epochs_that_would_have_been_others_are_not_added(changes: dict[str, Any], reason: str) -> None:
    recipe = replace(RECIPES["finetune"], epochs=80, **changes)

    with pytest.raises(RayDetrError) as stopped:
        extended_epochs(begun(60, **changes), recipe, run="cells")

    assert str(stopped.value) == (
        f"run cells was begun with --epochs 60 and cannot be extended to 80: {reason}. Train again under another "
        "--name, or continue from its model with --finetune."
    )
