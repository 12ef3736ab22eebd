"""Names of each weight: in the original's files, in `transformers`' two kinds of files, and in our state dict.

Ours are the original's names, so its `.pth` needs no translation. `transformers` writes the residual network either
under timm's names ("timm") or under its own ("resnet"), the rest alike in both, and splits what the original keeps as
one `in_proj` into q, k and v.
"""

import re
from collections.abc import Iterable
from typing import Literal

Layout = Literal["original", "timm", "resnet"]
"""The naming scheme of a file."""


def names_in_file(key: str, layout: Layout) -> tuple[str, ...]:
    """Return the names of the original's `key` in a file of `layout`.

    One name, or three: q, k and v, which are concatenated along the first dimension to give the original's tensor.
    """
    if layout == "original":
        return (key,)
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    if layout == "resnet" and key.startswith(_NETWORK):
        key = _NETWORK + _resnet_name(key.removeprefix(_NETWORK))
    if ".in_proj_" in key:
        return tuple(key.replace(".in_proj_", f".{part}_proj.") for part in "qkv")
    return (key,)


def usual_name(name: str, layout: Layout) -> str:
    """Return the name in the spelling of `names_in_file` for the weight `name` of a file.

    `transformers` has two spellings: that of its files and that of its running model, which some versions wrote.
    """
    if layout != "original":
        for pattern, replacement in _SPELLINGS:
            name = re.sub(pattern, replacement, name)
    return name


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Return each name in a file mapped to the name without prefixes of PyTorch wrappers and training scripts.

    DDP, `torch.compile` and FSDP add a part to each name (`module.`, `_orig_mod.`, ...). A Lightning module that has
    the network as `model` adds that, and also has the criterion's class weights, which do not affect detections and are
    left out. A prefix is removed only if every name has it and the class head follows it.
    """
    bare = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    bare = {name: short for name, short in bare.items() if not short.startswith("criterion.")}
    if has_mask_head(bare.values()):  # panoptic models have everything else within `detr`
        bare = {name: short.removeprefix("detr.") for name, short in bare.items()}
    heads = [short for short in bare.values() if short.endswith(CLASS_BIASES)]
    if len(heads) == 1:
        prefix = heads[0].removesuffix("class_embed.bias").removesuffix("class_labels_classifier.bias")
        if re.fullmatch(_HOLDERS, prefix) and all(short.startswith(prefix) for short in bare.values()):
            bare = {name: short.removeprefix(prefix) for name, short in bare.items()}
    return bare


def layout_of(names: Iterable[str]) -> Layout:
    """Return the layout of a file, given its names without wrapper prefixes."""
    names = list(names)
    if not any(name.startswith(("class_labels_classifier.", "model.input_projection.")) for name in names):
        return "original"
    return "resnet" if any(".embedder.embedder." in name for name in names) else "timm"


def has_mask_head(names: Iterable[str]) -> bool:
    """Return whether a file has the mask head of a panoptic model, given the names of `bare_names`."""
    return any(name.startswith("mask_head.") for name in names)


def is_counter(key: str) -> bool:
    """Return whether a weight is a trainable norm's `num_batches_tracked`, which does not affect detections."""
    return key.rpartition(".")[2] == "num_batches_tracked"


def _resnet_name(key: str) -> str:
    """Convert timm's name of a weight of the residual network to that of `transformers`' own network."""
    path, kind = key.rsplit(".", 1)
    found = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(?:conv|bn)(\d)|downsample\.\d)", path)
    if found is None:
        place = "embedder.embedder"
    else:
        stage, block, number = found.groups()
        within = "shortcut" if number is None else f"layer.{int(number) - 1}"
        place = f"encoder.stages.{int(stage) - 1}.layers.{block}.{within}"
    is_norm = re.search(r"(?:^|\.)(?:bn\d|downsample\.1)$", path) is not None
    return f"{place}.{'normalization' if is_norm else 'convolution'}.{kind}"


_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_HOLDERS = r"((model|net|network|detector)\.)+"  # attribute names of the network in training scripts
CLASS_BIASES = ("class_embed.bias", "class_labels_classifier.bias")
"""Endings of the name of a weight that every DETR has, in the original's files and in those of `transformers`."""
_NETWORK = "model.backbone.conv_encoder.model."
_RULES = (
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^backbone\.1\.row_embed\.", "model.position_embedding.row_embeddings."),
    (r"^backbone\.1\.col_embed\.", "model.position_embedding.column_embeddings."),
    (r"^backbone\.0\.body\.", _NETWORK),
    (r"^transformer\.((?:en|de)coder)\.norm\.", r"model.\1.layernorm."),
    (r"^transformer\.((?:en|de)coder\.layers\.\d+)\.linear([12])\.", r"model.\1.fc\2."),
    (r"^transformer\.((?:en|de)coder\.layers\.\d+)\.norm1\.", r"model.\1.self_attn_layer_norm."),
    (r"^transformer\.(encoder\.layers\.\d+)\.norm2\.", r"model.\1.final_layer_norm."),
    (r"^transformer\.(decoder\.layers\.\d+)\.norm2\.", r"model.\1.encoder_attn_layer_norm."),
    (r"^transformer\.(decoder\.layers\.\d+)\.norm3\.", r"model.\1.final_layer_norm."),
    (r"^transformer\.(decoder\.layers\.\d+)\.multihead_attn\.", r"model.\1.encoder_attn."),
    (r"^transformer\.((?:en|de)coder\.layers\.\d+)\.self_attn\.", r"model.\1.self_attn."),
)
_SPELLINGS = (
    (r"^model\.backbone\.model\.", _NETWORK),
    (r"^model\.backbone\.position_embedding\.", "model.position_embedding."),
    (r"_attn\.o_proj\.", "_attn.out_proj."),
    (r"\.mlp\.fc([12])\.", r".fc\1."),
)
