"""Model types of `transformers`: DETR, other supported detectors, and refused types. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr.checkpoints.hub_config import MODEL_TYPES
from detr.checkpoints.model_directory import CONFIG_FILE, CheckpointError, read_json
from detr.classes import COCO_CATEGORIES, Category

FAMILIES: Mapping[str, str] = {
    "conditional_detr": "Conditional DETR",
    "d_fine": "D-FINE",
    "dab-detr": "DAB-DETR",
    "deformable_detr": "Deformable DETR",
    "deimv2": "DEIMv2",
    "lw_detr": "LW-DETR",
    "rf_detr": "RF-DETR",
    "rt_detr": "RT-DETR",
    "rt_detr_v2": "RT-DETR v2",
    "yolos": "YOLOS",
}
"""Model types that run through `transformers`, and their published names. Each has a test."""

ONE_SIZE = frozenset(("d_fine", "deimv2", "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2"))
"""Model types whose networks require sides that are multiples of a stride: all pictures must be resized to one size."""

HALVING = frozenset(("d_fine", "deimv2", "rt_detr", "rt_detr_v2"))
"""Types of `ONE_SIZE` that accept every multiple of 32 pixels; for the others it depends on patches and windows."""

NATIVE = "detr"
"""Model type of DETR and Table Transformer, which run in this package's network."""

_TEXT_QUERIES = ("grounding-dino", "mm-grounding-dino", "omdet-turbo", "owlv2", "owlvit")
_DOCUMENTS = ("pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4")
_TEXT_LINES = ("pp_ocrv5_mobile_det", "pp_ocrv5_server_det", "pp_ocrv6_medium_det", "pp_ocrv6_small_det")

# COCO's 80 classes in the spelling of Darknet's list, which several checkpoints use
_DARKNET = {
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}


def family_of(config: Mapping[str, Any], *, source: str) -> str | None:
    """Return the model type of a config.json that runs through `transformers`; None for DETR and Table Transformer.

    Args:
        config: the content of config.json.
        source: name of the model in error messages.

    Raises:
        CheckpointError: the model is of another type; the message names the task that it does instead of detecting
            boxes.
    """
    model_type = config.get("model_type", NATIVE)
    if not isinstance(model_type, str):
        raise CheckpointError(f"checkpoint {source}: config.json: model_type must be a string, not {model_type!r}.")
    if model_type in MODEL_TYPES:
        return None
    if model_type in FAMILIES:
        return _checked(model_type, config, source)
    if model_type in _TEXT_QUERIES:
        reason = "it detects what a text describes, and has no fixed classes"
    elif model_type in _TEXT_LINES:
        reason = "it finds outlines of text lines, not boxes of classes"
    elif model_type in _DOCUMENTS:
        reason = "it finds the order of the parts of a document, for which the detection table has no column"
    else:
        reason = "it is not a supported object detector"
    raise CheckpointError(
        f"checkpoint {source}: a model of type {model_type!r} cannot be used: {reason}. The supported model types are "
        f"{', '.join(sorted((*MODEL_TYPES, *FAMILIES)))}."
    )


def model_family(path: Path, *, source: str) -> str:
    """Return `NATIVE`, or the key of `FAMILIES` of a model directory; files of weights are native.

    Raises:
        CheckpointError: the model does not detect boxes.
    """
    config = path / CONFIG_FILE
    if not config.is_file():  # a .pth or .ckpt, or something that `load` refuses
        return NATIVE
    return family_of(read_json(config, source=source), source=source) or NATIVE


def family_categories(config: Mapping[str, Any], names: Mapping[int, str], *, source: str) -> tuple[Category, ...]:
    """Return the classes of a model by index, with the ids that its data set gives them.

    The ids are `category_ids` of config.json if present, else COCO's if the names are COCO's 80 in order (in either of
    the two usual spellings), else the indices. The names are always the model's.

    Args:
        config: the content of config.json.
        names: name of each class index.
        source: name of the model in error messages.

    Raises:
        CheckpointError: indices are missing, or `category_ids` does not fit.
    """
    if not names or sorted(names) != list(range(len(names))):
        raise CheckpointError(
            f"checkpoint {source}: config.json: id2label must name the class indices 0 to {max(0, len(names) - 1)}, "
            f"but it names {', '.join(map(str, sorted(names)[:8]))}. A data set's ids belong in category_ids."
        )
    nameless = [index for index in sorted(names) if not names[index]]
    if nameless:
        raise CheckpointError(f"checkpoint {source}: config.json: id2label has no name for class {nameless[0]}.")
    labels = [names[index] for index in range(len(names))]
    used = [category for category in COCO_CATEGORIES if category.is_used]
    given = config.get("category_ids")
    if given is not None:
        if not isinstance(given, list) or len(given) != len(labels) or not all(type(one) is int for one in given):
            raise CheckpointError(
                f"checkpoint {source}: config.json: category_ids must be a list of {len(labels)} integers, one for "
                "each class of id2label."
            )
        ids = given
    elif labels in ([one.name for one in used], [_DARKNET.get(one.name, one.name) for one in used]):
        ids = [one.id for one in used]
    else:
        ids = list(range(len(labels)))
    return tuple(Category(number, name) for number, name in zip(ids, labels, strict=True))


def _checked(model_type: str, config: Mapping[str, Any], source: str) -> str:
    """Refuse checkpoints of a family's other tasks, such as segmentation, whose weights differ from its detector's."""
    architectures = config.get("architectures") or []
    if isinstance(architectures, str):
        architectures = [architectures]
    wrong = [name for name in architectures if not str(name).endswith("ForObjectDetection")]
    if wrong:
        raise CheckpointError(
            f"checkpoint {source}: {wrong[0]} does not detect boxes. Only {FAMILIES[model_type]} models for object "
            "detection (...ForObjectDetection) can be used."
        )
    return model_type
