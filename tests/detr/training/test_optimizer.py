import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detr.checkpoints.layouts import CheckpointError
from detr.config import VARIANTS, BackboneConfig, DetrConfig
from detr.model import Detr
from detr.training.optimizer import (
    build_optimizer,
    freeze_backbone,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 4, (8, 16), (2, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    dropout=0.0,
    queries=3,
)


def tiny() -> Detr:
    torch.manual_seed(0)
    return Detr(TINY).train()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: range) -> None:
    for step in steps:
        pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(step))
        output = model(pixels.contiguous(memory_format=torch.channels_last), None)
        optimizer.zero_grad()
        (output.logits.square().sum() + output.boxes_cxcywh.square().sum()).backward()
        optimizer.step()


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# what is trained


def test_an_r50_has_41302368_trained_parameters_as_in_the_original() -> None:
    with torch.device("meta"):
        model = Detr(VARIANTS["detr-resnet-50"])

    freeze_backbone(model, stages="stem_and_first")

    groups = parameter_groups(model, lr=1e-4, lr_backbone=1e-5)
    assert sum(parameter.numel() for group in groups for parameter in group["params"]) == 41_302_368
    assert sum(parameter.numel() for parameter in groups[1]["params"]) == 23_232_512


@pytest.mark.parametrize(
    ("stages", "convolutions"),
    [
        ("none", ["conv1", "layer1.0.conv1", "layer1.0.conv2"]),
        ("stem_and_first", []),
    ],
)
def test_the_stem_and_the_first_stage_are_frozen_together(stages: str, convolutions: list[str]) -> None:
    model = tiny()

    freeze_backbone(model, stages=stages)  # type: ignore[arg-type]  # a literal

    names = [name.removeprefix("backbone.0.body.").removesuffix(".weight") for name in trained_names(model)]
    assert [name for name in names if name.startswith(("conv1", "layer1.0.conv"))] == convolutions
    assert "layer2.0.conv1" in names


def test_a_wholly_frozen_backbone_leaves_the_rest_and_can_be_thawed() -> None:
    model = tiny()
    before = trained_names(model)

    freeze_backbone(model, stages="all")
    assert trained_names(model) == [name for name in before if not name.startswith("backbone.0.")]

    freeze_backbone(model, stages="none")
    assert trained_names(model) == before


def test_trainable_norms_cannot_be_under_frozen_stages() -> None:
    model = Detr(replace(TINY, backbone=replace(TINY.backbone, norm="batch")))

    freeze_backbone(model, stages="none")
    with pytest.raises(ValueError, match="backbone tiny: its batch-norms are trained, so no stage can be frozen"):
        freeze_backbone(model, stages="stem_and_first")


# the groups


def test_the_backbone_learns_at_its_own_rate_and_everything_decays() -> None:
    model = tiny()

    optimizer = build_optimizer(model, lr=1e-4, lr_backbone=1e-5, weight_decay=1e-4)

    other, backbone = optimizer.param_groups
    assert (other["lr"], backbone["lr"]) == (other["base_lr"], backbone["base_lr"]) == (1e-4, 1e-5)
    ids = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [[ids[id(parameter)] for parameter in group["params"]] for group in (other, backbone)]
    assert all(name.startswith("backbone.") for name in names[1])
    assert not any("backbone" in name for name in names[0])
    assert sorted(names[0] + names[1]) == sorted(ids.values())  # biases, norms and embeddings, too
    for group in optimizer.param_groups:
        assert (group["weight_decay"], group["betas"], group["eps"]) == (1e-4, (0.9, 0.999), 1e-8)


def test_a_backbone_rate_of_nothing_or_less_is_a_frozen_backbone_and_still_steps() -> None:
    model = tiny()
    freeze_backbone(model, stages="all")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    optimizer = build_optimizer(model, lr=1e-3, lr_backbone=-1.0)
    train(model, optimizer, steps=range(1))

    assert optimizer.param_groups[1]["params"] == []
    assert optimizer.param_groups[1]["lr"] == 0
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("backbone.0"))
    assert not torch.equal(after["class_embed.bias"], before["class_embed.bias"])


