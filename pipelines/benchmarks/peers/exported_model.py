"""Common code of exporters: `transformers`' DETR as a function of pixels only, and its outputs as detections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detr.boxes import cxcywh_to_xyxy
from pipelines.benchmarks.model_subjects import save_rows


class LogitsAndBoxes(nn.Module):
    """A DETR of `transformers` that maps `(B, 3, H, W)` without padding to logits and boxes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(B, Q, K + 1)` and boxes `(B, Q, 4)`, cxcywh in 0..1."""
        mask = torch.ones(pixels.shape[0], pixels.shape[2], pixels.shape[3], dtype=torch.long)
        output = self.model(pixel_values=pixels, pixel_mask=mask)
        return output.logits, output.pred_boxes


def save_outputs(path: Path, outputs: Sequence[Sequence[Tensor]], shape: tuple[int, int]) -> None:
    """Save (logits, boxes) of every batch as detections of images of `shape`."""
    height, width = shape
    scale = torch.tensor([width, height, width, height])
    rows: list[tuple[Any, Any, Any]] = []
    for logits, boxes in outputs:
        scores, classes = logits.float().softmax(-1)[..., :-1].max(-1)
        rows += list(zip(classes, scores, cxcywh_to_xyxy(boxes.float()) * scale, strict=True))
    save_rows(path, rows, (height, width))
