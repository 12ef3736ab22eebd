"""Compute convolutions and linear layers by oneDNN, for inference on a CPU.

This avoids three weaknesses of plain modules on a CPU. With one thread, PyTorch computes many convolutions of small
batches by `_slow_conv2d_forward`, without oneDNN (34 of 54 in ResNet-50). Each ReLU and each residual add reads and
writes a whole feature map again; here they are fused with the convolution. Linear layers in float32 call MKL, which
uses AVX2 at most on processors of AMD: oneDNN is 2.3 times as fast there (docs/measurements/detector.md). The operators
used here are those that `torch.compile` generates for CPUs. They are private: `tests/detr/test_onednn.py` says what to
do when they change.
"""

import logging
import platform
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr.backbone import BasicBlock, Bottleneck, Guard, ResidualBlock, ResidualNetwork
from detr.model import Detr

OPERATORS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_linear_pointwise",
    "_is_mkldnn_bf16_supported",
)
"""Operators of `torch.ops.mkldnn` that this module calls."""

MACHINES = ("x86_64", "AMD64")
"""Tested processors, as `platform.machine` names them."""


def use_onednn(model: Detr) -> bool:
    """Replace convolutions, linear layers and attention of a folded network in place; return whether that was possible.

    The network then gives equal results up to rounding (1e-5). It cannot be trained or saved. The model is not
    changed, and the reason is logged once, if PyTorch lacks oneDNN or these operators, if oneDNN is disabled, on
    processors other than x86, for a model that is not on the CPU in float32 or bfloat16, and for bfloat16 on processors
    without oneDNN's bfloat16 (without AVX-512 or AVX-NE-CONVERT).

    Args:
        model: of `detr.folding.folded`, on the device that it will compute on.
    """
    if not _is_possible(model.input_proj.weight):
        return False
    network = model.backbone[0].get_submodule("body")
    assert isinstance(network, ResidualNetwork)
    network.add_module("conv1", FusedConvolution(network.conv1, relu=True))
    network.add_module("relu", nn.Identity())
    for name in network.stage_names:
        stage = network.get_submodule(name)
        for number, block in stage.named_children():
            assert isinstance(block, (Bottleneck, BasicBlock))
            stage.add_module(number, FusedBlock(block))
    model.add_module("input_proj", FusedConvolution(model.input_proj))
    for layer in (*model.transformer.encoder.layers, *model.transformer.decoder.layers):
        for name, child in layer.named_children():
            if isinstance(child, nn.MultiheadAttention):
                layer.add_module(name, OnednnAttention(child))
    _replace_layers(model)
    return True


def use_onednn_layers(network: nn.Module) -> bool:
    """Make convolutions and linear layers of any network use oneDNN, in place; return whether that was possible.

    For networks in float32 whose other modules are not known. Nothing is fused. Otherwise as `use_onednn`.
    """
    if not _is_possible(next(network.parameters())):
        return False
    _replace_layers(network)
    return True


def _replace_layers(network: nn.Module) -> None:
    """Change the class of plain linear layers and convolutions, which keep their weights, names and attributes."""
    for module in network.modules():
        if type(module) is nn.Linear:  # not a subclass: it may compute something else
            module.__class__ = OnednnLinear
        elif type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = OnednnConvolution


