"""The identity of a model: a sha256 of everything that determines its detections, computed with or without torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from detr.checkpoints.hub_config import read_config
from detr.checkpoints.model_directory import (
    CONFIG_FILE,
    INDEX_ENDING,
    CheckpointError,
    read_json,
    read_preprocessor,
    shard_names,
    weights_file,
)
from detr.checkpoints.weight_names import Layout, bare_names, has_mask_head, is_counter, names_in_file, usual_name
from detr.checkpoints.weight_shapes import weight_shapes
from detr.config import DetrConfig

_DTYPES = ("F64", "F32", "F16")  # types that numpy and torch convert to float32 in the same way

CLASS_BIAS = "class_labels_classifier.bias"
"""The weight in a model directory from which the number of classes is read."""


def digest(config: DetrConfig, weights: Iterable[tuple[str, NDArray[np.float32]]]) -> str:
    """Return the fingerprint of a network.

    Args:
        config: the network's; names and settings that only training uses are left out.
        weights: names and contiguous float32 values, in order of names.
    """
    hashed = hashlib.sha256(json.dumps(_deciding(config), sort_keys=True).encode())
    for name, values in weights:
        hashed.update(f"\n{name} {values.shape}\n".encode())
        hashed.update(values.data)
    return hashed.hexdigest()


def identify_directory(directory: Path) -> tuple[DetrConfig, str] | None:
    """Return the configuration and fingerprint of a model directory in safetensors, without importing torch.

    They equal those of the network that `detr.load` returns. One weight at a time is in memory. None means that the
    directory must be loaded instead: its weights are in a pickle or in a type that numpy does not have, or `load` may
    refuse it.
    """
    source = str(directory)
    try:
        weights = weights_file(directory, source=source)
        paths = [weights]
        if weights.name.endswith(INDEX_ENDING):
            paths = [directory / name for name in shard_names(weights, source=source)]
        if any(path.suffix != ".safetensors" for path in paths):
            return None
        with ExitStack() as opened:
            # framework "np": with "pt" safetensors would import torch
            files = [opened.enter_context(safetensors.safe_open(path, framework="np")) for path in paths]
            holders = [(name, file) for file in files for name in file.keys()]  # noqa: SIM118 - not a mapping
            return _identify(directory, holders, source)
    except (CheckpointError, safetensors.SafetensorError, OSError, ValueError):
        return None  # `load` reports what is wrong


def _identify(directory: Path, holders: Sequence[tuple[str, Any]], source: str) -> tuple[DetrConfig, str] | None:
    by_name = dict(holders)
    if len(by_name) != len(holders):
        return None  # a weight is in two files
    config, layout = read_config(
        read_json(directory / CONFIG_FILE, source=source),
        read_preprocessor(directory, source=source),
        class_rows=_class_rows(by_name),
        source=source,
    )
    config = replace(config, mask_head=has_mask_head(bare_names(by_name).values()))
    shapes = weight_shapes(config)
    found = _find(by_name, shapes, layout)
    if found is None:
        return None
    values = _Values()
    fingerprint = digest(config, ((key, values.read(found[key])) for key in sorted(found)))
    return (config, fingerprint) if values.are_finite else None


def _class_rows(by_name: Mapping[str, Any]) -> int:
    """Return the number of rows of the class head, 0 if the weights have no class head."""
    for name, bare in bare_names(by_name).items():
        if bare == CLASS_BIAS:
            return int(np.prod(by_name[name].get_slice(name).get_shape()))
    return 0


def _find(
    by_name: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], layout: Layout
) -> dict[str, list[tuple[str, Any]]] | None:
    """Return the names and files of the one or three parts of each weight of the network; None if they do not fit."""
    given: dict[str, tuple[str, Any]] = {}
    for name, bare in bare_names(by_name).items():
        if is_counter(name):
            continue
        usual = usual_name(bare, layout)
        if usual in given:
            return None
        given[usual] = (name, by_name[name])
    found = {}
    for key, shape in shapes.items():
        names = names_in_file(key, layout)
        part_shape = [shape[0] // len(names), *shape[1:]]
        parts = [given.pop(name) for name in names if name in given]
        slices = [file.get_slice(name) for name, file in parts]
        if len(parts) != len(names) or any(
            list(one.get_shape()) != part_shape or one.get_dtype() not in _DTYPES for one in slices
        ):
            return None
        found[key] = parts
    return None if given else found


class _Values:
    """Reader of weights as float32; records whether all of them were finite."""

    def __init__(self) -> None:
        self.are_finite = True

    def read(self, parts: Sequence[tuple[str, Any]]) -> NDArray[np.float32]:
        arrays = [file.get_tensor(name) for name, file in parts]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(joined, dtype=np.float32)
        self.are_finite = self.are_finite and bool(np.isfinite(values).all())
        return values


def _deciding(config: DetrConfig) -> dict[str, object]:
    identity = asdict(config)
    # names, and settings that only training uses
    del identity["dropout"], identity["backbone"]["name"], identity["backbone"]["norm"]
    # settings added later: models that do not use them keep the fingerprint that tables have recorded
    usual = asdict(DetrConfig())
    for name in ("resizing", "box", "image_mean", "image_std", "mask_head"):
        if identity[name] == usual[name]:
            del identity[name]
    return identity
