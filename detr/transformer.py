"""The transformer encoder of image features, and the decoder of object queries.

Source: the paper's appendix A.3. Attributes are named as in the original's checkpoints: renaming one breaks loading.
Positions are added to queries and keys, in every layer, never to values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detr.config import DetrConfig


class EncoderLayer(nn.Module):
    """Self-attention over all cells, then a feed-forward network for each cell."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        dim, dropout = config.hidden_dim, config.dropout
        self.self_attn = nn.MultiheadAttention(dim, config.heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, dim)
        self.norm1, self.norm2 = (nn.LayerNorm(dim) for _ in range(2))
        self.dropout = nn.Dropout(dropout)  # stateless: one module for all positions
        self.pre_norm = config.pre_norm

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        """Return the refined cells, `(B, L, D)`.

        `x` and `positions` are `(B, L, D)`, row by row. `padding` is `(B, L)` bool, True on padding, or None without
        padding.
        """
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), positions, padding)
            return x + self._refine(self.norm2(x))
        x = self.norm1(x + self._attend(x, positions, padding))
        return self.norm2(x + self._refine(x))

    def _attend(self, x: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        where = x + positions
        attended, _ = self.self_attn(where, where, x, key_padding_mask=padding, need_weights=False)
        return self.dropout(attended)

    def _refine(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class DecoderLayer(nn.Module):
    """Self-attention of queries, cross-attention to the image, then a feed-forward network for each query."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        dim, dropout = config.hidden_dim, config.dropout
        self.self_attn = nn.MultiheadAttention(dim, config.heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, config.heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = config.pre_norm

    def forward(
        self, x: Tensor, query_positions: Tensor, memory: Tensor, memory_keys: Tensor, padding: Tensor | None
    ) -> Tensor:
        """Return the refined queries, `(B, Q, D)`.

        `x` and `query_positions` are `(B, Q, D)`: zeros before the first layer, and the learned object queries.
        `memory` and `memory_keys` (memory with its positions added) are `(B, L, D)`. `padding` is `(B, L)` bool, True
        on padding, or None. An image that is only padding results in NaN (torch 2.14).
        """
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), query_positions)
            x = x + self._look(self.norm2(x), query_positions, memory, memory_keys, padding)
            return x + self._refine(self.norm3(x))
        x = self.norm1(x + self._attend(x, query_positions))
        x = self.norm2(x + self._look(x, query_positions, memory, memory_keys, padding))
        return self.norm3(x + self._refine(x))

    def _attend(self, x: Tensor, query_positions: Tensor) -> Tensor:
        where = x + query_positions
        attended, _ = self.self_attn(where, where, x, need_weights=False)
        return self.dropout(attended)

    def _look(self, x: Tensor, query_positions: Tensor, memory: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        attended, _ = self.multihead_attn(
            x + query_positions, keys, memory, key_padding_mask=padding, need_weights=False
        )
        return self.dropout(attended)

    def _refine(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class Encoder(nn.Module):
    """The encoder layers; with pre-norm, an additional norm after the last."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.hidden_dim) if config.pre_norm else None
        self.checkpoints_gradients = False
        """Whether training recomputes each layer in the backward pass; see `Detr.checkpoint_gradients`."""

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        """Return the memory, `(B, L, D)`; arguments as `EncoderLayer.forward`."""
        for layer in self.layers:
            if self.checkpoints_gradients and self.training:
                x = checkpoint(layer, x, positions, padding, use_reentrant=False)
            else:
                x = layer(x, positions, padding)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """The decoder layers. A shared norm is applied to every layer's output, but not to the input of the next layer."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)  # with post-norm a second norm after norm3: intended

    def forward(
        self, query_positions: Tensor, memory: Tensor, memory_positions: Tensor, padding: Tensor | None
    ) -> Tensor:
        """Return every layer's normed output, `(layers, B, Q, D)`; arguments as `DecoderLayer.forward`."""
        x = torch.zeros_like(query_positions)
        keys = memory + memory_positions
        outputs = []
        for layer in self.layers:
            x = layer(x, query_positions, memory, keys, padding)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


class Transformer(nn.Module):
    """Encoder and decoder of one feature map."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Tensor, padding: Tensor | None, queries: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return every decoder layer's output `(layers, B, Q, D)` and the memory `(B, h * w, D)`, row by row.

        Args:
            features: `(B, D, h, w)`.
            padding: `(B, h, w)` bool, True on padding, or None if no image is padded.
            queries: `(Q, D)`, the learned object queries.
            positions: `(B, D, h, w)`, or `(1, D, h, w)` if equal for all images.
        """
        cells = features.flatten(2).transpose(1, 2)
        where = positions.to(cells.dtype).flatten(2).transpose(1, 2)
        hidden = None if padding is None else padding.flatten(1)
        memory = self.encoder(cells, where, hidden)
        asked = queries.to(cells.dtype).expand(cells.shape[0], -1, -1)
        return self.decoder(asked, memory, where, hidden), memory
