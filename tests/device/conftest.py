"""The simulated CUDA device as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.device.simulated_cuda import SimulatedCuda, running

torch.set_num_threads(1)


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    """A simulated CUDA device; see `tests.device.simulated_cuda`.

    `cuda.device`, `cuda.move(module)`, `cuda.upload(tensor)`, `cuda.values(tensor)`, `cuda.waits` (a Counter of host
    waits by kind), `cuda.lines` (the same by line of the product), `cuda.reset()`.
    """
    with running(SimulatedCuda()) as device:
        yield device
