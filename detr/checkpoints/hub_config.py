"""Conversion between a DetrConfig and the config.json and preprocessor_config.json of `transformers`.

Beside its own keys, our config.json has three that `transformers` carries along untouched: `category_ids`, the data
set's own id of each class index, `backbone_name`, and `size_arithmetic`, if it is not the usual one.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from detr.checkpoints.json_fields import Fields, Json, is_integer
from detr.checkpoints.model_directory import CheckpointError
from detr.checkpoints.weight_names import Layout
from detr.classes import COCO_CATEGORIES, COCO_PANOPTIC_CATEGORIES, Category
from detr.config import IMAGE_MEAN, IMAGE_STD, BackboneConfig, Block, DetrConfig, Positions
from detr.size_rule import Resizing

MODEL_TYPES: dict[str, bool] = {"detr": False, "table-transformer": True}
"""The model types of `transformers` that are DETR, and whether their norms come first (pre-norm)."""

COCO = (COCO_CATEGORIES, COCO_PANOPTIC_CATEGORIES)

_SINCE = (4, 42)
"""The first version of `transformers` that computes sizes differently from the original (its pull request 30902)."""

TIMM_BACKBONES = {
    "resnet18": BackboneConfig("resnet18", "basic", 64, (64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": BackboneConfig("resnet34", "basic", 64, (64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet50": BackboneConfig("resnet50"),
    "resnet101": BackboneConfig("resnet101", depths=(3, 4, 23, 3)),
    "resnet152": BackboneConfig("resnet152", depths=(3, 8, 36, 3)),
}
"""The residual networks that are the same in timm, torchvision and here, by their common name."""


def read_config(config: Json, preprocessor: Json, *, class_rows: int, source: str) -> tuple[DetrConfig, Layout]:
    """Return the configuration that a model directory's two json files describe, and the layout of its weights.

    Old and new forms are read; missing values are the paper's. `dilation` is applied if the weights are in timm's
    layout, whether or not `backbone_config.output_stride` says so too; in the other layout it is ignored, as
    `transformers` ignores it, because that is what such weights were run with. `auxiliary_loss` is ignored too: it
    changes nothing in the original's forward.

    Args:
        config: of config.json.
        preprocessor: the image processor's settings, of `detr.checkpoints.model_directory.read_preprocessor`.
        class_rows: rows of the class head in the weights; used if config.json has no class names.
        source: name of the model in error messages.

    Raises:
        CheckpointError: a setting is not supported, or a value is of a wrong type.
    """
    fields = Fields(config, f"checkpoint {source}: config.json")
    try:
        return _read_config(fields, Fields(preprocessor, f"checkpoint {source}: preprocessor_config.json"), class_rows)
    except CheckpointError:
        raise
    except ValueError as error:  # the configuration's own checks
        raise CheckpointError(f"{fields.where}: {error}") from error


def write_config(config: DetrConfig) -> tuple[dict[str, Any], Layout]:
    """Return a config.json from which `transformers` builds the same network, and the layout its weights must have.

    Raises:
        CheckpointError: `transformers` cannot express this network, or a class has no name, which `load` refuses.
    """
    if config.mask_head:
        raise CheckpointError(
            "a panoptic model cannot be saved; fine-tune it for boxes, which gives a model that can be saved."
        )
    nameless = next((category for category in config.categories if not category.name), None)
    if nameless is not None:
        raise CheckpointError(f"the model cannot be saved: class {nameless.id} has no name. Give it a name.")
    backbone, layout = _write_backbone(config.backbone)
    names = [category.name for category in config.categories]
    # of what this writes, which has `category_ids`
    usual: Resizing = "transformers" if config.pre_norm else "original"
    is_usual = config.resizing in (usual, "fit", "stretch", "none")
    return {
        "architectures": [f"{'TableTransformer' if config.pre_norm else 'Detr'}ForObjectDetection"],
        "model_type": next(name for name, is_pre_norm in MODEL_TYPES.items() if is_pre_norm == config.pre_norm),
        "activation_function": "relu",
        # with true, transformers would feed normalised outputs from one decoder layer to the next: another network
        "auxiliary_loss": False,
        "backbone_config": backbone,
        "backbone_name": config.backbone.name,
        "category_ids": [category.id for category in config.categories],
        "d_model": config.hidden_dim,
        "decoder_attention_heads": config.heads,
        "decoder_ffn_dim": config.feedforward_dim,
        "decoder_layers": config.decoder_layers,
        "dilation": config.backbone.dilation,
        "dropout": config.dropout,
        "dtype": "float32",
        "encoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.feedforward_dim,
        "encoder_layers": config.encoder_layers,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "num_queries": config.queries,
        "position_embedding_type": config.positions,
        **({} if layout == "timm" else {"use_timm_backbone": False}),
        **({} if is_usual else {"size_arithmetic": config.resizing}),
    }, layout


def write_preprocessor(config: DetrConfig) -> dict[str, Any]:
    """Return the preprocessor_config.json with which `transformers`' image processor does what ours does.

    Exception: with the size rule "original", if the longer side is capped, its result may differ by one or two pixels.
    """
    height, width = config.box
    size = {
        "fit": {"max_height": height, "max_width": width},
        "stretch": {"height": height, "width": width},
    }.get(config.resizing, {"shortest_edge": config.shorter, "longest_edge": config.longest})
    return {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_detection",
        "do_resize": config.resizing != "none",
        "size": size,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "do_pad": True,
    }


def _read_config(fields: Fields, preprocessor: Fields, class_rows: int) -> tuple[DetrConfig, Layout]:
    fields.require("model_type", *MODEL_TYPES, default="detr")
    pre_norm = MODEL_TYPES[fields.text("model_type", "detr")]
    fields.require("activation_function", "relu", default="relu")
    backbone, layout = _read_backbone(fields)
    categories = _read_categories(fields, class_rows)
    arithmetic = _read_arithmetic(fields, categories, pre_norm=pre_norm)
    resizing, shorter, longest, box = _read_size(preprocessor, arithmetic)
    mean, std = _read_normalisation(preprocessor)
    config = DetrConfig(
        backbone=backbone,
        hidden_dim=fields.integer("d_model", 256),
        heads=fields.shared("encoder_attention_heads", "decoder_attention_heads", 8),
        encoder_layers=fields.integer("encoder_layers", 6, most=1000),
        decoder_layers=fields.integer("decoder_layers", 6, most=1000),
        feedforward_dim=fields.shared("encoder_ffn_dim", "decoder_ffn_dim", 2048),
        dropout=fields.number("dropout", 0.1),
        queries=fields.integer("num_queries", 100),
        positions=_read_positions(fields),
        pre_norm=pre_norm,
        categories=categories,
        shorter=shorter,
        longest=longest,
        resizing=resizing,
        box=box,
        image_mean=mean,
        image_std=std,
    )
    return config, layout


def _read_backbone(fields: Fields) -> tuple[BackboneConfig, Layout]:
    fields.require("num_channels", 3, default=3)
    dilation = fields.boolean("dilation", default=False)
    if fields.get("backbone_config") is not None:
        inner = fields.within("backbone_config")
        inner.require("model_type", "timm_backbone", "resnet", default="resnet")
        if inner.get("model_type") == "timm_backbone":
            backbone = _read_timm(inner, inner, dilation=dilation)
            return replace(backbone, name=fields.text("backbone_name", backbone.name)), "timm"
        return _read_resnet(inner, fields), "resnet"
    if fields.boolean("use_timm_backbone", default=True):
        extra = fields.within("backbone_kwargs") if fields.get("backbone_kwargs") else Fields({}, fields.where)
        return _read_timm(fields, extra, dilation=dilation), "timm"
    fields.require("backbone", None, default=None)
    return _read_resnet(Fields({}, fields.where), fields), "resnet"


def _read_timm(fields: Fields, extra: Fields, *, dilation: bool) -> BackboneConfig:
    """Read timm's backbone. `fields` has `backbone`, `extra` is passed to timm; in the new form both are the same."""
    # "resnet50.a1_in1k": timm's tag names the source of the weights, not the network
    name = fields.text("backbone", "resnet50").removeprefix("timm/").partition(".")[0]
    if name not in TIMM_BACKBONES:
        raise fields.unusable("backbone", f"the supported backbones are {', '.join(TIMM_BACKBONES)}")
    indices = extra.get("out_indices")
    if indices is not None and (not isinstance(indices, list) or not indices or indices[-1] not in (4, -1)):
        raise extra.unusable("out_indices", "the last index must be 4, the last stage")
    extra.require("output_stride", None, 16, *([] if dilation else [32]), default=None)
    return replace(TIMM_BACKBONES[name], dilation=dilation or extra.get("output_stride") == 16)


