"""Checkpoints beside training: copies of one moment, one upload at a time, and failures that come up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from pipelines.errors import RayDetrError
from pipelines.store import Denied, Store
from pipelines.training.checkpoint_index import read_manifest
from pipelines.training.checkpoints import TrainingPosition, latest_checkpoint, load_checkpoint
from pipelines.training.learner import Learner, empty_network
from pipelines.training.recipe import Recipe
from pipelines.training.training_run import CheckpointSaver, TrainingRun, open_run
from tests.memory_store import memory_store

TINY = DetrConfig(
    backbone=BackboneConfig(name="tiny", block="basic", stem_width=4, stage_widths=(4, 8), depths=(1, 1)),
    hidden_dim=8,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    queries=3,
    categories=(Category(7, "ball"),),
)
CONFIGURATION = {"train": "s3://data/train", "val": None, "recipe": "none"}


class Gate:
    """A store whose writes wait until the gate is open; after `refuse` they are denied."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.open = threading.Event()
        self.open.set()
        self.refuses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes, **others: Any) -> Any:
        assert self.open.wait(10)
        if self.refuses:
            raise Denied(f"{key}: denied.")
        return self._store.put(key, data, **others)


@pytest.fixture
def gate() -> Gate:
    return Gate(memory_store())


@pytest.fixture
def saver(gate: Gate) -> Iterator[CheckpointSaver]:
    saver = CheckpointSaver(started(gate), keep=2)
    yield saver
    gate.open.set()
    saver.close()


def started(store: Any) -> TrainingRun:
    return open_run(store, CONFIGURATION, start_id="start", now=datetime(2026, 11, 22, tzinfo=UTC), versions={})


def learner(seed: int = 0, **others: Any) -> Learner:
    return Learner(empty_network(TINY, seed=seed), Recipe(**others), device=torch.device("cpu"))


def test_a_checkpoint_is_of_the_moment_at_which_it_was_asked_for(gate: Gate, saver: CheckpointSaver) -> None:
    one = learner(ema_decay=0.9)
    expected = one.network.class_embed.bias.detach().clone()
    gate.open.clear()

    saver.save(TrainingPosition(0, 3, 3), one)
    for model in (one.network, one.kept):
        torch.nn.init.constant_(model.class_embed.bias, 9.0)  # training goes on while the store is slow
    gate.open.set()
    saver.wait()

    saved = latest_checkpoint(gate)
    assert saved is not None
    loaded = load_checkpoint(gate, saved)
    assert loaded.position == TrainingPosition(0, 3, 3)
    assert torch.equal(loaded.model.class_embed.bias, expected)
    assert torch.equal(loaded.training_tensors["module.network.class_embed.bias"], expected)
    assert loaded.trainable_norm is False


def test_what_is_saved_restores_a_learner(gate: Gate, saver: CheckpointSaver) -> None:
    one = learner(seed=1, ema_decay=0.9)
    saver.save(TrainingPosition(0, 3, 3), one)
    saver.wait()
    saved = latest_checkpoint(gate)
    assert saved is not None

    loaded = load_checkpoint(gate, saved)
    other = Learner(loaded.model, one.recipe, device=torch.device("cpu"))
    other.restore(loaded.training_tensors, source=saved.name)

    before, after = one.tensors(), other.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_newest_and_the_best_are_kept(gate: Gate, saver: CheckpointSaver) -> None:
    one = learner()
    for step, figure in ((1, 0.2), (2, 0.5), (3, 0.1), (4, 0.3)):
        saver.save(TrainingPosition(step, 0, step), one)
        saver.rate({"AP": figure})
    finished = saver.finish()

    assert finished == f"{2:09d}-start-1"
    assert b"0.5" in gate.get("model/metrics.json").data
    run = started(gate)
    assert [saved.step for saved in run.checkpoints()] == [2, 3, 4]
    assert [saved.metrics for saved in run.checkpoints()] == [{"AP": 0.5}, {"AP": 0.1}, {"AP": 0.3}]


@pytest.mark.parametrize("call", ["check", "wait", "save", "rate", "finish"])
def test_a_store_that_refuses_comes_up_at_the_next_call(gate: Gate, saver: CheckpointSaver, call: str) -> None:
    one = learner()
    gate.refuses = True
    saver.save(TrainingPosition(0, 3, 3), one)
    assert saver._pending is not None
    saver._pending.exception(timeout=10)  # it has ended, and nobody has looked
    calls = {
        "check": saver.check,
        "wait": saver.wait,
        "save": lambda: saver.save(TrainingPosition(0, 4, 4), one),
        "rate": lambda: saver.rate({"AP": 0.5}),
        "finish": saver.finish,
    }

    with pytest.raises(RayDetrError, match=r"a checkpoint cannot be written: .*denied.* run the same command again"):
        calls[call]()


def test_a_later_start_ends_this_one(gate: Gate, saver: CheckpointSaver) -> None:
    started(gate)

    saver.save(TrainingPosition(0, 3, 3), learner())

    with pytest.raises(RayDetrError, match="another process has taken over"):
        saver.wait()


def test_an_upload_under_way_is_not_waited_for_by_a_look(gate: Gate, saver: CheckpointSaver) -> None:
    gate.open.clear()
    saver.save(TrainingPosition(0, 3, 3), learner())

    saver.check()

    assert saver._pending is not None
    assert not saver._pending.done()


def test_nothing_is_written_past_a_checkpoint_that_could_not_be(gate: Gate, saver: CheckpointSaver) -> None:
    saver.save(TrainingPosition(1, 0, 10), learner())
    saver.wait()
    gate.refuses = True
    saver.save(TrainingPosition(2, 0, 20), learner(1))
    with pytest.raises(RayDetrError, match="a checkpoint cannot be written"):
        saver.rate({"AP": 0.9})  # of step 20's model
    gate.refuses = False

    with pytest.raises(RayDetrError, match="a checkpoint cannot be written"):
        saver.finish()

    manifest = read_manifest(gate)  # type: ignore[arg-type]
    assert manifest is not None
    assert [(saved.step, saved.metrics) for saved in manifest.checkpoints] == [(10, None)]
    assert not manifest.finished
