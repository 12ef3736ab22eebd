"""What each weight is called: in the original's files, in `transformers`' two kinds of files, and in our state dict.

Ours are the original's names, so its `.pth` needs no translation. `transformers` writes the residual network either
under timm's names ("timm") or under its own ("resnet"), the rest alike in both, and splits what the original keeps as
one `in_proj` into q, k and v.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from detr.model import Detr

Layout = Literal["original", "timm", "resnet"]
"""Whose names a file uses."""

MENTIONED = 3
"""Wrong keys that a message names before it only counts the rest."""


class CheckpointError(ValueError):
    """A model that cannot be read or written, and why."""


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


def weights_of(model: Detr) -> dict[str, Tensor]:
    """Return the state dict without the counters that a trainable norm adds and no layout has."""
    return {key: tensor for key, tensor in model.state_dict().items() if not _is_counter(key)}


def to_file(model: Detr, layout: Layout) -> dict[str, Tensor]:
    """Return the weights as a file of `layout` holds them: float32, contiguous, on the CPU."""
    found = {}
    for key, tensor in weights_of(model).items():
        names = names_in_file(key, layout)
        for name, part in zip(names, tensor.chunk(len(names)), strict=True):
            found[name] = _float32(part)
    return found


def from_file(tensors: Mapping[str, Tensor], network: Detr, layout: Layout, *, source: str) -> dict[str, Tensor]:
    """Return a state dict for `network` out of a file's tensors: float32, copied, complete and nothing else.

    `num_batches_tracked` is ignored, exactly that. Both spellings of `transformers` are known: that of its files and
    that of its running model, which some versions may have written.

    Args:
        tensors: what the file holds, by its names.
        network: of the file's configuration; only keys and shapes are looked at, so it may be on the meta device.
        layout: whose names they are.
        source: what messages call the file.

    Raises:
        CheckpointError: a key is missing, unexpected, of a wrong shape, not floating, or not finite.
    """
    given = _given(tensors, layout, source)
    wanted = weights_of(network)
    names = {key: names_in_file(key, layout) for key in wanted}
    shapes = {
        name: (shape[0] // len(parts), *shape[1:])
        for key, parts in names.items()
        for name, shape in zip(parts, [tuple(wanted[key].shape)] * len(parts), strict=True)
    }
    wrong = wrong_tensors(given, shapes)
    if wrong:
        config = network.config
        raise CheckpointError(
            f"checkpoint {source}: {summary(wrong)}. It is not a DETR of this configuration ({config.backbone.name}, "
            f"{config.encoder_layers}+{config.decoder_layers} layers, {config.queries} queries, "
            f"{config.class_count} classes)."
        )
    # cat copies also where there is one part: what safetensors returns are views into the mapped file
    state = {key: _float32(torch.cat([given[name] for name in parts])) for key, parts in names.items()}
    broken = [f"{key!r} holds numbers that are not finite" for key, tensor in state.items() if not _is_finite(tensor)]
    if broken:
        raise CheckpointError(f"checkpoint {source}: {summary(broken)}. Take a checkpoint from before it diverged.")
    return state


def wrong_tensors(
    given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, floating: bool = True
) -> list[str]:
    """Return what is wrong with a file's tensors, a clause each: missing, unknown, of another shape or sort.

    Args:
        given: the tensors by name.
        shapes: what should be there, and nothing else.
        floating: whether all must be floating numbers.
    """
    return [*_wrong_keys(given, shapes), *_wrong_values(given, shapes, floating=floating)]


def summary(clauses: Iterable[str]) -> str:
    """Join the first few and count the rest."""
    listed = list(clauses)
    rest = len(listed) - 2 * MENTIONED
    return ", ".join(listed[: 2 * MENTIONED]) + (f" and {rest} more are wrong" if rest > 0 else "")


def _given(tensors: Mapping[str, Tensor], layout: Layout, source: str) -> dict[str, Tensor]:
    """Return the tensors by the names that `names_in_file` gives, whichever spelling the file uses."""
    if any(name.startswith(("detr.", "bbox_attention.", "mask_head.")) for name in tensors):
        raise CheckpointError(f"checkpoint {source}: it is a panoptic model; only detection models are read.")
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _is_counter(name):
            continue
        usual = name
        if layout != "original":
            for pattern, replacement in _SPELLINGS:
                usual = re.sub(pattern, replacement, usual)
        if usual in given:
            raise CheckpointError(f"checkpoint {source}: {usual!r} is there twice, in two spellings.")
        given[usual] = tensor
    return given


def _wrong_keys(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [f"{name!r} {shape} is missing" for name, shape in shapes.items() if name not in given]
    unknown = [f"{name!r} is unknown" for name in given if name not in shapes]
    return [*missing[:MENTIONED], *unknown[:MENTIONED], *missing[MENTIONED:], *unknown[MENTIONED:]]


def _wrong_values(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, floating: bool) -> list[str]:
    wrong = []
    for name, shape in shapes.items():
        tensor = given.get(name)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            wrong.append(f"{name!r} is {tuple(tensor.shape)}, expected {shape}")
        elif (
            (floating and not tensor.is_floating_point())
            or tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
        ):
            sort = "plain tensor of floating numbers" if floating else "plain tensor"
            wrong.append(f"{name!r} is not a {sort} ({tensor.dtype}, {tensor.layout})")
    return wrong


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


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
