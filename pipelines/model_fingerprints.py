"""Fingerprints of models that only torch can read, computed in a child process and cached on this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import detr
from detr.classes import Category
from detr.families import NATIVE, model_family
from pipelines.errors import RayDetrError, UsageError

SETTLED_SECONDS = 2.0  # a file that changed more recently may change again with the same time stamp

_CHILD = """
import json, sys
request = json.load(sys.stdin)
sys.path[:] = request["path"]
from pipelines.model_fingerprints import answer
sys.stdout.write(json.dumps(answer(request["place"])))
"""


@dataclass(frozen=True, slots=True)
class Identified:
    """The fingerprint of a model, its classes, its family and whether it is panoptic; see `pipelines.models`."""

    sha256: str
    categories: tuple[Category, ...]
    family: str = NATIVE
    has_masks: bool = False


def identify_by_loading(path: Path, *, cache: Path) -> Identified:
    """Return the fingerprint of a model, from the cache or from a process that loads it.

    The cache identifies files by device, inode, size and both time stamps, and is not used for a file that changed in
    the last two seconds. Another version of the code does not use old entries.

    Args:
        path: a `.pth` file or a model directory.
        cache: a folder, created if missing; if it is not writable, nothing is cached.

    Raises:
        UsageError: the model cannot be loaded.
        RayDetrError: the loading process was killed.
    """
    before = _look(path)
    entry = None if before is None else cache / f"{before}.json"
    if entry is not None:
        remembered = _read(entry)
        if remembered is not None:
            return remembered
    found = _ask(str(path))
    if entry is not None and _look(path) == before:
        _write(entry, found)
    return found


def answer(place: str) -> dict[str, object]:
    """Return the result or the error message, in the process that loads the model."""
    from detr.checkpoints.checkpoint import CheckpointError, fingerprint, load
    from detr.checkpoints.references import locate

    try:
        path = locate(place)
        family = model_family(path, source=place)
        if family != NATIVE:
            from detr.transformers_model import load_transformers_model

            other = load_transformers_model(path, family, source=place)
            return _encode(Identified(other.identity, other.categories, family))
        model = load(place)
    except CheckpointError as error:
        return {"error": str(error)}
    return _encode(Identified(fingerprint(model), model.config.categories, has_masks=model.config.mask_head))


def _ask(place: str) -> Identified:
    request = json.dumps({"path": sys.path, "place": place})
    done = subprocess.run(  # noqa: S603 - this Python, with code of ours
        [sys.executable, "-c", _CHILD],
        input=request,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,  # this process handles Ctrl-C of a terminal
    )
    if done.returncode:
        raise RayDetrError(
            f"the process that loaded {place} on this machine ended with {done.returncode}: not enough memory, or a "
            "broken library."
        )
    record = json.loads(done.stdout)
    if "error" in record:
        raise UsageError(record["error"])
    return _decode(record)


def _look(path: Path) -> str | None:
    """Return a name for the current state of a model's files; None if it could change without a new name."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [file.stat() for file in files]
    except OSError:
        return None
    newest = max((max(state.st_mtime, state.st_ctime) for state in states), default=0.0)
    if time.time() - newest < SETTLED_SECONDS:
        return None
    seen = [
        (str(file.resolve()), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        for file, state in zip(files, states, strict=True)
    ]
    # also the given path: the name of a .pth determines the network
    return hashlib.sha256(repr((_code(), str(path), seen)).encode()).hexdigest()


@cache
def _code() -> str:
    """Return a digest of the code that reads models, because results may change with it."""
    sources = sorted(Path(file) for folder in detr.__path__ for file in Path(folder).rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _read(entry: Path) -> Identified | None:
    try:
        return _decode(json.loads(entry.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: the model is loaded again


def _write(entry: Path, found: Identified) -> None:
    with suppress(OSError):  # then the model is loaded again
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}")
        partial.write_text(json.dumps(_encode(found)))
        partial.replace(entry)


def _encode(found: Identified) -> dict[str, object]:
    categories: Sequence[object] = [[category.id, category.name] for category in found.categories]
    return {"sha256": found.sha256, "categories": categories, "family": found.family, "has_masks": found.has_masks}


def _decode(record: dict[str, object]) -> Identified:
    sha256, categories, family = record["sha256"], record["categories"], record["family"]
    has_masks = record["has_masks"] is True
    if not isinstance(sha256, str) or not isinstance(categories, list) or not isinstance(family, str):
        raise TypeError("not a record of a model")
    return Identified(sha256, tuple(Category(int(number), str(name)) for number, name in categories), family, has_masks)
