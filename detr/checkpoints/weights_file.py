"""Single files of weights: find out which DETR one is from its training settings, its name, or the caller."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from detr.checkpoints.hub_config import TIMM_BACKBONES
from detr.checkpoints.json_fields import Fields
from detr.checkpoints.model_directory import CheckpointError
from detr.checkpoints.tensor_files import read_lightning, read_original
from detr.checkpoints.weight_names import (
    CLASS_BIASES,
    Layout,
    bare_names,
    has_mask_head,
    layout_of,
    names_in_file,
    usual_name,
)
from detr.classes import COCO_PANOPTIC_CATEGORIES, Category
from detr.config import VARIANTS, DetrConfig

_OFFICIAL_FILE = re.compile(
    r"detr[-_](?:r|resnet[-_]?)(50|101)([-_]dc5)?(?:[-_]panoptic)?(?:[-_][0-9a-f]{8,64})?\.(?:pth|ckpt)", re.IGNORECASE
)

_DIRECTORY = (
    "For other models, give the directory that transformers' save_pretrained writes; docs/models.md lists these models."
)
_INSTEAD = {
    ".pt": f"Ultralytics (YOLO) models are not supported. {_DIRECTORY}",
    ".onnx": "ONNX files can be written (ray-detr export-model), but not read.",
    ".safetensors": "Give the directory that contains this file and its config.json.",
    ".bin": "Give the directory that contains this file and its config.json.",
    ".json": "Give the directory that contains this file.",
}


def read_weights_file(path: Path, variant: str | None, *, source: str) -> tuple[DetrConfig, Layout, dict[str, Tensor]]:
    """Return the configuration of the network in a `.pth` or `.ckpt`, the layout of its weights, and the weights.

    The settings of the original's main.py (`args`) decide if the file has them, else `variant` or the file's name.

    Args:
        path: the file.
        variant: a name of VARIANTS, or None.
        source: name of the file in error messages.

    Raises:
        CheckpointError: it cannot be read, it is not known which DETR it is, or two sources contradict each other.
    """
    if path.suffix not in (".pth", ".ckpt"):
        raise CheckpointError(
            f"checkpoint {source}: a single file must be a .pth file of the original DETR, or a .ckpt file of PyTorch "
            f"Lightning. {_INSTEAD.get(path.suffix, _DIRECTORY)}"
        )
    named = _variant(path.name, variant, source)  # first: a wrong variant is refused without reading the file
    tensors, settings = (read_lightning if path.suffix == ".ckpt" else read_original)(path, source=source)
    names = bare_names(tensors)
    if not any(name.endswith(CLASS_BIASES) for name in names.values()):
        if any(
            name.endswith(("bbox_embed.layers.0.weight", "bbox_predictor.layers.0.weight")) for name in names.values()
        ):
            raise CheckpointError(
                f"checkpoint {source}: its class head is missing, as in files that are made for fine-tuning. Give a "
                "complete model."
            )
        raise CheckpointError(
            f"checkpoint {source}: it is not a DETR: its weights have other names, such as "
            f"{next(iter(tensors), 'none')!r}. {_DIRECTORY}"
        )
    config = _trained_config(settings, source)
    if config is not None and named is not None:
        _check_agreement(config, named, variant, source)
    if config is None and named is None:
        raise CheckpointError(
            f"checkpoint {source}: neither its name nor its contents show which DETR it is (plain and DC5 models have "
            f"the same weights). Give variant, one of {', '.join(VARIANTS)}, or name the file "
            f"detr-resnet-50{path.suffix}."
        )
    if config is None:
        config = VARIANTS[named or ""]
    layout = layout_of(names.values())
    shapes = {usual_name(bare, layout): tuple(tensors[name].shape) for name, bare in names.items()}
    config = replace(config, mask_head=has_mask_head(names.values()))
    return _with_heads_of(shapes, layout, config), layout, tensors


def _trained_config(settings: Mapping[str, Any], source: str) -> DetrConfig | None:
    """Return the configuration described by training settings; None if they do not say which network it is."""
    if "backbone" not in settings or "dilation" not in settings:
        return None
    fields = Fields(settings, f"checkpoint {source}: args")
    fields.require("backbone", *TIMM_BACKBONES, default=None)
    fields.require("position_embedding", "sine", "v2", "learned", "v3", default="sine")
    usual = DetrConfig()
    try:
        return replace(
            usual,
            backbone=replace(
                TIMM_BACKBONES[fields.text("backbone", "")], dilation=fields.boolean("dilation", default=False)
            ),
            hidden_dim=fields.integer("hidden_dim", usual.hidden_dim),
            heads=fields.integer("nheads", usual.heads),
            encoder_layers=fields.integer("enc_layers", usual.encoder_layers, most=1000),
            decoder_layers=fields.integer("dec_layers", usual.decoder_layers, most=1000),
            feedforward_dim=fields.integer("dim_feedforward", usual.feedforward_dim),
            dropout=fields.number("dropout", usual.dropout),
            positions="learned" if fields.text("position_embedding", "sine") in ("learned", "v3") else "sine",
            pre_norm=fields.boolean("pre_norm", default=False),
        )
    except CheckpointError:
        raise
    except ValueError as error:  # the configuration's own checks
        raise CheckpointError(f"{fields.where}: {error}") from error


def _check_agreement(config: DetrConfig, named: str, variant: str | None, source: str) -> None:
    wanted = VARIANTS[named].backbone
    found = config.backbone
    if (found.name, found.dilation) != (wanted.name, wanted.dilation):
        said = "variant" if variant is not None else "its name"
        raise CheckpointError(
            f"checkpoint {source}: {said} says {named}, but it was trained with --backbone {found.name}"
            f"{' --dilation' if found.dilation else ''} (args). "
            + ("Omit variant." if variant is not None else "Rename the file.")
        )


def _with_heads_of(shapes: Mapping[str, tuple[int, ...]], layout: Layout, config: DetrConfig) -> DetrConfig:
    """Return the configuration with the numbers of classes and queries of the weights."""
    rows = _row_count(shapes, "class_embed.weight", layout) - 1  # the last is no-object's
    queries = _row_count(shapes, "query_embed.weight", layout)
    if rows >= 1 and rows != config.class_count:
        named = tuple(Category(index, f"LABEL_{index}") for index in range(rows))
        is_panoptic = rows == len(COCO_PANOPTIC_CATEGORIES)
        config = replace(config, categories=COCO_PANOPTIC_CATEGORIES if is_panoptic else named)
    return replace(config, queries=queries) if queries >= 1 else config


def _row_count(shapes: Mapping[str, tuple[int, ...]], key: str, layout: Layout) -> int:
    (name,) = names_in_file(key, layout)
    return shapes[name][0] if len(shapes.get(name, ())) == 2 else 0


def _variant(name: str, variant: str | None, source: str) -> str | None:
    """Return the name of VARIANTS given by the user or by the file's name, or None."""
    official = _OFFICIAL_FILE.fullmatch(name)
    named = None if official is None else f"detr-resnet-{official[1]}{'-dc5' if official[2] else ''}"
    if variant is not None and variant not in VARIANTS:
        near = difflib.get_close_matches(variant, VARIANTS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The variants are {', '.join(VARIANTS)}."
        raise CheckpointError(f"checkpoint {source}: {variant!r} is not a variant. {hint}")
    if variant is not None and named is not None and variant != named:
        raise CheckpointError(f"checkpoint {source}: its name says {named}, but variant is {variant}. Rename the file.")
    return variant or named
