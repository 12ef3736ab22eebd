"""What the tests share that need a GPU: the device, a network with random weights, and pictures.

`make test-gpu` runs them. Without a GPU each is skipped, unless GPU_TESTS_DEVICE=cpu rehearses them on the CPU, with
smaller sizes. The files but `test_ray.py` need neither Ray nor a store:
`python -m pytest --confcutdir=tests/gpu -m gpu tests/gpu/test_network.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from detr.config import VARIANTS
from detr.model import Detr

REHEARSAL = "GPU_TESTS_DEVICE"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; the CPU in a rehearsal."""
    if os.environ.get(REHEARSAL):
        return torch.device(os.environ[REHEARSAL])
    if not torch.cuda.is_available():
        pytest.skip(f"needs a GPU: torch.cuda.is_available() is False. {REHEARSAL}=cpu rehearses the test on the CPU")
    return torch.device("cuda:0")


@pytest.fixture(scope="session")
def size(device: torch.device) -> tuple[int, int]:
    """Height and width of the pictures that go through the network."""
    return (800, 1056) if device.type == "cuda" else (96, 128)


@pytest.fixture(scope="session")
def network() -> Detr:
    """A DETR with ResNet-50 and random weights on the CPU, whose activations neither vanish nor explode."""
    torch.manual_seed(0)
    model = Detr(replace(VARIANTS["detr-resnet-50"], dropout=0.0)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.25)
        elif name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.05)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.4 + 0.8)
    return model


@pytest.fixture(scope="session")
def pixels(size: tuple[int, int]) -> Tensor:
    """Two normalised pictures of noise, `(2, 3, H, W)`, on the CPU."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Memory:
    """Makes the device's memory too small, really on a GPU, by a stub on a CPU."""

    device: torch.device

    @contextmanager
    def too_small_for(self, module: torch.nn.Module, *, images: int, gib: float) -> Iterator[None]:
        """Let the device have `gib` GiB more than it uses now; on a CPU refuse batches of `images` or more."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(self.device).total_memory
            used = torch.cuda.memory_reserved(self.device)
            torch.cuda.set_per_process_memory_fraction((used + gib * 2**30) / total, self.device)
            try:
                yield
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            return

        def refuse(_: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
            if len(given[0]) >= images:
                raise torch.OutOfMemoryError("CUDA out of memory (a rehearsal)")

        with module.register_forward_pre_hook(refuse):
            yield


@pytest.fixture
def memory(device: torch.device) -> Memory:
    """See `Memory`."""
    return Memory(device)


@pytest.fixture
def pictures(device: torch.device) -> Callable[[int], list[Tensor]]:
    """Draw so many uint8 RGB pictures of several shapes, with areas of one colour as photographs have."""
    shapes = [(480, 640), (427, 640), (640, 480), (500, 375)] if device.type == "cuda" else [(48, 64), (64, 48)]

    def draw(count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        drawn = []
        for index in range(count):
            coarse = torch.randint(256, (1, 3, 6, 8), generator=generator).float()
            height, width = shapes[index % len(shapes)]
            drawn.append(torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")[0].to(torch.uint8))
        return drawn

    return draw
