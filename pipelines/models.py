"""The model of a run: wherever it lies, on this machine's disk and in memory, with the name that rows give it."""

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from detr.checkpoint import CheckpointError, fingerprint, load
from detr.classes import Category
from detr.model import Detr
from detr.tensor_files import model_files
from pipelines.stopped import RunStopped
from pipelines.store import StoreError, StoreOptions, check_no_secret, join_uri, open_store, split_uri, without_secrets

FETCH_FIRST = "Fetch the model first and give its path, or its s3:// address."


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a run has to know of its model: `id` is `name@sha256[:12]`, what rows say."""

    id: str
    sha256: str
    categories: tuple[Category, ...]


def load_model(reference: str, options: StoreOptions) -> tuple[Detr, ModelInfo]:
    """Load what `detr.load` takes, or a model directory at the URI of an object store.

    Raises:
        RunStopped: it cannot be had or is no DETR, in one sentence.
    """
    place = reference
    if "://" in reference and not reference.startswith("file:"):
        try:
            check_no_secret("model", reference, instead=FETCH_FIRST)
        except ValueError as error:
            raise RunStopped(str(error)) from error
        place = str(_fetch(reference, options))
    try:
        model = load(place.removeprefix("file://"))
    except CheckpointError as error:
        raise RunStopped(str(error)) from error
    digest = fingerprint(model)
    return model, ModelInfo(f"{short_name(reference)}@{digest[:12]}", digest, model.config.categories)


def short_name(reference: str) -> str:
    """Return the last part of a reference, bare: `facebook/detr-resnet-50@main` -> `detr-resnet-50`."""
    last = reference.rstrip("/").rsplit("/", 1)[-1]
    return last.split("@", 1)[0].removesuffix(".pth") or "model"


def _fetch(uri: str, options: StoreOptions) -> Path:
    """Copy the files of a model directory, or one `.pth`, into this user's cache; return where they are.

    The folder is named by the address and the objects' etags, so a changed model is fetched anew.
    """
    try:
        root, key = split_uri(uri)
        if uri.endswith(".pth"):
            folder, _, name = key.rpartition("/")
            store = open_store(join_uri(root, folder), options)
            names: tuple[str, ...] = (name,)
        else:
            store = open_store(uri, options)
            names = model_files((entry.key for entry in store.list() if "/" not in entry.key), source=uri)
        entries = [store.head(name) for name in names]
        digest = hashlib.sha256(repr([uri, *((entry.key, entry.etag, entry.size) for entry in entries)]).encode())
        local = _cache() / digest.hexdigest()[:24]
        local.mkdir(parents=True, exist_ok=True)
        for name in names:
            target = local / name
            if not target.exists():
                partial = target.with_name(f"{name}.{uuid.uuid4().hex}")
                partial.write_bytes(store.get(name).data)
                partial.replace(target)  # several actors of one machine may do this at once
    except CheckpointError as error:
        raise RunStopped(str(error)) from error
    except StoreError as error:
        raise RunStopped(f"the model cannot be fetched: {error}") from error
    except OSError as error:
        raise RunStopped(
            f"the model {without_secrets(uri)} cannot be kept on this machine: {error}. "
            "Make room, or name another folder in XDG_CACHE_HOME."
        ) from error
    return local / names[0] if uri.endswith(".pth") else local


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ray-detr" / "models"