class FusedConvolution(nn.Module):
    """A convolution with its bias, optionally followed by a ReLU, or by a residual add and a ReLU.

    The weights stay in PyTorch's own layout, and oneDNN reorders them at each call. Preparing them in oneDNN's layout
    saves at most 1.5 %, and that layout depends on the shape of the input (docs/measurements.md).
    """

    def __init__(self, convolution: nn.Conv2d, *, relu: bool = False) -> None:
        """Take over the weights of a convolution that has a bias and one group."""
        super().__init__()
        assert convolution.bias is not None
        assert convolution.groups == 1
        assert isinstance(convolution.padding, tuple)
        self.weight, self.bias = convolution.weight, convolution.bias
        self.stride, self.kernel = convolution.stride[0], convolution.kernel_size[0]
        self._geometry = (list(convolution.padding), list(convolution.stride), list(convolution.dilation), 1)
        self._activation = "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, C, H, W)` in channels-last memory."""
        return torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001 - see the module's docstring
            x, self.weight, self.bias, *self._geometry, self._activation, [], ""
        )

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return relu(residual + convolution of `x`). The result is written into `residual`."""
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, self.weight, self.bias, *self._geometry, "add", 1.0, "relu", [], ""
        )


class FusedBlock(ResidualBlock):
    """A `Bottleneck` or `BasicBlock` of fused convolutions."""

    def __init__(self, block: Bottleneck | BasicBlock) -> None:
        super().__init__()
        self.stride = block.stride
        *convolutions, last = _convolutions(block)
        self.convolutions = nn.ModuleList(FusedConvolution(convolution, relu=True) for convolution in convolutions)
        self.last = FusedConvolution(last)
        self.shortcut = None
        if block.downsample is not None:
            self.shortcut = FusedConvolution(next(_convolutions(block.downsample)))

    def forward(self, x: Tensor, guard: Guard | None, input_stride: int) -> Tensor:
        """See `Bottleneck.forward`. Where the shortcut is the input itself, the result is written into `x`."""
        residual, stride = x, input_stride
        for convolution in self.convolutions:
            assert isinstance(convolution, FusedConvolution)
            residual = convolution(_guarded(residual, convolution, guard, stride))
            stride *= convolution.stride
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.last.add_to(shortcut, _guarded(residual, self.last, guard, stride))


class OnednnLinear(nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., K)` to `(..., N)`."""
        return _linear(x, self.weight, self.bias)


class OnednnConvolution(nn.Conv2d):
    """A convolution, padded with zeros, in the memory format of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, C, H, W)`."""
        geometry = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        return torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001
            x, self.weight, self.bias, *geometry, "none", [], ""
        )


class OnednnAttention(nn.Module):
    """Multi-head attention with oneDNN's projections, without dropout and without returned weights."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Take over the weights of an attention that has biases, and batches first."""
        super().__init__()
        assert attention.batch_first
        self.weights, self.biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.out_weight, self.out_bias = attention.out_proj.weight, attention.out_proj.bias
        self.heads = attention.num_heads

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None = None, need_weights: bool
    ) -> tuple[Tensor, None]:
        """Return the attended values `(B, Q, D)` of `query` `(B, Q, D)`, `key` and `value` `(B, L, D)`.

        `key_padding_mask` is `(B, L)` bool, True on padding, or None. `need_weights` must be False.
        """
        assert not need_weights
        q, k, v = (
            _linear(x, weight, bias).reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), self.weights, self.biases, strict=True)
        )
        visible = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return _linear(attended.transpose(1, 2).flatten(2), self.out_weight, self.out_bias), None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001


def _guarded(x: Tensor, convolution: FusedConvolution, guard: Guard | None, stride: int) -> Tensor:
    """Zero the cells outside an image's own extent before a convolution that would read them."""
    return x if guard is None or convolution.kernel == 1 else guard(x, stride)


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield the convolutions that are direct children of a module, in the order of computation."""
    return (child for child in module.children() if isinstance(child, nn.Conv2d))


def _is_possible(weight: Tensor) -> bool:
    """Return whether a model with such weights can use oneDNN's operators; log once why not."""
    reason = _reason_against(weight)
    if reason is not None:
        _log_once(reason)
    return reason is None


def _reason_against(weight: Tensor) -> str | None:
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"its weights are {weight.dtype}"
    if platform.machine() not in MACHINES:
        return f"its operators are not tested on the processor {platform.machine()}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "PyTorch is built without oneDNN"
    backend: Any = torch.backends.mkldnn  # its types do not say that `enabled` is a bool
    if not backend.enabled:
        return "oneDNN is switched off (torch.backends.mkldnn.enabled)"
    missing = [name for name in OPERATORS if not hasattr(torch.ops.mkldnn, name)]
    if missing:
        return f"PyTorch {torch.__version__} has no torch.ops.mkldnn.{' and no '.join(missing)}"
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return "oneDNN does not support bfloat16 on this processor"
    return None


@cache
def _log_once(reason: str) -> None:
    logging.getLogger(__name__).info("oneDNN is not used, which is slower on a CPU: %s.", reason)
