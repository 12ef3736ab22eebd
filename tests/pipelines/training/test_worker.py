"""Why a worker of a training run stops, in a sentence; what it trains is in `test_train.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from pipelines.stopped import RunStopped
from pipelines.training.batch import TrainBatch
from pipelines.training.checkpoints import Position
from pipelines.training.learner import StepResult
from pipelines.training.worker import _next, _refuse_divergence

HERE = Position(epoch=2, step_in_epoch=5, step=1_205)


def test_the_worker_that_had_the_images_names_them() -> None:
    result = StepResult({}, 2, math.nan, ((40, 7), "the loss is NaN or infinite"))

    with pytest.raises(RunStopped) as raised:
        _refuse_divergence(result, HERE, speaks_for_all=False)

    assert str(raised.value) == (
        "training diverged in epoch 2, step 1,205: the loss is NaN or infinite. Images of that micro-batch: 40, 7. "
        "Look at their boxes, or lower the learning rate; the last checkpoint is kept."
    )


def test_the_others_say_nothing() -> None:
    _refuse_divergence(StepResult({}, 2, math.nan, None), HERE, speaks_for_all=False)


def test_gradients_that_overflow_though_every_loss_is_finite_are_told_by_one() -> None:
    with pytest.raises(RunStopped, match=r"epoch 2, step 1,205: the gradients are NaN or infinite, though every loss"):
        _refuse_divergence(StepResult({"loss": 3.0}, 2, math.inf, None), HERE, speaks_for_all=True)


def test_what_cannot_be_read_is_handed_on_and_not_raised() -> None:
    def batches() -> Iterator[list[TrainBatch]]:
        yield []
        raise RunStopped("the store is gone.")

    iterator = batches()

    assert _next(iterator) == ([], None)
    assert _next(iterator) == ([], "the store is gone.")
