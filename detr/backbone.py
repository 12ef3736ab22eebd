"""Residual networks of the original DETR: frozen or trainable norm, plain or DC5, with or without a padding guard.

Modules carry torchvision's names (`conv1`, `bn1`, `layer1.0.downsample.0`), which are also those of the checkpoints.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detr.config import BackboneConfig

BLOCKS_TOGETHER = 4
"""Residual blocks per input that gradient checkpointing keeps: few inputs, and few blocks in memory at a time."""

Guard = Callable[[Tensor, int], Tensor]
"""`guard(x, stride)` zeroes what lies outside each picture's own extent in `x` `(B, C, h, w)`, a map of that stride."""


class FrozenBatchNorm(nn.Module):
    """Batch-norm whose statistics and affine parameters are buffers: never trained, the same in both modes."""

    EPSILON = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift, `(C,)` each, of the affine map that this norm computes."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        scale = weight * (self.get_buffer("running_var") + self.EPSILON).rsqrt()
        return scale, bias - self.get_buffer("running_mean") * scale

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C, h, w)` scaled and shifted by channel."""
        scale, shift = self.scale_and_shift()
        return x * scale[:, None, None] + shift[:, None, None]


class ResidualBlock(nn.Module):
    """Building block of a stage; `stride` is the number of input pixels per output pixel, in each direction."""

    stride: int


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1 with a shortcut; the stride is in the 3x3 ("v1.5")."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        width = outputs // 4
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor, guard: Guard | None, input_stride: int) -> Tensor:
        """Map `(B, inputs, h, w)` of `input_stride` to `(B, outputs, ceil(h / stride), ceil(w / stride))`."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if guard is not None:  # only a 3x3 convolution reads neighbouring cells
            residual = guard(residual, input_stride)
        residual = F.relu(self.bn2(self.conv2(residual)), inplace=True)
        residual = self.bn3(self.conv3(residual))
        return F.relu(residual + (x if self.downsample is None else self.downsample(x)), inplace=True)


class BasicBlock(ResidualBlock):
    """3x3, 3x3 with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        assert dilation == 1, "BackboneConfig refuses dilated basic blocks"
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor, guard: Guard | None, input_stride: int) -> Tensor:
        """Map `(B, inputs, h, w)` of `input_stride` to `(B, outputs, ceil(h / stride), ceil(w / stride))`."""
        residual = self.conv1(x if guard is None else guard(x, input_stride))
        residual = F.relu(self.bn1(residual), inplace=True)
        if guard is not None:
            residual = guard(residual, input_stride * self.stride)
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResidualNetwork(nn.Module):
    """Pixels to the last feature map: stem, max-pool, then the stages `layer1`, `layer2`, ..."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.checkpoints_gradients = False
        """Whether training recomputes blocks in the backward pass; see `Detr.checkpoint_gradients`."""
        self.trainable_norm = config.norm == "batch"
        block = {"bottleneck": Bottleneck, "basic": BasicBlock}[config.block]
        norm = {"frozen": FrozenBatchNorm, "batch": nn.BatchNorm2d}[config.norm]
        self.conv1 = nn.Conv2d(3, config.stem_width, 7, 2, padding=3, bias=False)
        self.bn1 = norm(config.stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(config.depths) + 1))
        channels = config.stem_width
        for number, (name, width, depth) in enumerate(
            zip(self.stage_names, config.stage_widths, config.depths, strict=True)
        ):
            dilated = config.dilation and number == len(config.depths) - 1
            stride = 1 if number == 0 or dilated else 2
            # DC5: the first block of the last stage is not dilated yet, the others are (torchvision's way)
            blocks = [block(channels, width, stride, 1, norm)]
            blocks += [block(width, width, 1, 2 if dilated else 1, norm) for _ in range(depth - 1)]
            self.add_module(name, nn.ModuleList(blocks))
            channels = width
        self.channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor, guard: Guard | None = None, *, maps: list[Tensor] | None = None) -> Tensor:
        """Map normalised `(B, 3, H, W)` to `(B, channels, ceil(H / S), ceil(W / S))` for the stride S.

        With a `guard`, padded pixels act like the border of an unpadded picture: the max-pool ignores them, and every
        3x3 convolution sees zeros. The input pixels must be zero on padding. If `maps` is given, the map of each stage
        is appended to it.
        """
        x = self.relu(self.bn1(self.conv1(pixels)))
        if guard is not None:
            x = guard(x, 2)  # after the ReLU, if every window has a real cell, 0 acts like the pool's minus infinity
        x = F.max_pool2d(x, 3, 2, padding=1)
        stride = 4
        # a trainable norm would update its statistics with the batch twice
        is_recomputed = self.checkpoints_gradients and self.training and not self.trainable_norm
        for name in self.stage_names:
            blocks = [block for block in self.get_submodule(name).children() if isinstance(block, ResidualBlock)]
            if is_recomputed:
                for start in range(0, len(blocks), BLOCKS_TOGETHER):
                    part = blocks[start : start + BLOCKS_TOGETHER]
                    x = checkpoint(_through, part, x, guard, stride, use_reentrant=False)
                    stride *= part[0].stride
            else:
                x = _through(blocks, x, guard, stride)
                stride *= blocks[0].stride
            if maps is not None:
                maps.append(x)
        return x


class Backbone(nn.Module):
    """The residual network as attribute `body`, the name in the original's checkpoints."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.body = ResidualNetwork(config)

    def forward(self, pixels: Tensor, guard: Guard | None = None, *, maps: list[Tensor] | None = None) -> Tensor:
        """See `ResidualNetwork.forward`."""
        return self.body(pixels, guard, maps=maps)


def _through(blocks: Sequence[ResidualBlock], x: Tensor, guard: Guard | None, stride: int) -> Tensor:
    """Apply blocks of one stage to `x`, a map of `stride`; only the first can change the stride."""
    for block in blocks:
        x = block(x, guard, stride)
        stride *= block.stride
    return x


def _shortcut(inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