def _read_resnet(fields: Fields, outer: Fields) -> BackboneConfig:
    fields.require("num_channels", 3, default=3)
    fields.require("hidden_act", "relu", default="relu")
    fields.require("downsample_in_first_stage", False, default=False)
    fields.require("downsample_in_bottleneck", False, default=False)
    fields.require("layer_type", *get_args(Block), default="bottleneck")
    usual = BackboneConfig()
    depths = fields.integers("depths", usual.depths, most=1000)
    last = f"stage{len(depths)}"
    features = fields.get("out_features")
    if features is not None and (not isinstance(features, list) or not features or features[-1] != last):
        raise fields.unusable("out_features", f"the last name must be {last!r}, the last stage")
    backbone = BackboneConfig(
        name="resnet",
        block=fields.text("layer_type", "bottleneck"),  # type: ignore[arg-type] # one of Block's, see above
        stem_width=fields.integer("embedding_size", usual.stem_width),
        stage_widths=fields.integers("hidden_sizes", usual.stage_widths, most=100_000),
        depths=depths,
    )
    if backbone.block == "bottleneck" and any(width % 4 for width in backbone.stage_widths):
        raise fields.unusable("hidden_sizes", "the sizes of bottleneck stages must be multiples of 4")
    return replace(backbone, name=outer.text("backbone_name", _standard_name(backbone) or backbone.name))


