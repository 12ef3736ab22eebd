"""Load and save models, and identify them by a hash of their weights and configuration."""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detr.checkpoints.hub_config import MODEL_TYPES, read_config, write_config, write_preprocessor
from detr.checkpoints.identity import CLASS_BIAS, digest
from detr.checkpoints.layouts import from_file, to_file, weights_of
from detr.checkpoints.model_directory import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    WEIGHT_FILES,
    CheckpointError,
    model_files,
    parse_json,
    read_json,
    read_preprocessor,
)
from detr.checkpoints.references import EMBEDDED, locate
from detr.checkpoints.tensor_files import parse_safetensors, read_directory_tensors
from detr.checkpoints.weight_names import bare_names, has_mask_head
from detr.checkpoints.weights_file import read_weights_file
from detr.config import DetrConfig
from detr.model import Detr
from detr.segmentation.mask_head import PanopticDetr

__all__ = ["EMBEDDED", "CheckpointError", "dump", "fingerprint", "load", "load_files", "model_files", "save"]


def load(ref: str | os.PathLike[str], *, variant: str | None = None) -> Detr:
    """Return a network with its weights: on the CPU, float32, in evaluation mode.

    `ref` is one of
    - a name of an embedded model: "scenes" (a directory of that name is "./scenes");
    - a local directory as `save` writes it, or `transformers`' save_pretrained, today's and older ones, in the timm or
      the no_timm layout, safetensors or bin, whole or in shards;
    - an original `.pth`, also one of a training run, whose `args` say which DETR it is, or a `.ckpt` of Lightning.
      Plain and DC5 have the same weights, so without `args` the file's name (`detr-r50-dc5-f0fb7ef5.pth`) or `variant`
      must say which it is. If the name ends in a part of the sha256 (not in a date), that is checked. The numbers of
      classes and of queries are those of its weights. The file has no class names: if it has as many classes as COCO,
      COCO's names are used; otherwise LABEL_0, LABEL_1, ..., with ids from 0, which are the original's labels;
    - a hub id, `owner/name` or `owner/name@revision`. A path that exists wins.

    Every key must be present, known, and of the right shape. Prefixes that wrappers such as DDP add to each key
    (`module.`) are removed with a warning. Only tensors are unpickled. `detr.checkpoints.hub_config.read_config`
    documents how config.json is read where versions of `transformers` differ.

    Args:
        ref: see above.
        variant: for a `.pth` or `.ckpt`, a name of `detr.config.VARIANTS`, such as "detr-resnet-50-dc5".

    Raises:
        CheckpointError: there is no such model, it cannot be read, or it is not a DETR; the message says why.
    """
    source = os.fspath(ref)
    path = locate(ref)
    if path.is_file():
        config, layout, tensors = read_weights_file(path, variant, source=source)
        _mention_wrappers(bare_names(tensors), source)
        network = _empty(config)
        return _filled(network, from_file(tensors, network, layout, source=source))
    if variant is not None:
        raise CheckpointError(
            f"checkpoint {source}: variant applies only to .pth files; a model directory contains its own "
            "configuration. Omit variant."
        )
    return _load_directory(path, source)


def load_files(files: Mapping[str, bytes], *, source: str) -> Detr:
    """Return the network from the files of `dump`: on the CPU, float32, in evaluation mode.

    Args:
        files: contents by name: model.safetensors, config.json and preprocessor_config.json.
        source: name of the model in messages.

    Raises:
        CheckpointError: a file is damaged, or the model is not a DETR.
    """
    return _assemble(
        parse_safetensors(files[WEIGHT_FILES[0]], WEIGHT_FILES[0], source=source),
        parse_json(files[CONFIG_FILE], CONFIG_FILE, source=source),
        parse_json(files[PREPROCESSOR_FILE], PREPROCESSOR_FILE, source=source),
        source,
    )


def dump(model: Detr) -> dict[str, bytes]:
    """Return the files of a model directory by name: weights, configuration and preprocessing, without writing them.

    A trainable norm is saved as a frozen norm with the same result in evaluation.

    Raises:
        CheckpointError: the format of `transformers` cannot express the network.
    """
    config, layout = write_config(model.config)
    return {
        WEIGHT_FILES[0]: safetensors.torch.save(to_file(model, layout), metadata={"format": "pt"}),
        CONFIG_FILE: _json(config),
        PREPROCESSOR_FILE: _json(write_preprocessor(model.config)),
    }


