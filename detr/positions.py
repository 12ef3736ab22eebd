"""Position encodings of the cells of a feature map: the paper's sine encoding and the learned one."""

import math

import torch
from torch import Tensor, nn

from detr.config import LEARNED_CELLS

TEMPERATURE = 10_000


class SinePositions(nn.Module):
    """Sines and cosines of the cell's row and column, counted over the real cells only and normalised to 2 pi.

    Has no parameters. Counting starts at 1, the row's features come before the column's, sine and cosine alternate:
    other orders do not fit the official weights.
    """

    def __init__(self, features: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.features = features  # per axis
        self.normalize = normalize

    def forward(self, padding: Tensor) -> Tensor:
        """Return `(B, 2 * features, h, w)` float32 for a mask `(B, h, w)`, True on padding."""
        real = (~padding).float()
        rows, columns = real.cumsum(1), real.cumsum(2)
        if self.normalize:
            # a row may have only padded cells: 0 / 1e-6 is 0, never NaN
            rows = rows / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
            columns = columns / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
        index = torch.arange(self.features, dtype=torch.float32, device=padding.device)
        scale = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / self.features)
        return torch.cat((_interleave(rows, scale), _interleave(columns, scale)), dim=3).permute(0, 3, 1, 2)


class LearnedPositions(nn.Module):
    """A learned vector per row and one per column; here the column's features come first, as in the original."""

    CELLS = LEARNED_CELLS

    def __init__(self, features: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(self.CELLS, features)
        self.col_embed = nn.Embedding(self.CELLS, features)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding: Tensor) -> Tensor:
        """Return `(B, 2 * features, h, w)`; only the shape of `padding` `(B, h, w)` matters.

        Raises:
            ValueError: the map has more than 50 rows or columns (pictures above 1,600 pixels, or DC5).
        """
        batch, height, width = padding.shape
        if max(height, width) > self.CELLS:
            raise ValueError(
                f"learned positions have {self.CELLS} cells per side, but the picture needs {height} x {width}: use "
                "smaller pictures"
            )
        columns = self.col_embed.weight[:width].expand(height, width, -1)
        rows = self.row_embed.weight[:height].unsqueeze(1).expand(height, width, -1)
        return torch.cat((columns, rows), dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)


def _interleave(phase: Tensor, scale: Tensor) -> Tensor:
    """Convert `(B, h, w)` phases to `(B, h, w, features)`: sine in even features, cosine in odd ones."""
    angles = phase[..., None] / scale
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=4).flatten(3)
