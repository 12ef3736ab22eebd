"""Batches that a thread pins: the same ones in the same order, its errors in their place, and closed with the rest."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from pipelines.errors import RayDetrError
from pipelines.training.batch import TrainBatch
from pipelines.training.pinning import pinned_batches
from tests.device.simulated_cuda import SimulatedCuda


def batch(step: int) -> TrainBatch:
    pixels = torch.full((1, 4, 4, 3), step, dtype=torch.uint8).permute(0, 3, 1, 2)
    return TrainBatch(pixels, torch.tensor([[4, 4]]), (), (step,), reader=0, step=step)


def test_every_step_comes_pinned_in_order_and_in_the_same_memory_layout(cuda: SimulatedCuda) -> None:
    found = list(pinned_batches([batch(step)] if step != 1 else [] for step in range(4)))

    assert [[one.step for one in step] for step in found] == [[0], [], [2], [3]]
    for [one] in (found[0], found[2]):
        assert cuda.is_pinned(one.pixels)
        assert one.pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.pixels, batch(one.step).pixels)


def test_what_the_batches_raise_is_raised_in_its_place(cuda: SimulatedCuda) -> None:
    def batches() -> Generator[list[TrainBatch], None, None]:
        yield [batch(0)]
        raise RayDetrError("the store is gone.")

    pinned = pinned_batches(batches())

    assert next(pinned)[0].step == 0
    with pytest.raises(RayDetrError, match=r"the store is gone\."):
        next(pinned)


def test_closing_closes_the_batches_within(cuda: SimulatedCuda) -> None:
    closed: list[bool] = []

    def batches() -> Generator[list[TrainBatch], None, None]:
        try:
            for step in range(1000):
                yield [batch(step)]
        finally:
            closed.append(True)

    pinned = pinned_batches(batches())
    next(pinned)

    pinned.close()

    assert closed == [True]