def _read_positions(fields: Fields) -> Positions:
    fields.require("position_embedding_type", *get_args(Positions), default="sine")
    return "learned" if fields.get("position_embedding_type") == "learned" else "sine"


def _read_categories(fields: Fields, class_rows: int) -> tuple[Category, ...]:
    """Return the categories; COCO's for COCO's names, and without names if the class head has COCO's 92 rows."""
    if fields.get("id2label") is None:
        count = fields.integer("num_labels", class_rows - 1)
        named = [f"LABEL_{index}" for index in range(count)]
        is_coco = count == len(COCO_CATEGORIES) and fields.get("category_ids") is None
    else:
        labels = fields.within("id2label")
        given = fields.get("id2label")
        named = [labels.text(str(index), "") for index in range(len(given))]
        if set(given) != {str(index) for index in range(len(given))} or not all(named):
            raise CheckpointError(f"{fields.where}: id2label must name the class indices 0 to {len(given) - 1}.")
        is_coco = len(named) == len(COCO_CATEGORIES) and all(
            name == coco.name or (not coco.is_used and name == f"LABEL_{coco.id}")
            for name, coco in zip(named, COCO_CATEGORIES, strict=True)
        )
    ids = list(range(len(named))) if fields.get("category_ids") is None else fields.get("category_ids")
    if not isinstance(ids, list) or len(ids) != len(named) or not all(map(is_integer, ids)):
        raise CheckpointError(
            f"{fields.where}: category_ids must be a list of {len(named)} integers, one for each class of id2label."
        )
    if fields.get("category_ids") is None and len(named) == len(COCO_PANOPTIC_CATEGORIES):
        named = _panoptic_names(named)
    if ids == list(range(len(named))) and named == [coco.name for coco in COCO_PANOPTIC_CATEGORIES]:
        return COCO_PANOPTIC_CATEGORIES
    if is_coco and ids == [coco.id for coco in COCO_CATEGORIES]:
        return COCO_CATEGORIES
    return tuple(Category(number, name) for number, name in zip(ids, named, strict=True))


def _panoptic_names(named: list[str]) -> list[str]:
    """Return the names of COCO's panoptic classes if these are their ids; the hub's models call some `LABEL_184`."""
    for name, coco in zip(named, COCO_PANOPTIC_CATEGORIES, strict=True):
        if name not in (coco.name, f"LABEL_{coco.id}"):
            return named
    return [coco.name for coco in COCO_PANOPTIC_CATEGORIES]


def _read_arithmetic(fields: Fields, categories: tuple[Category, ...], *, pre_norm: bool) -> Resizing:
    """Return the size arithmetic that a model was trained with: `size_arithmetic`, or what other fields imply.

    A Table Transformer was trained with that of `transformers`, and so was a DETR that a recent version of
    `transformers` wrote, unless its classes are COCO's: those are the original's own checkpoints. A file of
    `write_config` has `category_ids`, and `size_arithmetic` if the arithmetic is not the original's.
    """
    version = re.match(r"(\d+)\.(\d+)", fields.text("transformers_version", ""))
    is_new = version is not None and (int(version[1]), int(version[2])) >= _SINCE
    is_theirs = is_new and fields.get("category_ids") is None and categories not in COCO
    usual: Resizing = "transformers" if pre_norm or is_theirs else "original"
    fields.require("size_arithmetic", "original", "transformers", default=usual)
    return "transformers" if fields.text("size_arithmetic", usual) == "transformers" else "original"


