"""The files of a model directory, and its json. Does not import torch."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
"""Newer versions of `transformers` may keep the image processor's settings in it, as `image_processor`."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weight files of a model directory, preferred first; each may instead be an index of shards."""
INDEX_ENDING = ".index.json"

_SHARD = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")


class CheckpointError(ValueError):
    """A model cannot be read or written; the message says why."""


class ModelUnreachable(CheckpointError):
    """A model is not available because its hub does not answer; a retry may succeed."""


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """How a model that is given by its hub id was found.

    Attributes:
        state: "answered": the hub listed its files. Otherwise the cache has them: "not asked", because they are of the
            commit that is asked for; "offline", because HF_HUB_OFFLINE is set; "limited", because the hub refuses
            further requests for now; "unreachable", because it does not answer.
        reason: the message of the hub or of its client; empty if the hub answered or was not asked.
    """

    state: Literal["answered", "not asked", "offline", "limited", "unreachable"]
    reason: str = ""


def model_files(names: Iterable[str], *, source: str) -> tuple[str, ...]:
    """Return the files of a model directory that `detr.load` reads, config.json first.

    To copy a model, copy these files into one folder and load the folder.

    Args:
        names: plain names of the files in the directory.
        source: its name in error messages.

    Raises:
        CheckpointError: config.json or the weights are missing.
    """
    present = set(names)
    if CONFIG_FILE not in present:
        raise CheckpointError(f"checkpoint {source}: it has no {CONFIG_FILE}, so it is not a model directory.")
    needed = [CONFIG_FILE, *sorted({PREPROCESSOR_FILE, PROCESSOR_FILE} & present)]
    for weights in WEIGHT_FILES:
        if weights in present:
            return (*needed, weights)
        if weights + INDEX_ENDING in present:
            ending = weights.rpartition(".")[2]
            shards = sorted(name for name in present if _SHARD.fullmatch(name) and name.endswith(ending))
            return (*needed, weights + INDEX_ENDING, *shards)
    raise CheckpointError(
        f"checkpoint {source}: it has no weights; expected {' or '.join(WEIGHT_FILES)}, or an index of shards."
    )


def read_json(path: Path, *, source: str) -> dict[str, Any]:
    """Return the JSON object in a file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {source}: {path.name} cannot be read ({brief(error)}).") from error
    return parse_json(data, path.name, source=source)


def parse_json(data: bytes, name: str, *, source: str) -> dict[str, Any]:
    """Return the JSON object in the bytes of a file.

    Raises:
        CheckpointError: they are not a JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {source}: {name} cannot be read ({brief(error)}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint {source}: {name} is not a JSON object.")
    return value


def read_preprocessor(directory: Path, *, source: str) -> dict[str, Any]:
    """Return the settings of a model directory's image processor; empty if it has none.

    As in `transformers`, those in processor_config.json come first.
    """
    processor = directory / PROCESSOR_FILE
    if processor.exists():
        nested = read_json(processor, source=source).get("image_processor")
        if isinstance(nested, dict):
            return nested
    preprocessor = directory / PREPROCESSOR_FILE
    return read_json(preprocessor, source=source) if preprocessor.exists() else {}


def shard_names(index: Path, *, source: str) -> tuple[str, ...]:
    """Return the files listed in an index of shards, in order."""
    weight_map = read_json(index, source=source).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"checkpoint {source}: {index.name} has no weight_map.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):  # never a path outside the directory
            raise CheckpointError(
                f"checkpoint {source}: {index.name} names {shard!r}, which is not a valid name of a shard."
            )
    return tuple(sorted(set(weight_map.values())))


def weights_file(directory: Path, *, source: str) -> Path:
    """Return the weights file of a model directory, or the index of its shards.

    Raises:
        CheckpointError: config.json or the weights are missing.
    """
    names = model_files((path.name for path in directory.iterdir()), source=source)
    return directory / next(name for name in names if name.startswith(_STEMS))


def brief(error: BaseException) -> str:
    """Return the first line of an error's message; torch's can be pages long."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


_STEMS = tuple(name.rpartition(".")[0] for name in WEIGHT_FILES)
