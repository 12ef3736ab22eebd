"""A step of training: the network and its loss as one, gradients of the mean, clipped and taken or not."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from detr.training.matcher import NotFinite, Target
from detr.training.optimizer import build_optimizer
from detr.training.step import (
    Diverged,
    LossSettings,
    MicroBatch,
    NetworkWithLoss,
    OutOfDeviceMemory,
    accumulate_gradients,
    seed_of,
    take_step,
    upload_batch,
)

TINY = DetrConfig(
    # widths are multiples of 8: with 4 channels oneDNN's backward pass corrupts memory on processors with AVX2 only
    backbone=BackboneConfig(name="tiny", block="basic", stem_width=8, stage_widths=(8, 16), depths=(1, 1)),
    hidden_dim=8,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=16,
    dropout=0.0,
    queries=4,
    categories=(Category(7, "ball"), Category(40, "cube")),
)
CPU = torch.device("cpu")
ONE = Target(torch.tensor([1]), torch.tensor([[0.5, 0.4, 0.3, 0.2]]))
NONE = Target(torch.empty(0, dtype=torch.int64), torch.empty(0, 4))


def network(settings: LossSettings | None = None, *, dropout: float = 0.0, bf16: bool = False) -> NetworkWithLoss:
    torch.manual_seed(0)
    return NetworkWithLoss(Detr(replace(TINY, dropout=dropout)), settings or LossSettings(), bf16=bf16).train()


def batch(number: int, targets: tuple[Target, ...] = (ONE, NONE), *, padded: bool = True, seed: int = 0) -> MicroBatch:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (len(targets), 3, 32, 48), generator=generator, dtype=torch.uint8)
    extents = torch.tensor([[32, 48]] * len(targets))
    if padded:
        extents[-1] = torch.tensor([24, 40])
    return upload_batch(pixels, extents, targets, seed=seed, device=CPU)


def gradients(module: NetworkWithLoss) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def gradients_of(*batches: MicroBatch, micro_batches: int, dropout: float = 0.0) -> dict[str, Tensor]:
    module = network(dropout=dropout)
    accumulate_gradients(module, batches, num_boxes=1.0, micro_batches=micro_batches)
    return gradients(module)


def test_what_lies_in_the_padding_does_not_matter() -> None:
    module, given_batch = network(), batch(1)
    other = given_batch.pixels.clone()
    other[1, :, 24:] = 255
    other[1, :, :, 40:] = 77

    one, _ = module(given_batch, 1.0)
    same, _ = module(replace(given_batch, pixels=other), 1.0)

    assert torch.equal(one, same)


def test_pixels_are_normalised_by_imagenets_mean_and_deviation() -> None:
    module = network()
    seen = []
    module.network.backbone[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)

    module(upload_batch(pixels, torch.tensor([[32, 32]]), (ONE,), seed=0, device=CPU), 1.0)

    # by hand, such as (0 minus .485) over .229
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-2.1179, 0.2052, 2.6400]), atol=1e-4, rtol=0)


def test_a_batch_without_any_target_reaches_every_parameter() -> None:
    module = network()

    accumulate_gradients(module, [batch(1, (NONE, NONE))], num_boxes=0.0, micro_batches=1)

    assert [
        name for name, parameter in module.named_parameters() if parameter.requires_grad and parameter.grad is None
    ] == []


def test_nothing_to_do_is_a_zero_of_every_parameter() -> None:
    module = network()

    computed, diverged = accumulate_gradients(module, [], num_boxes=1.0, micro_batches=3, workers=2)

    assert (computed, diverged) == ([], None)
    found = gradients(module)
    assert set(found) == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert not any(gradient.count_nonzero() for gradient in found.values())


def test_gradients_are_those_of_the_mean_of_the_losses() -> None:
    parts = [gradients_of(batch(number), micro_batches=1) for number in (1, 2, 3)]

    together = gradients_of(batch(1), batch(2), batch(3), micro_batches=3)

    for name, gradient in together.items():
        mean = sum(part[name] for part in parts) / 3
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6)  # another order of sums


def test_a_worker_counts_its_share_so_that_an_average_over_workers_is_the_mean() -> None:
    # 2 workers, 3 micro-batches: what DDP would make of both
    module, other = network(), network()
    accumulate_gradients(module, [batch(1), batch(3)], num_boxes=1.0, micro_batches=3, workers=2)
    accumulate_gradients(other, [batch(2)], num_boxes=1.0, micro_batches=3, workers=2)
    first, second = gradients(module), gradients(other)

    together = gradients_of(batch(1), batch(2), batch(3), micro_batches=3)

    for name, gradient in together.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, gradient, rtol=1e-4, atol=1e-6)


def test_box_losses_of_micro_batches_are_those_of_one_batch_and_the_class_loss_is_not() -> None:
    small = [batch(1, (ONE, ONE), padded=False), batch(2, (ONE, NONE), padded=False)]
    joined = upload_batch(
        torch.cat([one.pixels for one in small]),
        torch.tensor([[32, 48]] * 4),
        (ONE, ONE, ONE, NONE),
        seed=0,
        device=CPU,
    )

    apart, _ = accumulate_gradients(network(), small, num_boxes=3 / 2, micro_batches=2)
    [(_, at_once)], _ = accumulate_gradients(network(), [joined], num_boxes=3, micro_batches=1)

    for name in ("loss_bbox", "loss_giou", "loss_bbox_0", "loss_giou_0"):
        assert float(sum(parts[name] for _, parts in apart) / 2) == pytest.approx(float(at_once[name]), rel=1e-5)
    # the mean of weighted means is no weighted mean: 3 of 8 queries weigh 1 in one, 1 of 8 in the other
    assert abs(float(sum(parts["loss_ce"] for _, parts in apart) / 2) - float(at_once["loss_ce"])) > 1e-6


def test_dropout_is_a_function_of_the_micro_batch() -> None:
    first = gradients_of(batch(1, seed=5), batch(2, seed=6), micro_batches=2, dropout=0.5)
    second = gradients_of(batch(2, seed=6), batch(1, seed=5), micro_batches=2, dropout=0.5)
    other = gradients_of(batch(1, seed=5), batch(2, seed=7), micro_batches=2, dropout=0.5)

    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(gradient, other[name]) for name, gradient in first.items())


def test_a_nan_is_returned_with_its_place_and_makes_every_gradient_nan() -> None:
    module = network()
    broken = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, torch.nan, 0.2]]))

    computed, diverged = accumulate_gradients(
        module, [batch(1), batch(2, (NONE, broken)), batch(3)], num_boxes=1.0, micro_batches=3
    )

    assert len(computed) == 1
    assert isinstance(diverged, Diverged)
    assert (diverged.batch, diverged.image) == (1, 1)
    assert all(gradient.isnan().all() for gradient in gradients(module).values())


class Saved:
    """What autograd keeps of a forward pass, so that a test sees when it lets go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output of the graph would keep the graph


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_micro_batch_that_does_not_fit_is_returned_and_what_it_left_is_freed(place: str) -> None:
    module = network()
    saved: weakref.WeakSet[Saved] = weakref.WeakSet()
    errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")]
    alive: list[int] = []

    def fail(*_: object) -> None:
        alive.append(len(saved))
        if errors:
            raise errors.pop()

    def keep(tensor: Tensor) -> Saved:
        saved.add(one := Saved(tensor))
        return one

    if place == "forward":
        module.network.class_embed.register_forward_hook(fail)
    else:
        module.network.query_embed.weight.register_hook(fail)
    module.register_forward_pre_hook(lambda *_: alive.append(len(saved)))

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
        computed, problem = accumulate_gradients(module, [batch(1), batch(2)], num_boxes=1.0, micro_batches=2)

    assert computed == []
    assert isinstance(problem, OutOfDeviceMemory)
    assert (problem.batch, problem.left_peers) == (0, False)
    assert str(problem) == "a micro-batch of 2 images, padded to 32 x 48 pixels, does not fit"
    before, when_it_failed, when_taking_part = alive[:3]
    assert before == 0
    assert when_it_failed > 20
    if place == "forward":  # the CPU's engine keeps an interrupted backward pass until the next one begins
        assert when_taking_part == 0
    assert all(gradient.isnan().all() for gradient in gradients(module).values())


