"""Read only tensors from files: safetensors, and pickles restricted to tensors."""

import argparse
import hashlib
import pickle
import re
import struct
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from detr.checkpoints.model_directory import INDEX_ENDING, CheckpointError, brief, shard_names, weights_file

_HASHED_NAME = re.compile(r".*-([0-9a-f]{8,64})\.pth")
_TIME = re.compile(r"(\d{8})(?:\d\d){0,3}")  # a date, or with hours, minutes and seconds
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_LFS_POINTER = b"version https://git-lfs"
# errors that torch's restricted unpickler raises on damaged pickles and zip files
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RecursionError,
)


def read_directory_tensors(directory: Path, *, source: str) -> dict[str, Tensor]:
    """Return all weights of a model directory, from one file or from shards, by the names in the files."""
    weights = weights_file(directory, source=source)
    if not weights.name.endswith(INDEX_ENDING):
        return _read(weights, source)
    tensors: dict[str, Tensor] = {}
    for shard in shard_names(weights, source=source):
        for name, tensor in _read(directory / shard, source).items():
            if name in tensors:
                raise CheckpointError(f"checkpoint {source}: {name!r} is in two shards.")
            tensors[name] = tensor
    return tensors


def parse_safetensors(data: bytes, name: str, *, source: str) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file.

    Raises:
        CheckpointError: the bytes are damaged.
    """
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _damaged_error(name, source, error) from error


def read_original(path: Path, *, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of an original `.pth`, and the `args` of the training that wrote it, empty if it has none.

    The file is a state dict, or a checkpoint that contains one as `model`, `state_dict` or `model_state_dict`.
    `argparse.Namespace` is the only other class allowed in the file, for the other entries of a training checkpoint.

    Raises:
        CheckpointError: it is unreadable or something else, or its hash is not the one in a torch hub name
            `-<sha256>.pth`; a date there is no hash.
    """
    hashed = _HASHED_NAME.fullmatch(path.name)
    if hashed is not None and not _is_time(hashed[1]):
        _check_sha256(path, hashed[1], source)
    content = _unpickle(path, source, allowed=[argparse.Namespace])
    args = content.get("args") if isinstance(content, dict) else None
    return _only_tensors(_state_of(content), source), vars(args) if isinstance(args, argparse.Namespace) else {}


def read_lightning(path: Path, *, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a Lightning `.ckpt`, and the `hyper_parameters` of its module, empty if it has none.

    The file may refer to any class. Each is replaced by `_Ignored`, so that none is imported or run.

    Raises:
        CheckpointError: it is unreadable or something else.
    """
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _DAMAGED as error:
        raise _damaged(path, source, error) from error
    ignored = [(_Ignored, name) for name in foreign if name != "argparse.Namespace"]
    content = _unpickle(path, source, allowed=[argparse.Namespace, *ignored])
    settings = content.get("hyper_parameters") if isinstance(content, dict) else None
    if isinstance(settings, dict) and isinstance(settings.get("args"), argparse.Namespace):
        settings = vars(settings["args"])
    return _only_tensors(_state_of(content), source), dict(settings) if isinstance(settings, dict) else {}


class _Ignored(dict[Any, Any]):
    """Placeholder for an object of another class in a pickle; keeps the items of a mapping."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


def _state_of(content: object) -> object:
    """Return the state dict of a checkpoint, or the content itself if it may be one."""
    if isinstance(content, dict):
        for name in ("model", "state_dict", "model_state_dict"):
            if isinstance(content.get(name), dict):
                return content[name]
    return content


def _is_time(digits: str) -> bool:
    """Return whether the end of a name is a date, as of 20261130; of hashes, one in some thousands is."""
    found = _TIME.fullmatch(digits)
    if found is None:
        return False
    try:
        return 1990 <= datetime.strptime(found[1], "%Y%m%d").replace(tzinfo=UTC).year < 2100
    except ValueError:
        return False


def _check_sha256(path: Path, expected: str, source: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint {source}: {path.name} cannot be read ({_brief(error)}).") from error
    if not found.startswith(expected):
        raise CheckpointError(
            f"checkpoint {source}: its sha256 is {found[: len(expected)]}.., but its name says {expected}. "
            "Download it again, or rename it if it was changed on purpose."
        )


def _read(path: Path, source: str) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        return _only_tensors(_unpickle(path, source, allowed=[]), source)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise _damaged(path, source, error) from error


def _unpickle(path: Path, source: str, *, allowed: list[Any]) -> object:
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols: torch reads or refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        forbidden = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if forbidden is not None:
            raise CheckpointError(
                f"checkpoint {source}: {path.name} is not loaded, because it contains more than tensors "
                f"({forbidden[1]}) and loading these could run code. Use a safetensors file."
            ) from error
        raise _damaged(path, source, error) from error


def _damaged(path: Path, source: str, error: Exception) -> CheckpointError:
    if _starts_with(path, _LFS_POINTER):
        return CheckpointError(f"checkpoint {source}: {path.name} is a Git LFS pointer; fetch the file with git lfs.")
    return _damaged_error(path.name, source, error)


def _damaged_error(name: str, source: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {source}: {name} cannot be read, it is damaged or incomplete ({_brief(error)})."
    )


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:  # the message reports this instead
        return False


def _only_tensors(state: object, source: str) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"checkpoint {source}: it does not contain a state dict.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"checkpoint {source}: {name!r} is not a tensor.")
    return dict(state)


def _brief(error: BaseException) -> str:
    """Return the first line of an error's message; torch's can be pages long."""
    if isinstance(error, pickle.UnpicklingError):
        return "not a pickle of tensors"  # torch's text recommends disabling the protection
    return brief(error)
