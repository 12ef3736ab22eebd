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
from torch import nn
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


def randomise(model: nn.Module) -> None:
    """Draw weights that make queries differ; those of a new network hardly do."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "query_position" in key:
                parameter.normal_()
            elif parameter.dim() == 2:
                sharp = 3.0 if ".q_proj." in key or ".k_proj." in key else 1.0  # otherwise attention is nearly uniform
                nn.init.xavier_uniform_(parameter, gain=sharp)
            elif parameter.dim() == 1 and "backbone" not in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
        hooks = [
            module.register_forward_pre_hook(_calibrate)
            for module in model.modules()
            if isinstance(getattr(module, "running_var", None), torch.Tensor)
        ]
        model(torch.randn(1, 3, 96, 128))
    for hook in hooks:
        hook.remove()


def _calibrate(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    """Set a frozen norm's statistics near those of its input, so that signals keep their size."""
    mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)) + 1e-3
    norm.get_buffer("running_mean").copy_(mean + 0.5 * variance.sqrt() * torch.randn_like(mean))
    norm.get_buffer("running_var").copy_(variance * torch.empty_like(variance).uniform_(0.5, 2))


def main() -> None:
    """Print the largest differences of each case."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print("| model | logits | boxes | masks | standard deviation of logits, masks | masks in a batch and alone |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, settings in CASES.items():
        torch.manual_seed(0)
        theirs = DetrForSegmentation(DetrConfig(use_pretrained_backbone=False, num_labels=250, **settings)).eval()
        randomise(theirs)
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
        differences = [
            float((ours - other).abs().max())
            for ours, other in (
                (output.logits, expected.logits),
                (output.boxes_cxcywh, expected.pred_boxes),
                (masks, expected.pred_masks[0]),
                (masks, again),
            )
        ]
        logits, boxes, mask, alone = (f"{one:.1e}" for one in differences)
        spread = f"{float(output.logits.std(1).mean()):.2f}, {float(masks.std()):.2f}"
        print(f"| {name} | {logits} | {boxes} | {mask} | {spread} | {alone} |", flush=True)


if __name__ == "__main__":
    main()
