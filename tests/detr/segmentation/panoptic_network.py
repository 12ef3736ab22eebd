"""A small panoptic DETR with random weights whose masks are neither empty nor full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from detr.checkpoints.hub_config import write_config, write_preprocessor
from detr.checkpoints.layouts import to_file
from detr.classes import COCO_PANOPTIC_CATEGORIES
from detr.config import BackboneConfig, DetrConfig
from detr.segmentation.mask_head import PanopticDetr

CONFIG = DetrConfig(
    backbone=BackboneConfig("resnet", "bottleneck", 8, (32, 64, 96, 128), (1, 1, 2, 1)),
    hidden_dim=128,
    heads=8,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=32,
    queries=6,
    categories=COCO_PANOPTIC_CATEGORIES,
    shorter=96,
    longest=160,
    mask_head=True,
)


def small_panoptic(seed: int = 0) -> PanopticDetr:
    torch.manual_seed(seed)
    model = PanopticDetr(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("mask_head.") and name.endswith("bias"):
                parameter.normal_(0, 0.1)
        for index, category in enumerate(COCO_PANOPTIC_CATEGORIES):
            model.class_embed.bias[index] = 0 if category.is_used else -8
        model.class_embed.bias[-1] = -8  # queries that find something
    return model


def write_panoptic(model: PanopticDetr, folder: Path) -> None:
    """Write a model directory with the names of `transformers`, which `detr.save` does not do for panoptic models."""
    config, layout = write_config(replace(model.config, mask_head=False))
    del config["category_ids"]
    heads = ("mask_head.", "bbox_attention.")
    weights = to_file(model, layout)
    folder.mkdir(parents=True)
    save_file({k if k.startswith(heads) else f"detr.{k}": v for k, v in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["DetrForSegmentation"]}))
    (folder / "preprocessor_config.json").write_text(json.dumps(write_preprocessor(model.config)))