def save(model: Detr, directory: str | os.PathLike[str]) -> None:
    """Write a model directory that `load` and `transformers` read alike: weights, configuration, preprocessing.

    The directory is never left half-written. An existing model directory is replaced; files in it that this function
    does not write (a card, metrics) are kept. A trainable norm is saved as a frozen norm with the same result in
    evaluation.

    Raises:
        CheckpointError: the format of `transformers` cannot express the network, or `directory` contains other files or
            cannot be written.
    """
    target = Path(directory).expanduser().resolve()
    if target.exists() and not _may_be_replaced(target):
        raise CheckpointError(
            f"cannot save to {target}: it is not empty and is not a model directory. Choose another directory."
        )
    files = dump(model)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        fresh.mkdir(parents=True)
        for name, content in files.items():
            _write(fresh / name, content)
        _put_in_place(fresh, target)
    except OSError as error:  # such as of a mount point, which cannot be replaced
        raise CheckpointError(
            f"cannot save to {target}: {error.strerror or error}. The model is written to a temporary directory beside "
            "it and then renamed; choose a directory whose parent is writable."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # after a success there is nothing left to remove


def fingerprint(model: Detr) -> str:
    """Return the sha256, in hex, of everything that determines detections: network, classes, sizes, weights.

    A model has the same fingerprint whichever file it was loaded from. Plain and DC5 have different ones, and so have
    models with different category ids, or with weights in another precision than float32.
    """
    weights = sorted(weights_of(model).items())
    return digest(
        model.config,
        ((name, tensor.detach().to("cpu", torch.float32).contiguous().numpy()) for name, tensor in weights),
    )


def _load_directory(directory: Path, source: str) -> Detr:
    return _assemble(
        read_directory_tensors(directory, source=source),
        read_json(directory / CONFIG_FILE, source=source),
        read_preprocessor(directory, source=source),
        source,
    )


def _assemble(
    tensors: dict[str, Tensor], config_json: dict[str, Any], preprocessor: dict[str, Any], source: str
) -> Detr:
    """Build a network from a model directory's tensors, configuration and preprocessing."""
    names = bare_names(tensors)
    _mention_wrappers(names, source)
    config, layout = read_config(
        config_json,
        preprocessor,
        class_rows=next((tensors[name].numel() for name, bare in names.items() if bare == CLASS_BIAS), 0),
        source=source,
    )
    network = _empty(replace(config, mask_head=has_mask_head(names.values())))
    return _filled(network, from_file(tensors, network, layout, source=source))


def _mention_wrappers(names: Mapping[str, str], source: str) -> None:
    """Log a warning if the names in a file have prefixes that the network's do not have."""
    usual = "detr." if has_mask_head(names.values()) else ""
    changed = next(((name, bare) for name, bare in names.items() if name.removeprefix(usual) != bare), None)
    if changed is not None:
        logging.getLogger(__name__).warning(
            "checkpoint %s: a prefix is removed from the names of its weights: %s is read as %s.", source, *changed
        )


class _NothingDrawn(TorchFunctionMode):
    """Skips random initialisation, for which PyTorch on the device "meta" would import its compiler and sympy."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init" or function in (Tensor.uniform_, Tensor.normal_):
            return args[0] if args else named["tensor"]
        return function(*args, **named)


def _empty(config: DetrConfig) -> Detr:
    with torch.device("meta"), _NothingDrawn():  # does not allocate or initialise weights that are overwritten anyway
        return PanopticDetr(config) if config.mask_head else Detr(config)


def _filled(network: Detr, state: dict[str, Tensor]) -> Detr:
    network.load_state_dict(state, assign=True)
    return network.eval()


def _may_be_replaced(target: Path) -> bool:
    if not target.is_dir():
        return False
    if not any(target.iterdir()):
        return True
    try:
        return read_json(target / CONFIG_FILE, source=str(target)).get("model_type") in MODEL_TYPES
    except CheckpointError:
        return False


def _put_in_place(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`, then move over the other files of an older directory of that name."""
    if not target.exists():
        fresh.rename(target)
        return
    old = fresh.with_suffix(".old")
    target.rename(old)
    fresh.rename(target)
    for path in old.iterdir():
        # image processor settings in it would override ours
        if path.name != PROCESSOR_FILE and not (target / path.name).exists():
            path.rename(target / path.name)
    shutil.rmtree(old)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # after a power failure the rename must not be visible without the content


def _json(value: dict[str, object]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
