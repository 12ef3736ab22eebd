"""The DETR network: pixels in, class logits and boxes out."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr.backbone import Backbone, Guard, ResidualNetwork
from detr.config import DetrConfig
from detr.positions import LearnedPositions, SinePositions
from detr.transformer import Transformer

PaddingMode = Literal["plain", "exact"]


@dataclass(frozen=True, slots=True)
class DetrOutput:
    """The output of the heads for B images, Q queries and K classes.

    Attributes:
        logits: `(B, Q, K + 1)`; the last is no-object.
        boxes_cxcywh: `(B, Q, 4)` in 0..1 of the image without its padding.
        aux: the same of every earlier decoder layer, first layer first; their own `aux` is empty.
        memory: `(B, h * w, D)`, the encoder's output, row by row; None in `aux`.
        queries: `(B, Q, D)`, the decoder's last output, the input of the heads; None in `aux`.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    aux: tuple["DetrOutput", ...] = ()
    memory: Tensor | None = None
    queries: Tensor | None = None


# torch.export accepts only registered classes as outputs
torch.export.register_dataclass(DetrOutput, serialized_type_name="detr.model.DetrOutput")


class BoxHead(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., 4)`, before the sigmoid."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class Detr(nn.Module):
    """DETR (Carion et al. 2020). Its state dict has the keys of the original's `.pth` files."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        backbone = Backbone(config.backbone)
        positions = SinePositions(dim // 2) if config.positions == "sine" else LearnedPositions(dim // 2)
        self.backbone = nn.ModuleList([backbone, positions])
        self.input_proj = nn.Conv2d(backbone.body.channels, dim, 1)
        self.transformer = Transformer(config)
        self.query_embed = nn.Embedding(config.queries, dim)
        self.class_embed = nn.Linear(dim, config.class_count + 1)
        self.bbox_embed = BoxHead(dim)

    def forward(self, pixels: Tensor, mask: Tensor | None = None, *, padding: PaddingMode = "plain") -> DetrOutput:
        """Find objects.

        With "plain" padding the result of an image depends on the padding beside it, as in the original: padded pixels
        start as zero, but convolutions and norms change them, which affects the image. With "exact" the result is that
        of the image alone, up to rounding.

        Args:
            pixels: `(B, 3, H, W)` float, normalised RGB, zero on padding, which is to the right and at the bottom only.
            mask: `(B, H, W)` bool, **True on padding**; None if no image is padded.
            padding: padding mode inside the network.
        """
        if mask is None:
            return self.detect(pixels, None)
        if padding == "exact":
            return self.detect(pixels, torch.stack(((~mask[:, :, 0]).sum(1), (~mask[:, 0, :]).sum(1)), dim=1))
        features = self.backbone[0](pixels)
        cells = F.interpolate(mask[:, None].float(), size=features.shape[-2:], mode="nearest")[:, 0].bool()
        return self._answer(features, cells, self.backbone[1](cells))

    def detect(
        self, pixels: Tensor, extents: Tensor | None, *, auxiliary: bool = True, maps: list[Tensor] | None = None
    ) -> DetrOutput:
        """Find objects, with exact padding (see `forward`).

        Args:
            pixels: `(B, 3, H, W)` float, normalised RGB, zero on padding, which is to the right and at the bottom only.
            extents: `(B, 2)` integers on the device of `pixels`: each image's own height and width in pixels; None if
                no image is padded.
            auxiliary: whether to compute the heads on the earlier decoder layers, too; only training needs them.
            maps: if given, the backbone's map of each stage is appended to it.
        """
        features = self.backbone[0](pixels, None if extents is None else padding_guard(extents), maps=maps)
        height, width = features.shape[-2:]
        cells = None if extents is None else outside(extents, self.config.backbone.stride, height, width)
        # without padding all images have the same positions
        where = torch.zeros((1, height, width), dtype=torch.bool, device=pixels.device) if cells is None else cells
        return self._answer(features, cells, self.backbone[1](where), auxiliary=auxiliary)

    def checkpoint_gradients(self, *, enabled: bool = True) -> None:
        """Enable or disable gradient checkpointing: training uses less memory and computes more.

        Enabled, the forward pass keeps only the input of every fourth residual block and of each encoder layer, and the
        backward pass recomputes the layers between, with the same dropout. Gradients are the same. Blocks with
        trainable norms are excluded: their statistics would be updated twice.
        """
        body = self.backbone[0].get_submodule("body")
        assert isinstance(body, ResidualNetwork)
        body.checkpoints_gradients = enabled
        self.transformer.encoder.checkpoints_gradients = enabled

    def cast_weights(self, dtype: torch.dtype) -> None:
        """Keep the weights in `dtype`, except those of the heads and of learned positions, which stay as they are.

        Then no operation of `detect` converts a weight, and `pixels` must be of `dtype`. Norms and softmax still
        accumulate in float32.
        """
        for part in (self.backbone[0], self.input_proj, self.transformer, self.query_embed):
            part.to(dtype)

    def _answer(
        self, features: Tensor, cells: Tensor | None, positions: Tensor, *, auxiliary: bool = True
    ) -> DetrOutput:
        hidden, memory = self.transformer(self.input_proj(features), cells, self.query_embed.weight, positions)
        hidden = hidden if auxiliary else hidden[-1:]
        # In bf16 the error of a sigmoid is up to 3.4 pixels in a picture of 1,333: the heads compute in the precision
        # of their weights, which is float32 even if the rest of the network uses less.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.class_embed.weight.dtype)
            logits = self.class_embed(hidden)
            boxes = self.bbox_embed(hidden).sigmoid()
        aux = tuple(DetrOutput(*layer) for layer in zip(logits[:-1], boxes[:-1], strict=True))
        return DetrOutput(logits[-1], boxes[-1], aux, memory, hidden[-1])


def outside(extents: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Return `(B, height, width)` bool: the cells of a map of `stride` that lie outside each image's own ceil extent.

    `extents` is `(B, 2)` integers: each image's own height and width in pixels.
    """
    own = (extents + stride - 1) // stride
    rows = torch.arange(height, device=extents.device) >= own[:, :1]
    columns = torch.arange(width, device=extents.device) >= own[:, 1:]
    return rows[:, :, None] | columns[:, None, :]


def padding_guard(extents: Tensor) -> Guard:
    """Return a guard for images whose own (height, width) in pixels are `extents` `(B, 2)`, padded to one shape."""
    kept: dict[tuple[int, torch.dtype], Tensor] = {}  # one small 0/1 map per stride, created on first use

    def guard(x: Tensor, stride: int) -> Tensor:
        if (stride, x.dtype) not in kept:
            real = ~outside(extents, stride, *x.shape[-2:])
            kept[stride, x.dtype] = real[:, None].to(x.dtype)
        # a multiplication, which is fused with the previous ReLU when compiled; its input is finite
        return x * kept[stride, x.dtype]

    return guard
