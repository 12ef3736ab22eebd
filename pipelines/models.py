"""The model of a run: locate, copy, load and identify it, with its name in rows."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from detr.checkpoints.identity import identify_directory
from detr.checkpoints.model_directory import CheckpointError, HubAnswer, ModelUnreachable, model_files
from detr.checkpoints.references import locate_with_answer, pinned
from detr.classes import Category, UnknownClass, category_named
from detr.families import FAMILIES, NATIVE
from pipelines.errors import RayDetrError, UsageError
from pipelines.model_fingerprints import identify_by_loading
from pipelines.store import (
    NotFound,
    StoreError,
    StoreOptions,
    check_no_secret,
    join_uri,
    open_store,
    split_uri,
    without_secrets,
)

if TYPE_CHECKING:
    from detr.detector_like import DetectorLike
    from detr.model import Detr
    from detr.precision import Precision
    from detr.tiles import Tiling

SINGLE_FILES = (".pth", ".ckpt")
"""File extensions of models that are single files."""

FETCH_FIRST = "Fetch the model first and give its path, or its s3:// address."


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Properties of a model that a run needs.

    Attributes:
        id: `name@sha256[:12]`, as in rows.
        sha256: in hex, of everything that determines its detections.
        categories: its classes by index.
        family: `detr.families.NATIVE`, or the model type of a detector of `transformers`.
        has_masks: whether it is panoptic, so that it can return a mask with each detection.
        pinned: `owner/name@commit` if it came from the hub: all nodes load this commit, even if the branch changes.
        hub: what the hub did, if it was identified by its hub id.
    """

    id: str
    sha256: str
    categories: tuple[Category, ...]
    family: str = NATIVE
    has_masks: bool = False
    pinned: str | None = None
    hub: HubAnswer | None = None

    @property
    def is_native(self) -> bool:
        """Whether it is a DETR or a Table Transformer, which this package runs and trains itself."""
        return self.family == NATIVE


def load_model(reference: str, options: StoreOptions) -> tuple[Detr, ModelInfo]:
    """Load a reference of `detr.load`, or a model directory at the URI of an object store.

    Raises:
        UsageError: there is no such model, or it is not a DETR.
        RayDetrError: it is not available now.
    """
    from detr.checkpoints.checkpoint import fingerprint, load  # imported here: identifying a model needs no torch

    place = _place(reference, options)
    try:
        model = load(place)
    except CheckpointError as error:
        raise _refusal(error) from error
    return model, _info(reference, fingerprint(model), model.config.categories, NATIVE, model.config.mask_head)


def load_detector(
    reference: str,
    options: StoreOptions,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    threshold: float = 0.05,
    classes: Mapping[str, float | None] | None = None,
    batch_size: int | None = None,
    masks: bool = False,
    tiling: Tiling | None = None,
) -> tuple[DetectorLike, ModelInfo]:
    """Load a model to a device: a reference of `detr.detectors.load_detector`, or a directory in a store.

    Args:
        reference: of the model.
        options: access to a model in a store.
        device: as for `detr.Detector`.
        precision: as for `detr.Detector`.
        threshold: as for `detr.Detector`.
        classes: as for `detr.Detector`.
        batch_size: as for `detr.Detector`.
        masks: whether to return a mask with each detection; see `detr.segmentation.detector.MaskDetector`.
        tiling: how large pictures are cut into tiles; None: they are not. Masks of tiles cannot be joined.

    Raises:
        UsageError: there is no such model, or it does not detect boxes.
        RayDetrError: it is not available now.
        ValueError: as `detr.Detector` raises it.
    """
    from detr import detectors

    place = _place(reference, options)
    make: Callable[..., DetectorLike] = detectors.load_detector
    if masks:
        from detr.segmentation.detector import MaskDetector

        make = MaskDetector
    try:
        detector = make(
            place,
            device=device,
            precision=precision,
            threshold=threshold,
            classes=classes,
            batch_size=batch_size,
            name=reference,
        )
    except CheckpointError as error:
        raise _refusal(error) from error
    assert detector.identity is not None, "it was loaded from a reference"
    info = _info(reference, detector.identity, detector.categories, detector.family, masks)
    if tiling is None:
        return detector, info
    from detr.tiled_detector import TiledDetector

    assert not masks, "the configuration refuses both"
    return TiledDetector(detector, tiling), info


def identify_model(reference: str, options: StoreOptions) -> ModelInfo:
    """Return the properties of a model without importing torch in this process.

    A DETR in safetensors is read with numpy: 0.2 s of CPU for 160 MB. Anything else - a `.pth`, a `pytorch_model.bin`,
    weights in bfloat16, a model of `transformers`, one that may be refused - is loaded in a separate process, which
    takes some seconds; the result is cached until the files change.

    Raises:
        RayDetrError: as `load_detector` raises it.
    """
    place = _place(reference, options)
    try:
        path, hub = locate_with_answer(place)
    except CheckpointError as error:
        raise _refusal(error) from error
    found = identify_directory(path) if path.is_dir() else None
    if found is not None:
        config, sha256 = found
        info = _info(reference, sha256, config.categories, NATIVE, config.mask_head)
    else:
        identified = identify_by_loading(path, cache=_cache().parent / "identities")
        info = _info(reference, identified.sha256, identified.categories, identified.family, identified.has_masks)
    return replace(info, pinned=pinned(place, path), hub=hub)


