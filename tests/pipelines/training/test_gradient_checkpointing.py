"""Gradient checkpointing in a compiled network: one graph, and the same losses and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pipelines.training.learner import Learner, empty_network
from tests.pipelines.training.test_learner import CPU, RECIPE, TINY, Case, take


@pytest.mark.slow  # the network is traced twice
@pytest.mark.long
def test_a_compiled_network_takes_the_same_steps_with_checkpoints_and_remains_one_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # without kernels of C++, which take a quarter of an hour to build
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    case = Case(RECIPE, [(0, 1)] * 2)
    steps = []

    for enabled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        learner = Learner(
            empty_network(TINY, seed=5), RECIPE, device=CPU, compiled=True, gradient_checkpointing=enabled
        )
        steps.append(take(learner, case, range(2)))
        assert learner.network.transformer.encoder.checkpoints_gradients is enabled
        assert dict(torch._dynamo.utils.counters["graph_break"]) == {}

    for usual, ours in zip(*steps, strict=True):
        assert ours.parts == usual.parts
        assert ours.gradient_norm == usual.gradient_norm
