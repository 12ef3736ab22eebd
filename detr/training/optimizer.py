"""The optimiser of the paper: what is trained, how fast, and its state as named tensors.

AdamW in two groups: parameters whose name contains "backbone" learn slower than the rest. Weight decay is on
everything, biases, norms and embeddings included, as in the original.
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
"""What AdamW keeps of each parameter, by torch's names."""


def freeze_backbone(model: Detr, *, stages: FrozenStages) -> None:
    """Decide which part of the residual network is not trained; the others are.

    Pretrained weights want "stem_and_first" (the stem's convolution and `layer1`), as in the paper, or "all", as in the
    original when the backbone's learning rate is 0. From scratch it is "none".

    Raises:
        ValueError: the norms are trainable: their statistics would go on changing under frozen weights.
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

    Each keeps its full rate as `base_lr`, which a schedule multiplies. A group may be empty.
    A rate below 0 counts as 0.

    Args:
        model: a Detr, or a module that holds one beside others.
        lr: learning rate of everything whose name does not contain "backbone".
        lr_backbone: that of the rest.
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

    Freeze first, and move the model to its device. `fused` makes one kernel of a step; CUDA and CPU have it.
    """
    groups = parameter_groups(model, lr=lr, lr_backbone=lr_backbone)
    return torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=fused)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the state as copies on the CPU, contiguous, called "exp_avg.class_embed.weight" and so on.

    Every trained parameter has all of `STATE`; zeros where no step was taken yet, which is what AdamW starts from.

    Args:
        optimizer: AdamW.
        model: whose parameters are trained; gives their names.
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
    """Give an optimiser the state that `optimizer_tensors` returned; learning rates stay as they are.

    The next step is then that of the run that goes on, bit by bit.

    Args:
        optimizer: AdamW over the same parameters, in any order and on any device; changed in place.
        model: gives their names.
        tensors: complete, and nothing else.
        source: what messages call the file.

    Raises:
        CheckpointError: a tensor is missing, unknown, of a wrong shape, or not of floating numbers.
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
            # in the weight's own memory layout: the fused step goes through memory, and files know no channels-last
            kind: torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{kind}.{name}"])
            for kind in STATE[1:]
        }
        state[index] = {"step": tensors[f"step.{name}"].clone(), **moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """The optimiser's parameters by the model's names for them, in the model's order."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter in held}
    if len(trained) != len(held):
        raise ValueError(f"the optimiser has {len(held)} parameters, of which the model has only {len(trained)}")
    return trained


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
