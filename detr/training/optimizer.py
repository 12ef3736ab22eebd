"""The optimiser of the paper: trained parameters, learning rates, and its state as named tensors.

AdamW in two groups: parameters whose name contains "backbone" have a lower learning rate. Weight decay applies to all
parameters, including biases, norms and embeddings, as in the original.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detr.checkpoints.layouts import CheckpointError, summary, wrong_tensors
from detr.model import Detr

FrozenStages = Literal["none", "stem_and_first", "all"]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
STATE = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of each parameter, by torch's names."""


def freeze_backbone(model: Detr, *, stages: FrozenStages) -> None:
    """Freeze a part of the residual network, and unfreeze the others.

    For pretrained weights use "stem_and_first" (the stem's convolution and `layer1`), as in the paper, or "all", as in
    the original if the backbone's learning rate is 0. From scratch use "none".

    Raises:
        ValueError: the norms are trainable: their statistics would still change, although the weights are frozen.
    """
    if stages != "none" and model.config.backbone.norm == "batch":
        raise ValueError(
            f"backbone {model.config.backbone.name}: its batch-norms are trained, so no stage can be frozen "
            f"({stages!r}). Freeze nothing, or build it with frozen norms."
        )
    frozen = {"none": (), "stem_and_first": ("conv1.", "bn1.", "layer1."), "all": ("",)}[stages]
    for name, parameter in model.get_submodule("backbone.0.body").named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))


def parameter_groups(model: nn.Module, *, lr: float, lr_backbone: float) -> list[dict[str, Any]]:
    """Return the two groups, "other" and "backbone", of the parameters that require a gradient.

    Each has its full rate as `base_lr`, which a schedule multiplies. A group may be empty. A rate below 0 counts as 0.

    Args:
        model: a Detr, or a module that contains one.
        lr: learning rate of everything whose name does not contain "backbone".
        lr_backbone: learning rate of the others.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = {"other": max(0.0, lr), "backbone": max(0.0, lr_backbone)}
    return [
        {
            "name": group,
            "params": [parameter for name, parameter in trained if ("backbone" in name) == (group == "backbone")],
            "lr": rate,
            "base_lr": rate,
        }
        for group, rate in rates.items()
    ]


def build_optimizer(
    model: nn.Module, *, lr: float, lr_backbone: float, weight_decay: float = 1e-4, fused: bool = True
) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`.

    Call it after freezing, with the model on its device. `fused` computes a step in one kernel, on CUDA and CPU.
    """
    groups = parameter_groups(model, lr=lr, lr_backbone=lr_backbone)
    return torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=fused)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the state as contiguous copies on the CPU, named "exp_avg.class_embed.weight" and so on.

    Every trained parameter has all of `STATE`; zeros before the first step, as AdamW starts.

    Args:
        optimizer: AdamW.
        model: the trained model; the source of the parameters' names.
    """
    tensors = {}
    for name, parameter in _trained(optimizer, model).items():
        state = optimizer.state.get(parameter) or _fresh(parameter)
        for kind in STATE:
            tensors[f"{kind}.{name}"] = state[kind].detach().to("cpu", copy=True).contiguous()
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], *, source: str
) -> None:
    """Load the state that `optimizer_tensors` returned; learning rates do not change.

    The next step is then bit-identical to that of the uninterrupted run.

    Args:
        optimizer: AdamW over the same parameters, in any order and on any device; changed in place.
        model: the source of the parameters' names.
        tensors: exactly the tensors of the state.
        source: name of the file in error messages.

    Raises:
        CheckpointError: a tensor is missing, unknown, of a wrong shape, or not floating-point.
    """
    trained = _trained(optimizer, model)
    shapes = {
        f"{kind}.{name}": () if kind == "step" else tuple(parameter.shape)
        for name, parameter in trained.items()
        for kind in STATE
    }
    wrong = wrong_tensors(tensors, shapes)
    if wrong:
        raise CheckpointError(
            f"checkpoint {source}: {summary(wrong)}. Its optimiser trained other parameters: another network, other "
            "classes, or other frozen stages. Resume with the old configuration."
        )
    names = {parameter: name for name, parameter in trained.items()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for index, name in enumerate(order):
        parameter = trained[name]
        moments = {
            # in the weight's memory layout, which the fused step requires: files do not record channels-last
            kind: torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{kind}.{name}"])
            for kind in STATE[1:]
        }
        state[index] = {"step": tensors[f"step.{name}"].clone(), **moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the optimiser's parameters by the model's names, in the model's order."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter in held}
    if len(trained) != len(held):
        raise ValueError(f"the optimiser has {len(held)} parameters, of which the model has only {len(trained)}")
    return trained


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
