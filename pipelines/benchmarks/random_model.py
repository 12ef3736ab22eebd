"""A random DETR whose activations neither vanish nor explode, and whose detections have high scores.

Speed does not depend on the weights, but agreement does: in a network with default norms the activations grow from
block to block, and no score reaches 0.5.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detr.backbone import FrozenBatchNorm
from detr.checkpoints.checkpoint import load, save
from detr.classes import Category
from detr.config import IMAGE_MEAN, IMAGE_STD, VARIANTS, BackboneConfig, DetrConfig
from detr.model import Detr
from detr.scenes.scene import draw_scene

CALIBRATION = (192, 256)  # height and width of the drawn images for the norms' statistics
CALIBRATION_IMAGES = 4
# Of a block's sum. A rounding to bfloat16 grows to 6 % of the features with 0.25, to 3 % with 0.1 (measured).
BRANCH_GAIN = 0.1
ATTENTION_GAIN = 2.0  # of queries, keys and values where the decoder looks at the image
LOGIT_SPREAD = 6.0  # standard deviation of the logits: about half of the queries score above 0.5
NEVER = -100.0  # logit of classes that the data set does not use
BOX_SPREAD = 0.5  # of the boxes before their sigmoid

TABLES = DetrConfig(
    backbone=BackboneConfig(name="resnet18", block="basic", stage_widths=(64, 128, 256, 512), depths=(2, 2, 2, 2)),
    queries=125,
    pre_norm=True,
    categories=tuple(
        Category(index, name)
        for index, name in enumerate(
            ("table", "table column", "table row", "column header", "projected row header", "spanning cell")
        )
    ),
    resizing="transformers",
)
SIZES = {**VARIANTS, "table-transformer-structure-recognition": TABLES}
"""Networks of this package in the sizes of published checkpoints, by the last part of their hub id."""


def write_random_model(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a random model to `folder/model`; return an empty result. A subject, so that torch ends with its process.

    Args:
        settings: `variant`, a key of `SIZES`; `shorter` and `longest`, the size rule in pixels; `seed`.
        folder: the benchmark's working folder.
    """
    config = replace(SIZES[settings["variant"]], shorter=int(settings["shorter"]), longest=int(settings["longest"]))
    torch.manual_seed(int(settings["seed"]))
    network = Detr(config).eval()
    calibrate(network)
    save(network, folder / "model")
    return {}


def copy_model(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a copy of `settings["model"]`, anything that `detr.load` takes, to `folder/model`."""
    save(load(settings["model"]), folder / "model")
    return {}


@torch.no_grad()
def calibrate(network: Detr) -> None:
    """Set the frozen norms to the statistics of drawn images, and scale both heads to useful spreads."""
    pixels = torch.stack([torch.from_numpy(draw_scene(seed, *CALIBRATION).image) for seed in range(CALIBRATION_IMAGES)])
    pixels = pixels.permute(0, 3, 1, 2) / 255
    normalised = (pixels - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
    for name, weight in network.named_buffers():
        if name.endswith("bn3.weight"):
            weight.fill_(BRANCH_GAIN)
    norms = [module for module in network.modules() if isinstance(module, FrozenBatchNorm)]
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    network(normalised, None)
    for hook in hooks:
        hook.remove()
    _sharpen(network, normalised)
    output = network(normalised, None)
    box_layer = network.bbox_embed.layers[-1]
    assert isinstance(box_layer, nn.Linear)
    raw_boxes = output.boxes_cxcywh.logit(eps=1e-6)
    # centres around the middle, sides around a quarter of the image
    spread(network.class_embed, output.logits, LOGIT_SPREAD, torch.zeros(()))
    for index, category in enumerate(network.config.categories):
        if not category.is_used:  # a detector never reports these, but other libraries do
            network.class_embed.weight[index] = 0
            network.class_embed.bias[index] = NEVER
    spread(box_layer, raw_boxes, BOX_SPREAD, torch.tensor([0.0, 0.0, -1.0, -1.0]))


def _sharpen(network: Detr, normalised: Tensor) -> None:
    """Make the positions of an image differ for the transformer, and its queries attend to different positions.

    With torch's initial weights all positions give almost the same, attention is uniform, and all queries agree.
    """
    features = network.input_proj(network.backbone[0](normalised))
    mean, spread = features.mean((0, 2, 3)), features.std((0, 2, 3))
    network.input_proj.weight.div_(spread[:, None, None, None])
    assert network.input_proj.bias is not None
    network.input_proj.bias.copy_((network.input_proj.bias - mean) / spread)
    for name, parameter in network.transformer.named_parameters():
        if name.endswith("multihead_attn.in_proj_weight"):
            parameter.mul_(ATTENTION_GAIN)


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    norm.get_buffer("running_mean").copy_(inputs[0].mean((0, 2, 3)))
    norm.get_buffer("running_var").copy_(inputs[0].var((0, 2, 3)))


def spread(layer: nn.Linear, outputs: Tensor, wanted: float, mean: Tensor) -> None:
    """Scale and shift a layer so that each of its outputs has this standard deviation and mean over all queries."""
    flat = outputs.flatten(0, -2)
    scale = wanted / flat.std(0)
    layer.weight.mul_(scale[:, None])
    assert layer.bias is not None
    layer.bias.copy_((layer.bias - flat.mean(0)) * scale + mean)
