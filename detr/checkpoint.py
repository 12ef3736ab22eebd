"""Models from anywhere, and models for anybody: load, save, and what tells one network from another."""

import difflib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from detr.classes import Category
from detr.config import VARIANTS, DetrConfig
from detr.hub_config import read_config, write_config, write_preprocessor
from detr.identity import digest
from detr.layouts import from_file, to_file, weights_of
from detr.model import Detr
from detr.model_directory import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    WEIGHT_FILES,
    CheckpointError,
    model_files,
    read_json,
)
from detr.references import EMBEDDED, locate
from detr.tensor_files import read_directory_tensors, read_original

__all__ = ["EMBEDDED", "CheckpointError", "fingerprint", "load", "model_files", "save"]

_OFFICIAL_FILE = re.compile(r"detr[-_](?:r|resnet[-_]?)(50|101)([-_]dc5)?(?:[-_][0-9a-f]{8,64})?\.pth", re.IGNORECASE)
_PANOPTIC_FILE = re.compile(r"detr[-_].*panoptic.*\.pth", re.IGNORECASE)


def load(ref: str | os.PathLike[str], *, variant: str | None = None) -> Detr:
    """Return a network with its weights: on the CPU, float32, in evaluation mode.

    `ref` is one of
    - a name of an embedded model: "scenes" (a directory of that name is "./scenes");
    - a local directory as `save` writes it, or `transformers`' save_pretrained, today's and older ones, in the timm or
      the no_timm layout, safetensors or bin, whole or in shards;
    - an original `.pth`, also one of a training run. Nothing in it tells plain from DC5, so the file's name must
      (`detr-r50-dc5-f0fb7ef5.pth`) or `variant`. Where the name ends in a part of the sha256, that is checked. The
      numbers of classes and of queries are those of its weights. The file names no class: as many as COCO's are COCO's,
      others are called LABEL_0, LABEL_1, ..., with ids from 0, which are the original's labels;
    - a hub id, `owner/name` or `owner/name@revision`. A path that exists wins.

    Every key must be there, known, and of the right shape. Nothing is ever unpickled beyond tensors. What a
    config.json means where versions differ: `detr.hub_config.read_config`.

    Args:
        ref: see above.
        variant: for a `.pth`, a name of `detr.config.VARIANTS`, such as "detr-resnet-50-dc5".

    Raises:
        CheckpointError: there is no such model, it cannot be read, or it is not a DETR; a sentence that says why.
    """
    source = os.fspath(ref)
    path = locate(ref)
    if path.is_file():
        return _load_original(path, variant, source)
    if variant is not None:
        raise CheckpointError(
            f"checkpoint {source}: variant is only for .pth files; a directory has its own configuration."
        )
    return _load_directory(path, source)


