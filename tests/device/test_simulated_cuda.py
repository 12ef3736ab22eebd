"""The simulated device reports what CUDA would refuse, and everything that makes the host wait."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.device.simulated_cuda import MixedDevices, NotSimulated, SimulatedCuda, moved_by_ddp

Use = Callable[[Tensor], object]
MEMORY = torch.arange(6.0).view(2, 3)  # in CPU memory


@pytest.fixture
def x(cuda: SimulatedCuda) -> Tensor:
    """The values of MEMORY, on the device."""
    return cuda.upload(MEMORY)


def test_a_tensor_says_that_it_is_on_the_device(cuda: SimulatedCuda, x: Tensor) -> None:
    assert x.device == torch.device("cuda:0")
    assert x.is_cuda
    assert not x.is_cpu
    assert torch.zeros_like(x).device == (x + 1).device == x[0].device == x.new_ones(2).device == x.device
    assert torch.arange(3, device=x.device).device == torch.zeros(2, device="cuda").device == x.device
    assert torch.zeros(2).device.type == "cpu"


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x + MEMORY,
        lambda x: MEMORY * x,
        lambda x: torch.cat([x, MEMORY]),
        lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
        lambda x: torch.where(MEMORY > 2, x, x),
        lambda x: x.add_(MEMORY),
        lambda x: MEMORY.clone().add_(x),
        lambda x: MEMORY[torch.zeros_like(x[0], dtype=torch.int64)],
        lambda x: x.index_put_((torch.zeros_like(x[0, :2], dtype=torch.int64),), MEMORY[:, :2]),
        lambda x: x.gather(1, torch.zeros((2, 1), dtype=torch.int64)),
        lambda x: nn.functional.cross_entropy(x, torch.tensor([0, 1])),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: (x > MEMORY).any(),
    ],
)
def test_a_mix_of_devices_is_refused(x: Tensor, use: Use) -> None:
    with pytest.raises(MixedDevices):
        use(x)


def test_the_message_says_operation_line_and_shapes(x: Tensor) -> None:
    with pytest.raises(MixedDevices, match=r"aten::add.* at tests/device/test_simulated_cuda\.py:\d+: .*\(2, 3\)"):
        x + MEMORY


def test_a_number_in_memory_may_be_mixed_in(cuda: SimulatedCuda, x: Tensor) -> None:
    assert torch.equal(cuda.values(x * torch.tensor(2.0) + 1), MEMORY * 2 + 1)
    assert not cuda.waits


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: bool(x.sum() > 1), "bool"),
        (lambda x: 1 if (x > 1).any() else 0, "bool"),
        (lambda x: float(x[0, 0]), "float"),
        (lambda x: int(x[0, 0]), "int"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "download"),
        (lambda x: x.to("cpu"), "download"),
        (lambda x: x.to(device="cpu", dtype=torch.float64), "download"),
        (lambda x: torch.empty(2, 3).copy_(x), "download"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: (x > 2).nonzero(as_tuple=True), "nonzero"),
        (lambda x: torch.where(x > 2), "nonzero"),
        (lambda x: x[x > 2], "mask"),
        (lambda x: x.index_put_((x > 2,), x.new_ones(3)), "mask"),
        (lambda x: x[torch.tensor([0, 1])], "index"),
        (lambda x: x[[0, 1]], "index"),
        (lambda x: x.masked_select(x > 2), "masked_select"),
        (lambda x: x.unique(), "unique"),
        (lambda x: torch.unique_consecutive(x), "unique"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: torch.tensor([1.0], device=x.device), "upload"),
        (lambda x: torch.as_tensor(np.ones(2), device="cuda"), "upload"),
        (lambda x: x.new_tensor([1.0]), "upload"),
        (lambda x: MEMORY.to(x.device), "upload"),
        (lambda x: MEMORY.to("cuda", non_blocking=True), "upload"),  # from pageable memory
        (lambda x: MEMORY.pin_memory().to("cuda"), "upload"),  # without non_blocking
        (lambda x: x.copy_(MEMORY), "upload"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_a_wait_of_the_host_is_counted_once_by_kind_and_line(
    cuda: SimulatedCuda, x: Tensor, use: Use, kind: str
) -> None:
    use(x)

    assert dict(cuda.waits) == {kind: 1}
    [(of_line, line)] = cuda.lines
    assert of_line == kind
    assert line.startswith("tests/device/test_simulated_cuda.py:")


@pytest.mark.parametrize(
    "use",
    [
        lambda x: MEMORY.pin_memory().to("cuda", non_blocking=True),
        lambda x: torch.zeros((2, 3), pin_memory=True).to("cuda", non_blocking=True),
        lambda x: x.copy_(MEMORY.pin_memory(), non_blocking=True),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.masked_fill_(x > 2, 0.0),
        lambda x: x.__setitem__(x > 2, 0.0),
        lambda x: x[0, 1:].mul_(2).amax(),
        lambda x: x.to("cuda", torch.bfloat16),
        lambda x: torch.full((2,), 3, device=x.device),
    ],
)
def test_what_does_not_wait_is_not_counted(cuda: SimulatedCuda, x: Tensor, use: Use) -> None:
    use(x)

    assert not cuda.waits


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_without_gradients_the_rules_are_the_same(cuda: SimulatedCuda, x: Tensor, context: Callable[[], Any]) -> None:
    linear = cuda.move(nn.Linear(3, 2))

    with context():
        assert linear(x).softmax(-1).device == MEMORY.to("cuda").device == cuda.device
        with pytest.raises(MixedDevices):
            linear(MEMORY)

    assert dict(cuda.waits) == {"upload": 1}


def test_an_image_of_the_device_is_not_a_numpy_array(x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        x.numpy()
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        np.asarray(x)


def test_a_download_that_does_not_block_is_wrong_until_the_host_waits(cuda: SimulatedCuda, x: Tensor) -> None:
    done = torch.cuda.Event()
    copied = x.to("cpu", non_blocking=True)
    done.record()

    assert copied.isnan().all()
    done.synchronize()
    assert torch.equal(copied, MEMORY)
    assert dict(cuda.waits) == {"event": 1}


def test_an_event_is_free_once_the_host_has_waited_for_something_later(cuda: SimulatedCuda, x: Tensor) -> None:
    done = torch.cuda.Event()
    copied = x.to("cpu", non_blocking=True)
    done.record()

    x.sum().item()
    done.synchronize()

    assert torch.equal(copied, MEMORY)
    assert dict(cuda.waits) == {"item": 1}


def test_threads_see_the_device_too(cuda: SimulatedCuda) -> None:
    made: list[Tensor] = []

    thread = threading.Thread(target=lambda: made.append(torch.zeros(2, pin_memory=True).to("cuda", non_blocking=True)))
    thread.start()
    thread.join()

    assert made[0].device == cuda.device
    assert not cuda.waits


def test_ddp_moves_tensors_in_tuples_and_leaves_other_objects(cuda: SimulatedCuda) -> None:
    class Holder:
        tensor = MEMORY

    pixels, (extents, holder) = moved_by_ddp((cuda.upload(MEMORY), (MEMORY, Holder)))

    assert pixels.device == extents.device == cuda.device
    assert holder.tensor.device.type == "cpu"
    assert dict(cuda.waits) == {"upload": 1}


def trained(module: nn.Module, x: Tensor, *, fused: bool) -> torch.optim.Optimizer:
    """Three steps with dropout, clipping and AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=fused)
    for step in range(3):
        torch.manual_seed(step)
        module(x).square().mean().backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(list(module.parameters()), 0.1, norm)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("fused", [True, False])
