"""Why a worker of a training run stops, in a sentence; what it trains is in `test_train.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest
import ray

from detr.checkpoints.checkpoint import dump, load
from pipelines.errors import RayDetrError
from pipelines.training.batch import TrainBatch
from pipelines.training.begun_step import out_of_memory, refuse_step
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.learner import StepResult
from pipelines.training.recipe import Recipe
from pipelines.training.run_status import RunStatus
from pipelines.training.training_run import open_run
from pipelines.training.worker import _next, _Worker
from pipelines.training.worker_spec import WorkerSpec
from tests.memory_store import memory_store

HERE = TrainingPosition(epoch=2, step_in_epoch=5, step=1_205)


def test_the_worker_that_had_the_images_names_them() -> None:
    result = StepResult({}, 2, math.nan, ((40, 7), "the loss is NaN or infinite"))

    with pytest.raises(RayDetrError) as raised:
        refuse_step(result, HERE, Recipe(), speaks_for_all=False)

    assert str(raised.value) == (
        "training diverged in epoch 2, step 1,205: the loss is NaN or infinite. Images of that micro-batch: 40, 7. "
        "Look at their boxes, or lower the learning rate; the last checkpoint is kept."
    )


def test_the_others_say_nothing() -> None:
    refuse_step(StepResult({}, 2, math.nan, None), HERE, Recipe(), speaks_for_all=False)


def test_gradients_that_overflow_though_every_loss_is_finite_are_reported_by_one() -> None:
    with pytest.raises(
        RayDetrError, match=r"epoch 2, step 1,205: the gradients are NaN or infinite, though every loss"
    ):
        refuse_step(StepResult({"loss": 3.0}, 2, math.inf, None), HERE, Recipe(), speaks_for_all=True)


def test_a_worker_without_memory_says_which_batch_size_to_try() -> None:
    result = StepResult({}, 1, math.nan, None, "a micro-batch of 8 images, padded to 800 x 1333 pixels, does not fit")

    with pytest.raises(RayDetrError) as raised:
        refuse_step(result, HERE, Recipe(effective_batch=48, batch_size=16), speaks_for_all=False)

    assert str(raised.value) == (
        "out of device memory in epoch 2, step 1,205: a micro-batch of 8 images, padded to 800 x 1333 pixels, does not "
        "fit. Give --batch-size 8 (it is 16) and another --name: the effective batch stays 48 images, in more "
        "micro-batches; the last checkpoint is kept."
    )


def test_where_one_image_is_too_much_a_smaller_one_is_asked_for() -> None:
    said = out_of_memory("it does not fit", HERE, Recipe(effective_batch=4, batch_size=1))

    assert "use smaller --scales, --bf16, or a larger GPU" in said


def test_what_cannot_be_read_is_handed_on_and_not_raised() -> None:
    def batches() -> Iterator[list[TrainBatch]]:
        yield []
        raise RayDetrError("the store is gone.")

    iterator = batches()

    assert _next(iterator) == ([], None)
    assert _next(iterator) == ([], "the store is gone.")


def test_the_first_worker_looks_for_the_packages_of_trackers_and_its_notes_reach_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = RunStatus(5)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    store = memory_store()
    run = open_run(store, {}, start_id="a", now=datetime(2026, 11, 30, tzinfo=UTC), versions={})
    run.save(TrainingPosition(0, 0, 0), dump(load("scenes")), {}, trainable_norm=False, keep=1)
    worker = object.__new__(_Worker)
    worker.config = TrainConfig(
        train="s3://shards", storage="s3://runs", name="r50", finetune="scenes", trackers=("mlflow",)
    )
    worker.spec = cast(
        WorkerSpec, SimpleNamespace(start_id="a", status=SimpleNamespace(note=SimpleNamespace(remote=status.note)))
    )
    worker.run_store = store

    with ExitStack() as worker.stack, pytest.raises(RayDetrError, match="tracker mlflow is not installed"):
        worker._open(run)
    worker._tell_user("tracker mlflow failed")

    assert status.take_notes() == ["tracker mlflow failed"]