def save(model: Detr, directory: str | os.PathLike[str]) -> None:
    """Write a model directory that `load` and `transformers` read alike: weights, configuration, preprocessing.

    The directory appears whole or not at all. One that is a model directory already is replaced; files in it that this
    does not write (a card, metrics) are carried over. A trainable norm is saved as the frozen one that it is in
    evaluation.

    Raises:
        CheckpointError: `transformers` has no words for the network, or `directory` holds something else than a model.
    """
    target = Path(directory).expanduser().resolve()
    config, layout = write_config(model.config)
    if target.exists() and not _may_be_replaced(target):
        raise CheckpointError(f"cannot save to {target}: it is not empty, and not a model directory. Choose another.")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    fresh.mkdir()
    try:
        weights = safetensors.torch.save(to_file(model, layout), metadata={"format": "pt"})
        _write(fresh / WEIGHT_FILES[0], weights)
        _write(fresh / CONFIG_FILE, _json(config))
        _write(fresh / PREPROCESSOR_FILE, _json(write_preprocessor(model.config)))
        _put_in_place(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # nothing is left to remove when all went well


def fingerprint(model: Detr) -> str:
    """Return the sha256, in hex, of everything that decides a model's detections: network, classes, sizes, weights.

    The same model has the same fingerprint whichever file it came from; plain and DC5 differ, and so do two sets of
    category ids. A model in another precision than float32 has another one.
    """
    weights = sorted(weights_of(model).items())
    return digest(
        model.config,
        ((name, tensor.detach().to("cpu", torch.float32).contiguous().numpy()) for name, tensor in weights),
    )


def _load_directory(directory: Path, source: str) -> Detr:
    tensors = read_directory_tensors(directory, source=source)
    preprocessor = directory / PREPROCESSOR_FILE
    config, layout = read_config(
        read_json(directory / CONFIG_FILE, source=source),
        read_json(preprocessor, source=source) if preprocessor.exists() else {},
        class_rows=tensors["class_labels_classifier.bias"].numel() if "class_labels_classifier.bias" in tensors else 0,
        source=source,
    )
    network = _empty(config)
    return _filled(network, from_file(tensors, network, layout, source=source))


def _load_original(path: Path, variant: str | None, source: str) -> Detr:
    if path.suffix != ".pth":
        raise CheckpointError(f"checkpoint {source}: a single file must be an original .pth; else give its directory.")
    if _PANOPTIC_FILE.fullmatch(path.name):
        raise CheckpointError(f"checkpoint {source}: it is a panoptic model; only detection models are read.")
    config = VARIANTS[_variant(path.name, variant, source)]
    tensors = read_original(path, source=source)
    network = _empty(_with_heads_of(tensors, config))
    return _filled(network, from_file(tensors, network, "original", source=source))


def _with_heads_of(tensors: Mapping[str, Tensor], config: DetrConfig) -> DetrConfig:
    """Return the configuration with as many classes and queries as the weights have, wherever those can be."""
    rows = _row_count(tensors, "class_embed.weight") - 1  # the last is no-object's
    queries = _row_count(tensors, "query_embed.weight")
    if rows >= 1 and rows != config.class_count:
        config = replace(config, categories=tuple(Category(index, f"LABEL_{index}") for index in range(rows)))
    return replace(config, queries=queries) if queries >= 1 else config


def _row_count(tensors: Mapping[str, Tensor], name: str) -> int:
    return tensors[name].shape[0] if name in tensors and tensors[name].dim() == 2 else 0


def _variant(name: str, variant: str | None, source: str) -> str:
    """Return the name of VARIANTS that the user or the file's name gives."""
    official = _OFFICIAL_FILE.fullmatch(name)
    named = None if official is None else f"detr-resnet-{official[1]}{'-dc5' if official[2] else ''}"
    if variant is None and named is None:
        raise CheckpointError(
            f"checkpoint {source}: neither its name nor its content shows which DETR it is (plain and DC5 hold the "
            f"same weights). Give variant, one of {', '.join(VARIANTS)}."
        )
    if variant is not None and variant not in VARIANTS:
        near = difflib.get_close_matches(variant, VARIANTS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(VARIANTS)}."
        raise CheckpointError(f"checkpoint {source}: {variant!r} is not a variant. {hint}")
    if variant is not None and named is not None and variant != named:
        raise CheckpointError(f"checkpoint {source}: its name says {named}, but variant is {variant}. Rename the file.")
    return variant or named or ""


def _empty(config: DetrConfig) -> Detr:
    with torch.device("meta"):  # nothing is allocated or drawn at random only to be overwritten
        return Detr(config)


def _filled(network: Detr, state: dict[str, Tensor]) -> Detr:
    network.load_state_dict(state, assign=True)
    return network.eval()


def _may_be_replaced(target: Path) -> bool:
    if not target.is_dir():
        return False
    if not any(target.iterdir()):
        return True
    try:
        return read_json(target / CONFIG_FILE, source=str(target)).get("model_type") == "detr"
    except CheckpointError:
        return False


def _put_in_place(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`; what else an older directory of that name held moves over."""
    if not target.exists():
        fresh.rename(target)
        return
    old = fresh.with_suffix(".old")
    target.rename(old)
    fresh.rename(target)
    for path in old.iterdir():
        if not (target / path.name).exists():
            path.rename(target / path.name)
    shutil.rmtree(old)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # the rename must not come before the content, should the power fail


def _json(value: dict[str, object]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