def test_training_gives_the_values_of_the_cpu(cuda: SimulatedCuda, fused: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, 2)
    )
    pixels = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(network)
    optimizer = trained(expected, pixels, fused=fused)

    network = cuda.move(network)
    assert not cuda.waits
    found = trained(network, cuda.upload(pixels), fused=fused)

    assert not cuda.waits
    for name, value in expected.state_dict().items():
        assert torch.equal(cuda.values(network.state_dict()[name]), value), name
    for one, other in zip(found.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(cuda.values(one[name]), other[name]) for name in other)


def test_a_module_is_copied_converted_and_loaded(cuda: SimulatedCuda) -> None:
    network = nn.Conv2d(3, 4, 3)
    values = {name: value.clone() for name, value in network.state_dict().items()}
    moved = cuda.move(network)

    twin = copy.deepcopy(moved).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        moved.weight.zero_()
    moved.load_state_dict(values)

    assert twin.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(cuda.values(twin.weight), values["weight"])
    assert torch.equal(cuda.values(moved.weight), values["weight"])
    assert isinstance(twin.weight, nn.Parameter)
    assert cuda.values(twin.to(torch.bfloat16).weight).dtype == torch.bfloat16


def test_autocast_of_cuda_is_followed(cuda: SimulatedCuda, x: Tensor) -> None:
    linear = cuda.move(nn.Linear(3, 2))

    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


def test_a_change_of_shape_in_place_is_not_simulated(x: Tensor) -> None:
    with pytest.raises(NotSimulated, match="changes the shape"):
        x.unsqueeze_(0)


def test_nothing_of_it_remains(cuda: SimulatedCuda) -> None:
    """The fixture is still open here: `running` within it must restore what it found."""
    from tests.device.simulated_cuda import running

    before = torch.tensor, torch.autocast, torch.cuda.is_available, vars(Tensor).get("to")
    with running(SimulatedCuda()):
        pass

    assert (torch.tensor, torch.autocast, torch.cuda.is_available, vars(Tensor).get("to")) == before