def check_trainable(model: ModelInfo) -> None:
    """Raise if a model is not a DETR, because only DETRs can be fine-tuned.

    Raises:
        UsageError: the model is one of `transformers`.
    """
    if not model.is_native:
        raise UsageError(
            f"`ray-detr train` cannot train {model.id}, a {FAMILIES[model.family]} model; it trains DETR and Table "
            "Transformer only. Fine-tune it with transformers' Trainer (docs/models.md); `ray-detr label` reads the "
            "checkpoint that it writes."
        )


def check_masks(model: ModelInfo, *, reference: str) -> None:
    """Raise if a model cannot return masks.

    Raises:
        UsageError: it is not panoptic.
    """
    if not model.has_masks:
        raise UsageError(
            f"masks: {reference} gives boxes only. Omit --masks, or use a panoptic DETR such as "
            "facebook/detr-resnet-50-panoptic."
        )


def check_classes(model: ModelInfo, classes: Iterable[str], *, reference: str) -> None:
    """Raise if names are not classes of a model.

    Raises:
        UsageError: suggests the most similar name.
    """
    try:
        for name in classes:
            category_named(name, model.categories, model=reference)
    except UnknownClass as error:
        raise UsageError(str(error)) from error


def _refusal(error: CheckpointError) -> RayDetrError:
    return RayDetrError(str(error)) if isinstance(error, ModelUnreachable) else UsageError(str(error))


def _place(reference: str, options: StoreOptions) -> str:
    """Return a reference for `detr.load`: the given one, or the local copy of a model in a store."""
    page = _PAGE.fullmatch(reference)
    if page is not None:
        revision = f"@{page[2]}" if page[2] else ""
        raise UsageError(
            f"model {reference}: give its hub id, {page[1]}{revision}, instead of the address of its page."
        )
    if "://" not in reference or reference.startswith("file:"):
        return reference.removeprefix("file://")
    try:
        check_no_secret("model", reference, instead=FETCH_FIRST)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return str(_fetch(reference, options))


def _info(
    reference: str, sha256: str, categories: tuple[Category, ...], family: str, has_masks: bool = False
) -> ModelInfo:
    return ModelInfo(f"{short_name(reference)}@{sha256[:12]}", sha256, categories, family, has_masks)


def short_name(reference: str) -> str:
    """Return a name for a model: the last specific part of its reference, without prefix and revision.

    `facebook/detr-resnet-50@main` is `detr-resnet-50`. A training run keeps its model at `RUN/model` and its
    checkpoints at `RUN/checkpoints/000001200-...`, and other trainers at `RUN/checkpoint-500`: the name is that of the
    run.
    """
    parts = [part for part in reference.rstrip("/").split("/") if part]
    while len(parts) > 1 and is_generic_name(parts[-1]) and _IS_NAME.fullmatch(parts[-2]):
        parts.pop()
    last = parts[-1] if parts else ""
    return last.split("@", 1)[0].removesuffix(".pth").removesuffix(".ckpt") or "model"


def is_generic_name(name: str) -> bool:
    """Return whether the name is not specific to one run."""
    return _SAYS_NOTHING.fullmatch(name) is not None


_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/tree/([\w./-]+?))?/?")
_SAYS_NOTHING = re.compile(r"model|checkpoints|checkpoint-\d+|\d{9}-[\w-]+")
_IS_NAME = re.compile(r"[^:]*\w[^:]*")  # neither . nor .. nor the scheme of a URI


def _fetch(uri: str, options: StoreOptions) -> Path:
    """Copy a model directory, or a `.pth` or `.ckpt` file, to this user's cache; return its location.

    The folder's name is a hash of the address and the objects' etags, so a changed model is fetched again.
    """
    try:
        root, key = split_uri(uri)
        if uri.endswith(SINGLE_FILES):
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
                partial.replace(target)  # several actors of one machine may do this concurrently
    except CheckpointError as error:
        raise _refusal(error) from error
    except NotFound as error:
        raise UsageError(f"the model cannot be fetched: {error}") from error
    except StoreError as error:
        raise RayDetrError(f"the model cannot be fetched: {error}") from error
    except OSError as error:
        raise RayDetrError(
            f"the model {without_secrets(uri)} cannot be kept on this machine: {error}. "
            "Free some space, or set XDG_CACHE_HOME to another folder."
        ) from error
    return local / names[0] if uri.endswith(SINGLE_FILES) else local


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ray-detr" / "models"