def _read_size(fields: Fields, arithmetic: Resizing) -> tuple[Resizing, int, int, tuple[int, int]]:
    """Return the size rule: its kind, the shorter and the longest side, and the box of "fit" and "stretch".

    The order of the forms is that of `transformers`' DetrImageProcessor. It refuses `longest_edge` alone, which is read
    here as a box of that height and width, as in older versions. Keys of `fields` may be null.
    """
    fields.require("resample", 2, default=2)
    if not fields.boolean("do_resize", default=True):
        return "none", 800, 1333, (0, 0)
    given = fields.get("size")
    if isinstance(given, list) and len(given) == 2:
        given = {"height": given[0], "width": given[1]}
    if not isinstance(given, dict):
        return arithmetic, fields.integer("size", 800), fields.integer("max_size", 1333), (0, 0)
    size = Fields(given, f"{fields.where}: size")
    if size.get("shortest_edge") is not None:
        longest = size.integer("longest_edge", fields.integer("max_size", 1333))
        return arithmetic, size.integer("shortest_edge", 800), longest, (0, 0)
    forms: tuple[tuple[Resizing, str, str], ...] = (
        ("fit", "max_height", "max_width"),
        ("stretch", "height", "width"),
        ("fit", "longest_edge", "longest_edge"),
    )
    for resizing, high, wide in forms:
        if size.get(high) is not None and size.get(wide) is not None:
            box = size.integer(high, 0), size.integer(wide, 0)
            return resizing, min(box), max(box), box
    raise fields.unusable(
        "size", "expected shortest_edge and longest_edge, max_height and max_width, height and width, or longest_edge"
    )


def _read_normalisation(fields: Fields) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of RGB in 0..1, for any range that the processor scales pixels to."""
    mean, std = _read_channels(fields, "image_mean", IMAGE_MEAN), _read_channels(fields, "image_std", IMAGE_STD)
    if not all(std):
        raise fields.unusable("image_std", "pixels cannot be divided by 0")
    if not fields.boolean("do_normalize", default=True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = fields.get("rescale_factor")
    if factor is None:
        factor = 1 / 255
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise fields.unusable("rescale_factor", "expected a number above 0")
    if not fields.boolean("do_rescale", default=True):
        factor = 1.0
    # 1/255 may have been rounded to float32, too
    scale = 1.0 if abs(factor * 255 - 1) < 1e-6 else 1 / (255 * factor)
    return _three([value * scale for value in mean]), _three([value * scale for value in std])


def _read_channels(fields: Fields, name: str, usual: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return three numbers; those rounded to float32 (0.48500001430511475) are restored (0.485)."""
    given = fields.get(name)
    if given is None:
        return usual
    values = given if isinstance(given, list) else [given] * 3
    if len(values) != 3 or not all(_is_number(value) for value in values):
        raise fields.unusable(name, "expected a list of three numbers")
    rounded = [np.float32(value) for value in values]
    return _three(
        [float(str(short) if float(short) == value else value) for short, value in zip(rounded, values, strict=True)]
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _write_backbone(backbone: BackboneConfig) -> tuple[dict[str, Any], Layout]:
    standard = _standard_name(backbone)
    if standard is not None:
        return {
            "model_type": "timm_backbone",
            "backbone": standard,
            "features_only": True,
            "use_pretrained_backbone": False,
            "num_channels": 3,
            "out_indices": [1, 2, 3, 4],
            "output_stride": 16 if backbone.dilation else None,
        }, "timm"
    if backbone.dilation:
        raise CheckpointError(
            f"backbone {backbone.name} with dilation cannot be saved: transformers supports dilation only for "
            f"{', '.join(TIMM_BACKBONES)}."
        )
    return {
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": backbone.stem_width,
        "hidden_sizes": list(backbone.stage_widths),
        "depths": list(backbone.depths),
        "layer_type": backbone.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "out_features": [f"stage{len(backbone.depths)}"],
    }, "resnet"


def _standard_name(backbone: BackboneConfig) -> str | None:
    plain = replace(backbone, name="", dilation=False, norm="frozen")
    return next((name for name, known in TIMM_BACKBONES.items() if replace(known, name="") == plain), None)