def test_the_bare_network_raises_for_a_nan() -> None:
    broken = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, torch.nan, 0.2]]))
    one = batch(1, (broken,))

    with pytest.raises(NotFinite):
        network()(one, 1.0)


def test_without_auxiliary_losses_only_the_last_layer_counts() -> None:
    one = batch(1)

    _, parts = network(LossSettings(auxiliary=False))(one, 1.0)

    assert set(parts) == {"loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "class_error"}


def test_dense_losses_are_added_with_their_factors() -> None:
    one = batch(1, padded=False)

    total, parts = network(LossSettings(warm=True))(one, 1.0)

    layers = ("", "_0")
    expected = sum(
        parts[f"loss_ce{layer}"] + 5 * parts[f"loss_bbox{layer}"] + 2 * parts[f"loss_giou{layer}"] for layer in layers
    )
    expected += parts["dense_ce"] + 5 * parts["dense_bbox"] + 2 * parts["dense_giou"] + 3 * parts["position"]
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("warm", [False, True])
def test_bfloat16_is_near_and_the_loss_is_float32(warm: bool) -> None:
    one, settings = batch(1, padded=False), LossSettings(warm=warm)

    exact, _ = network(settings)(one, 1.0)
    near, _ = network(settings, bf16=True)(one, 1.0)

    assert near.dtype == torch.float32
    assert float(near.detach()) != float(exact.detach())
    assert float(near.detach()) == pytest.approx(
        float(exact.detach()), rel=0.1
    )  # 8 bits of mantissa, through a few layers


@pytest.mark.slow  # importing the compiler
def test_names_of_the_network_do_not_change_by_compiling() -> None:
    torch.manual_seed(0)
    compiled = NetworkWithLoss(Detr(TINY), LossSettings(), compiled=True)

    assert compiled.state_dict().keys() == network().state_dict().keys()
    assert all(name.startswith("network.") for name in compiled.state_dict())


def plane(value: float, *, fused: bool = True) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    """Two weights with this gradient each."""
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    optimizer = build_optimizer(layer, lr=0.5, lr_backbone=0.0, weight_decay=0.0, fused=fused)
    layer.weight.grad = torch.full((1, 2), value)
    return layer, optimizer


def test_a_step_returns_the_norm_before_clipping_and_uses_the_factor() -> None:
    layer, optimizer = plane(3.0)

    norm = take_step(optimizer, factor=0.1, clip_norm=0.5)

    assert float(norm) == pytest.approx(math.sqrt(18))
    # AdamW's first step is the rate, whatever the gradient
    torch.testing.assert_close(layer.weight.detach(), torch.full((1, 2), -0.05), rtol=1e-4, atol=0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert layer.weight.grad is None


@pytest.mark.parametrize(("clip_norm", "expected"), [(0.5, 0.5), (0.0, math.sqrt(18)), (10.0, math.sqrt(18))])
def test_gradients_are_clipped_together(clip_norm: float, expected: float) -> None:
    layer, optimizer = plane(3.0)

    take_step(optimizer, factor=1.0, clip_norm=clip_norm)

    # (1 - beta1) of the gradient
    moment = optimizer.state[layer.weight]["exp_avg"]
    assert float(moment.norm()) == pytest.approx(0.1 * expected, rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_changes_nothing(value: float, fused: bool) -> None:
    layer, optimizer = plane(value, fused=fused)

    norm = take_step(optimizer, factor=1.0, clip_norm=0.1)

    assert not math.isfinite(norm)
    assert layer.weight.count_nonzero() == 0
    assert not any(value.count_nonzero() for state in optimizer.state.values() for value in state.values())
    assert layer.weight.grad is None


def test_a_seed_is_the_same_on_every_machine() -> None:
    # written down from this function: a resumed run on another machine must draw the same
    assert [seed_of(), seed_of(0), seed_of(42, 7, 1)] == SEEDS


# the second is half of the first number that splitmix64 gives for 0, 0xE220A8397B1DCDAF (published)
SEEDS = [0, 8147104208329303767, 5021812935000944622]


@given(numbers=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), index=st.integers(0, 3))
def test_a_seed_depends_on_every_number_and_their_order(numbers: list[int], index: int) -> None:
    other = list(numbers)
    other[index % len(numbers)] ^= 1

    assert 0 <= seed_of(*numbers) < 2**63
    assert seed_of(*numbers) != seed_of(*other)
    assert len({seed_of(3, step, reader) for step in range(50) for reader in range(20)}) == 1000
