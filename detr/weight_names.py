"""What each weight is called: in the original's files, in `transformers`' two kinds of files, and in our state dict.

Ours are the original's names, so its `.pth` needs no translation. `transformers` writes the residual network either
under timm's names ("timm") or under its own ("resnet"), the rest alike in both, and splits what the original keeps as
one `in_proj` into q, k and v.
"""

import re
from typing import Literal

Layout = Literal["original", "timm", "resnet"]
"""Whose names a file uses."""


def names_in_file(key: str, layout: Layout) -> tuple[str, ...]:
    """Return the names under which a file of `layout` keeps the original's `key`.

    One name, or three: q, k and v, which stacked along the first dimension are the original's tensor.
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
    """Return the name that `names_in_file` gives for a weight that a file calls `name`.

    `transformers` has two spellings: that of its files and that of its running model, which some versions wrote.
    """
    if layout != "original":
        for pattern, replacement in _SPELLINGS:
            name = re.sub(pattern, replacement, name)
    return name


def is_counter(key: str) -> bool:
    """Return whether a weight is the counter `num_batches_tracked` of a trainable norm, which decides nothing."""
    return key.rpartition(".")[2] == "num_batches_tracked"


def _resnet_name(key: str) -> str:
    """Turn timm's name of a weight of the residual network into that of `transformers`' own network."""
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


_NETWORK = "model.backbone.conv_encoder.model."
_RULES = (
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^backbone\.1\.row_embed\.", "model.position_embedding.row_embeddings."),
    (r"^backbone\.1\.col_embed\.", "model.position_embedding.column_embeddings."),
    (r"^backbone\.0\.body\.", _NETWORK),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
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
