"""Compare panoptic DETR with `transformers`' DetrForSegmentation on random weights of full size.

python scripts/panoptic_parity.py

Each model is saved by `transformers`, loaded by `detr.load`, and given one image of random pixels without padding; then
the same image padded beside another one.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import DetrConfig, DetrForSegmentation, ResNetConfig

from detr import load
from detr.segmentation.mask_head import PanopticDetr

STAGES = ["stage1", "stage2", "stage3", "stage4"]
CASES: dict[str, dict[str, Any]] = {
    "R50, timm's names": {"backbone": "resnet50"},
    "R50, transformers' names": {"backbone_config": ResNetConfig(out_features=STAGES), "use_timm_backbone": False},
    "R50-DC5, timm's names": {"backbone": "resnet50", "dilation": True},
    "R101, timm's names": {"backbone": "resnet101"},
}


def main() -> None:
    """Print the largest differences of each case."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print("| model | logits | boxes | masks | standard deviation of masks | masks in a batch and alone |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, settings in CASES.items():
        torch.manual_seed(0)
        theirs = DetrForSegmentation(DetrConfig(use_pretrained_backbone=False, num_labels=250, **settings)).eval()
        for key, buffer in theirs.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            model = load(Path(folder))
        assert isinstance(model, PanopticDetr)
        pixels = torch.randn(1, 3, 227, 310)
        together = torch.zeros(2, 3, 257, 330)
        together[0, :, :227, :310] = pixels[0]
        together[1] = torch.randn(3, 257, 330)
        queries = torch.arange(100)
        with torch.no_grad():
            expected = theirs(pixels)
            output, features = model.segment(pixels, None)
            masks = model.mask_logits(features, 0, queries)
            _, in_batch = model.segment(together, torch.tensor([[227, 310], [257, 330]]))
            again = model.mask_logits(in_batch, 0, queries)
        figures = (
            (output.logits - expected.logits).abs().max(),
            (output.boxes_cxcywh - expected.pred_boxes).abs().max(),
            (masks - expected.pred_masks[0]).abs().max(),
            masks.std(),
            (masks - again).abs().max(),
        )
        print(f"| {name} | " + " | ".join(f"{float(one):.1e}" for one in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