# the state as tensors


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels_last"]
)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_a_step_after_a_restore_is_the_same_to_the_last_bit(memory_format: torch.memory_format, fused: bool) -> None:
    model = tiny().to(memory_format=memory_format)
    optimizer = build_optimizer(model, lr=1e-2, lr_backbone=1e-3, fused=fused)
    train(model, optimizer, steps=range(3))
    tensors = optimizer_tensors(optimizer, model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    train(model, optimizer, steps=range(3, 5))
    resumed = Detr(TINY).train().to(memory_format=memory_format)
    resumed.load_state_dict(weights)
    again = build_optimizer(resumed, lr=1e-2, lr_backbone=1e-3, fused=fused)
    load_optimizer_tensors(again, resumed, tensors, source="run/step-3")
    train(resumed, again, steps=range(3, 5))

    expected = model.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_tensors_are_contiguous_copies_by_parameter_name() -> None:
    model = tiny().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, lr=1e-2, lr_backbone=1e-3)
    train(model, optimizer, steps=range(2))

    tensors = optimizer_tensors(optimizer, model)
    kept = tensors["exp_avg.class_embed.weight"].clone()
    train(model, optimizer, steps=range(2, 3))

    assert set(tensors) == {
        f"{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in trained_names(model)
    }
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert torch.equal(tensors["exp_avg.class_embed.weight"], kept)
    assert float(tensors["step.query_embed.weight"]) == 2


def test_state_is_found_by_name_not_by_place() -> None:
    model = tiny()
    optimizer = build_optimizer(model, lr=1e-2, lr_backbone=1e-3)
    train(model, optimizer, steps=range(1))
    tensors = optimizer_tensors(optimizer, model)

    one_group = torch.optim.AdamW(list(model.parameters())[::-1], fused=True)
    load_optimizer_tensors(one_group, model, tensors, source="run/step-1")

    assert all(torch.equal(value, tensors[name]) for name, value in optimizer_tensors(one_group, model).items())


def test_before_the_first_step_the_state_is_what_the_optimizer_starts_from() -> None:
    model, other = tiny(), tiny()
    optimizer, restored = (build_optimizer(network, lr=1e-2, lr_backbone=1e-3) for network in (model, other))

    load_optimizer_tensors(restored, other, optimizer_tensors(optimizer, model), source="run/step-0")
    train(model, optimizer, steps=range(2))
    train(other, restored, steps=range(2))

    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_restoring_leaves_the_rates_of_the_new_run() -> None:
    model = tiny()
    tensors = optimizer_tensors(build_optimizer(model, lr=1e-2, lr_backbone=1e-3), model)
    optimizer = build_optimizer(model, lr=5e-5, lr_backbone=5e-6)

    load_optimizer_tensors(optimizer, model, tensors, source="run")

    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 5e-6]


def _without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    model = tiny()
    optimizer = build_optimizer(model, lr=1e-2, lr_backbone=1e-3)
    train(model, optimizer, steps=range(1))
    good = optimizer_tensors(optimizer, model)
    before = copy.deepcopy(optimizer.state_dict())

    for tensors, message in [
        (_without(good, "exp_avg.class_embed.bias"), r"'exp_avg.class_embed.bias' \(92,\) is missing"),
        ({**good, "exp_avg.head.bias": torch.zeros(2)}, "'exp_avg.head.bias' is unknown"),
        ({**good, "step.class_embed.bias": torch.zeros(2)}, r"'step.class_embed.bias' is \(2,\), expected \(\)"),
        ({**good, "exp_avg_sq.class_embed.bias": torch.zeros(4)}, r"is \(4,\), expected \(92,\).*other classes"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_optimizer_tensors(optimizer, model, tensors, source="run/step-1")

    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[index]["exp_avg"], state["exp_avg"]) for index, state in before["state"].items())


def test_an_optimizer_of_another_model_has_no_names() -> None:
    optimizer = build_optimizer(tiny(), lr=1e-2, lr_backbone=1e-3)

    with pytest.raises(ValueError, match="of which the model has only 0"):
        optimizer_tensors(optimizer, tiny())
