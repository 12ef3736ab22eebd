"""Fold frozen norms into the convolutions before them, for inference."""

import copy

import torch
from torch import Tensor, nn

from detr.backbone import BasicBlock, Bottleneck, FrozenBatchNorm, ResidualNetwork
from detr.model import Detr


def folded(model: Detr) -> Detr:
    """Return a copy in evaluation mode whose backbone has no norms; results are equal up to rounding.

    The copy cannot be trained or saved: its convolutions have biases, which no checkpoint format has.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    for module in copied.modules():
        if isinstance(module, (ResidualNetwork, BasicBlock, Bottleneck)):
            for number in (1, 2, 3):
                if hasattr(module, f"conv{number}"):
                    _fold(module, f"conv{number}", f"bn{number}")
            shortcut = getattr(module, "downsample", None)
            if shortcut is not None:
                _fold(shortcut, "0", "1")
    return copied


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    scale, shift = _affine(norm)
    # in double precision: one rounding instead of two
    conv.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(conv.weight.dtype), False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), False)
    setattr(parent, norm_name, nn.Identity())


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    if isinstance(norm, FrozenBatchNorm):
        return norm.double().scale_and_shift()
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale
