"""Conversion between the weights of a file, in any layout, and those of a network."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from detr.checkpoints.model_directory import CheckpointError
from detr.checkpoints.weight_names import Layout, bare_names, is_counter, names_in_file, usual_name
from detr.model import Detr

__all__ = [
    "CheckpointError",
    "Layout",
    "from_file",
    "names_in_file",
    "summary",
    "to_file",
    "weights_of",
    "wrong_tensors",
]

MENTIONED = 3
"""Wrong keys that a message lists; it counts the others."""


def weights_of(model: Detr) -> dict[str, Tensor]:
    """Return the state dict without the counters of trainable norms, which no layout has."""
    return {key: tensor for key, tensor in model.state_dict().items() if not is_counter(key)}


def to_file(model: Detr, layout: Layout) -> dict[str, Tensor]:
    """Return the weights in `layout`: float32, contiguous, on the CPU."""
    found = {}
    for key, tensor in weights_of(model).items():
        names = names_in_file(key, layout)
        for name, part in zip(names, tensor.chunk(len(names)), strict=True):
            found[name] = _float32(part)
    return found


def from_file(tensors: Mapping[str, Tensor], network: Detr, layout: Layout, *, source: str) -> dict[str, Tensor]:
    """Return a state dict for `network` from a file's tensors: float32 copies of exactly the network's keys.

    Only `num_batches_tracked` is ignored. Both spellings of `transformers` are accepted: that of its files and that of
    its running model, which some versions may have written.

    Args:
        tensors: the file's tensors by its names.
        network: built from the file's configuration; only keys and shapes are read, so it may be on the meta device.
        layout: whose names they are.
        source: name of the file in error messages.

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
    # cat also copies a single part: safetensors returns views of the mapped file
    state = {key: _float32(torch.cat([given[name] for name in parts])) for key, parts in names.items()}
    broken = [f"{key!r} contains NaN or infinite values" for key, tensor in state.items() if not _is_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"checkpoint {source}: {summary(broken)}. Use a checkpoint from before the training diverged."
        )
    return state


def wrong_tensors(
    given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, floating: bool = True
) -> list[str]:
    """Return one clause for each problem of a file's tensors: missing, unknown, of another shape or type.

    Args:
        given: the tensors by name.
        shapes: the expected names and shapes, complete.
        floating: whether all must be floating numbers.
    """
    return [*_wrong_keys(given, shapes), *_wrong_values(given, shapes, floating=floating)]


def summary(clauses: Iterable[str]) -> str:
    """Return the first few as text, and the number of the others."""
    listed = list(clauses)
    rest = len(listed) - 2 * MENTIONED
    return ", ".join(listed[: 2 * MENTIONED]) + (f" and {rest} more are wrong" if rest > 0 else "")


def _given(tensors: Mapping[str, Tensor], layout: Layout, source: str) -> dict[str, Tensor]:
    """Return the tensors by the names that `names_in_file` gives, whichever spelling the file uses."""
    given: dict[str, Tensor] = {}
    for name, bare in bare_names(tensors).items():
        if is_counter(name):
            continue
        usual = usual_name(bare, layout)
        if usual in given:
            raise CheckpointError(f"checkpoint {source}: the weight {usual!r} appears under two names.")
        given[usual] = tensors[name]
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
            sort = "plain floating-point tensor" if floating else "plain tensor"
            wrong.append(f"{name!r} is not a {sort} ({tensor.dtype}, {tensor.layout})")
    return wrong


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
