"""The mask head of panoptic DETR: a mask of every object query, at a quarter of the resolution of the picture.

Modules have the original's names, which are also those of its checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr.config import DetrConfig
from detr.model import Detr, DetrOutput

QUERIES_AT_ONCE = 16
"""Queries that the head computes at a time: each has maps of 264 channels, and of 32 at a quarter of the resolution."""


class AttentionMap(nn.Module):
    """Attention of queries to the cells of a map, without values. The softmax is over cells and heads together."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(dim, dim)
        self.k_linear = nn.Linear(dim, dim)  # applied to every cell

    def forward(self, queries: Tensor, memory: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return `(B, Q, heads, h, w)`, whose sum over heads and cells is 1 for each query.

        Args:
            queries: `(B, Q, D)`.
            memory: `(B, D, h, w)`.
            padding: `(B, h, w)` bool, True on padding; None without padding.
        """
        height, width = memory.shape[-2:]
        asked = self.q_linear(queries).unflatten(-1, (self.heads, -1))
        keys = self.k_linear(memory.flatten(2).transpose(1, 2)).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("bqnc,blnc->bqnl", asked * asked.shape[-1] ** -0.5, keys)
        if padding is not None:
            scores = scores.masked_fill(padding.flatten(1)[:, None, None], float("-inf"))
        return scores.flatten(2).softmax(-1).view(*scores.shape[:-1], height, width)


class MaskHead(nn.Module):
    """Convolutions that compute a query's mask from its attention, adding the backbone's maps while upsampling."""

    def __init__(self, dim: int, heads: int, map_channels: Sequence[int]) -> None:
        """Create layers with random weights.

        Args:
            dim: channels of the transformer.
            heads: channels of the attention maps.
            map_channels: channels of the backbone's maps of stride 16, 8 and 4 (DC5: also 16, 8 and 4).
        """
        super().__init__()
        widths = (dim + heads, dim // 2, dim // 4, dim // 8, dim // 16)
        inputs = dim + heads
        for number, outputs in enumerate(widths, start=1):
            self.add_module(f"lay{number}", nn.Conv2d(inputs, outputs, 3, padding=1))
            self.add_module(f"gn{number}", nn.GroupNorm(8, outputs))
            inputs = outputs
        self.out_lay = nn.Conv2d(inputs, 1, 3, padding=1)
        for number, (channels, width) in enumerate(zip(map_channels, widths[1:4], strict=True), start=1):
            self.add_module(f"adapter{number}", nn.Conv2d(channels, width, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, features: Tensor, attention: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Return mask logits `(Q, H, W)` of one image, in the resolution of the last map.

        Args:
            features: `(D, h, w)`, the input of the transformer.
            attention: `(Q, heads, h, w)`, of `AttentionMap`.
            maps: of the backbone, `(C, h, w)` of stride 16, 8 and 4.
        """
        x = torch.cat((features.expand(len(attention), -1, -1, -1), attention), dim=1)
        x = self._refined(self._refined(x, 1), 2)
        for number, features_there in enumerate(maps, start=1):
            adapted = self.get_submodule(f"adapter{number}")(features_there[None])
            x = adapted + F.interpolate(x, size=adapted.shape[-2:], mode="nearest")
            x = self._refined(x, number + 2)
        return self.out_lay(x)[:, 0]

    def _refined(self, x: Tensor, number: int) -> Tensor:
        return F.relu(self.get_submodule(f"gn{number}")(self.get_submodule(f"lay{number}")(x)))


@dataclass(frozen=True, slots=True)
class MaskFeatures:
    """Inputs of the mask head for B images.

    Attributes:
        queries: `(B, Q, D)`, the last output of the decoder.
        memory: `(B, D, h, w)`, the output of the encoder.
        features: `(B, D, h, w)`, the input of the encoder.
        maps: of the backbone, `(B, C, h, w)` of stride 16, 8 and 4.
        extents: `(B, 2)`, each image's own height and width in pixels.
        stride: of `memory` and `features`.
    """

    queries: Tensor
    memory: Tensor
    features: Tensor
    maps: tuple[Tensor, ...]
    extents: tuple[tuple[int, int], ...]
    stride: int


class PanopticDetr(Detr):
    """A DETR with a mask head. All methods except `segment` and `mask_logits` are those of `Detr`.

    Its state dict has the keys of the original's panoptic `.pth` files without the prefix `detr.`.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        widths = config.backbone.stage_widths
        assert len(widths) == 4, "DetrConfig refuses other backbones with a mask head"
        self.bbox_attention = AttentionMap(config.hidden_dim, config.heads)
        self.mask_head = MaskHead(config.hidden_dim, config.heads, widths[2::-1])

    def segment(self, pixels: Tensor, extents: Tensor | None) -> tuple[DetrOutput, MaskFeatures]:
        """Find objects as `detect` does; also return the inputs of `mask_logits`."""
        maps: list[Tensor] = []
        output = self.detect(pixels, extents, auxiliary=False, maps=maps)
        assert output.memory is not None
        assert output.queries is not None
        *earlier, last = maps
        height, width = last.shape[-2:]
        memory = output.memory.transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-untyped-call]
        own = [pixels.shape[-2:]] * len(pixels) if extents is None else extents.tolist()
        stride = self.config.backbone.stride
        sizes = tuple((int(height), int(width)) for height, width in own)
        return output, MaskFeatures(output.queries, memory, self.input_proj(last), tuple(earlier[::-1]), sizes, stride)

    def mask_logits(self, features: MaskFeatures, image: int, queries: Tensor) -> Tensor:
        """Return mask logits `(N, ceil(height / 4), ceil(width / 4))` of some queries of an image, without its padding.

        The maps are cropped to the image's own extent first, so that the result is that of the image alone.

        Args:
            features: of `segment`.
            image: its index in the batch.
            queries: `(N,)` integers.
        """
        height, width = features.extents[image]

        def own(x: Tensor, stride: int) -> Tensor:
            return x[image, :, : -(-height // stride), : -(-width // stride)]

        dtype = self.mask_head.out_lay.weight.dtype
        projected = own(features.features, features.stride).to(dtype)
        memory = own(features.memory, features.stride).to(dtype)
        maps = [own(x, stride).to(dtype) for x, stride in zip(features.maps, (16, 8, 4), strict=True)]
        asked = features.queries[image, queries].to(dtype)
        parts = []
        for some in torch.split(asked, QUERIES_AT_ONCE):
            attention = self.bbox_attention(some[None], memory[None])[0]
            parts.append(self.mask_head(projected, attention, maps))
        return torch.cat(parts) if parts else projected.new_zeros(0, *maps[-1].shape[-2:])
