"""Training steps on a GPU: the CPU's losses, no hidden waits of the host, and memory that runs out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detr.device import float32_arithmetic, upload
from detr.model import Detr
from detr.training.ema import MovingAverage
from detr.training.matcher import Target
from detr.training.optimizer import build_optimizer, freeze_backbone, load_optimizer_tensors, optimizer_tensors
from detr.training.step import (
    LossSettings,
    MicroBatch,
    NetworkWithLoss,
    OutOfDeviceMemory,
    accumulate_gradients,
    take_step,
    upload_batch,
)
from tests.gpu.conftest import Memory

pytestmark = pytest.mark.gpu

SETTINGS = LossSettings(auxiliary=True)


def batch(device: torch.device, number: int, *, images: int = 2, side: int = 128, padded: bool = True) -> MicroBatch:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (images, 3, side, side + 32), generator=generator, dtype=torch.uint8)
    extents = torch.tensor([[side, side + 32]] * images)
    if padded:
        extents[-1] = torch.tensor([side - 20, side])
    targets = []
    for image in range(images):
        centres = 0.3 + 0.4 * torch.rand(image + 1, 2, generator=generator)
        sizes = 0.1 + 0.4 * torch.rand(image + 1, 2, generator=generator)
        targets.append(Target(torch.randint(80, (image + 1,), generator=generator), torch.cat((centres, sizes), 1)))
    return upload_batch(pixels, extents, targets, seed=number, device=device)


class Trainer:
    """A network under an optimiser on a device."""

    def __init__(
        self, network: Detr, device: torch.device, *, bf16: bool = False, warm: bool = False, fused: bool = True
    ) -> None:
        torch.manual_seed(1)
        model = copy.deepcopy(network).train()
        freeze_backbone(model, stages="stem_and_first")
        settings = replace(SETTINGS, warm=warm)
        self.module = NetworkWithLoss(model, settings, bf16=bf16).to(device).train()
        self.optimizer = build_optimizer(self.module, lr=1e-4, lr_backbone=1e-5, fused=fused)

    def gradients(self, batches: Sequence[MicroBatch]) -> tuple[float, Tensor]:
        """The loss and all gradients in one vector, on the CPU."""
        computed, problem = accumulate_gradients(self.module, batches, num_boxes=3.0, micro_batches=len(batches))
        assert problem is None
        flat = [p.grad.float().flatten().cpu() for p in self.module.parameters() if p.grad is not None]
        return float(sum(total for total, _ in computed)), torch.cat(flat)

    def step(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Take a step; the norm stays on the device."""
        accumulate_gradients(self.module, batches, num_boxes=3.0, micro_batches=len(batches))
        return take_step(self.optimizer, factor=1.0, clip_norm=0.1)


@pytest.mark.parametrize("warm", [False, True])
def test_losses_and_gradients_in_float32_are_those_of_the_cpu(network: Detr, device: torch.device, warm: bool) -> None:
    with float32_arithmetic(tf32=False):
        loss, gradients = Trainer(network, device, warm=warm).gradients([batch(device, 1, padded=not warm)])
    cpu = torch.device("cpu")
    expected_loss, expected = Trainer(network, cpu, warm=warm).gradients([batch(cpu, 1, padded=not warm)])

    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert float((gradients - expected).norm() / expected.norm()) < 0.01


def test_bf16_is_near_and_its_loss_is_float32(network: Detr, device: torch.device) -> None:
    trainer = Trainer(network, device, bf16=True)
    one = batch(device, 1)
    loss, _ = trainer.module(one, 3.0)
    exact, _ = Trainer(network, device).module(one, 3.0)

    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def test_several_steps_lower_the_loss(network: Detr, device: torch.device) -> None:
    trainer = Trainer(network, device, bf16=True)
    one = batch(device, 1)
    first, _ = trainer.module(one, 3.0)

    for _ in range(8):
        assert math.isfinite(float(trainer.step([one])))

    last, _ = trainer.module(one, 3.0)
    assert float(last.detach()) < float(first.detach())


def test_a_step_waits_for_the_gpu_once(network: Detr, device: torch.device) -> None:
    """CUDA's own report of what makes the host wait; nothing to see in a rehearsal on the CPU."""
    trainer = Trainer(network, device)
    average = MovingAverage(trainer.module.network, 0.9)
    trainer.step([batch(device, 1)])
    if device.type != "cuda":
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            norm = trainer.step([batch(device, 2)])
            average.update(trainer.module.network, was_taken=norm.isfinite())
    finally:
        torch.cuda.set_sync_debug_mode("default")

    waits = [str(one.message) for one in caught if "synchroniz" in str(one.message)]
    assert len(waits) == 1, waits  # the matching costs


def test_an_upload_is_on_the_device_and_equal(device: torch.device) -> None:
    values = torch.arange(1000.0)

    uploaded = upload(values, device)

    assert uploaded.device == device
    assert torch.equal(uploaded.cpu(), values)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(network: Detr, device: torch.device, fused: bool) -> None:
    trainer = Trainer(network, device, fused=fused)
    trainer.step([batch(device, 1)])
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    accumulate_gradients(trainer.module, [batch(device, 2)], num_boxes=3.0, micro_batches=1)
    assert trainer.module.network.class_embed.weight.grad is not None
    trainer.module.network.class_embed.weight.grad[0, 0] = torch.nan

    norm = take_step(trainer.optimizer, factor=1.0, clip_norm=0.1)

    assert not math.isfinite(float(norm))
    assert all(torch.equal(value, before[name]) for name, value in trainer.module.state_dict().items())


def test_a_checkpoint_of_the_gpu_goes_on_there_to_the_bit(network: Detr, device: torch.device) -> None:
    first = Trainer(network, device)
    first.step([batch(device, 1)])
    weights = {name: value.cpu() for name, value in first.module.state_dict().items()}
    tensors = optimizer_tensors(first.optimizer, first.module)
    second = Trainer(network, device)
    second.module.load_state_dict(weights)
    load_optimizer_tensors(second.optimizer, second.module, tensors, source="a file")

    after = optimizer_tensors(second.optimizer, second.module)

    assert all(torch.equal(value, after[name]) for name, value in tensors.items())
    assert all(torch.equal(value.cpu(), weights[name]) for name, value in second.module.state_dict().items())
    second.step([batch(device, 2)])  # states of the right devices and layouts


def test_a_micro_batch_that_does_not_fit_is_reported_and_a_smaller_one_goes_on(
    network: Detr, device: torch.device, memory: Memory
) -> None:
    trainer = Trainer(network, device)
    trainer.step([batch(device, 1)])
    side = 800 if device.type == "cuda" else 64
    large = batch(device, 2, images=8, side=side)

    with memory.too_small_for(trainer.module.network, images=8, gib=0.5):
        computed, problem = accumulate_gradients(trainer.module, [large], num_boxes=3.0, micro_batches=1)
        norm = take_step(trainer.optimizer, factor=1.0, clip_norm=0.1)

    assert computed == []
    assert isinstance(problem, OutOfDeviceMemory)
    assert f"8 images, padded to {side} x {side + 32} pixels" in str(problem)
    assert math.isnan(float(norm))
    assert math.isfinite(float(trainer.step([batch(device, 1)])))
