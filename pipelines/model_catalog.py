"""Published checkpoints that `detr.load` supports, those on this machine, and copies for clusters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detr.checkpoints.model_directory import CONFIG_FILE, CheckpointError, model_files, read_json
from detr.checkpoints.references import locate
from detr.families import family_of
from pipelines.errors import RayDetrError, UsageError
from pipelines.models import ModelInfo, identify_model
from pipelines.store import StoreError, StoreOptions, open_store, without_secrets

Task = Literal["objects", "things, stuff", "tables", "table structure", "drawn shapes"]


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A checkpoint that is known to load.

    Attributes:
        name: hub id, or the name of a model in the package.
        task: what it detects; None for a model that is only in the cache.
        classes: number of classes that it can report; None if config.json does not say.
        ap: published COCO AP on val2017 (0..100); None if its authors publish another figure.
        license: SPDX identifier published by its authors; None if only its page states it.
    """

    name: str
    task: Task | None
    classes: int | None
    ap: float | None
    license: str | None


# AP: tables of the READMEs of the originals (facebookresearch/detr, lyuwenyu/RT-DETR), val2017, of boxes
CATALOG = (
    PublishedModel("facebook/detr-resnet-50", "objects", 80, 42.0, "Apache-2.0"),
    PublishedModel("facebook/detr-resnet-50-dc5", "objects", 80, 43.3, "Apache-2.0"),
    PublishedModel("facebook/detr-resnet-101", "objects", 80, 43.5, "Apache-2.0"),
    PublishedModel("facebook/detr-resnet-101-dc5", "objects", 80, 44.9, "Apache-2.0"),
    PublishedModel("facebook/detr-resnet-50-panoptic", "things, stuff", 133, 38.8, "Apache-2.0"),
    PublishedModel("facebook/detr-resnet-50-dc5-panoptic", "things, stuff", 133, 40.2, "Apache-2.0"),
    PublishedModel("facebook/detr-resnet-101-panoptic", "things, stuff", 133, 40.1, "Apache-2.0"),
    PublishedModel("PekingU/rtdetr_r18vd", "objects", 80, 46.5, "Apache-2.0"),
    PublishedModel("PekingU/rtdetr_r50vd", "objects", 80, 53.1, "Apache-2.0"),
    PublishedModel("microsoft/table-transformer-detection", "tables", 2, None, "MIT"),
    PublishedModel("microsoft/table-transformer-structure-recognition", "table structure", 6, None, "MIT"),
    PublishedModel("scenes", "drawn shapes", 6, None, "Apache-2.0"),
)


def is_available(model: PublishedModel) -> bool:
    """Return whether a model loads without the network: it is in the package, or complete in the hub's cache."""
    return "/" not in model.name or model.name in dict(_complete_in_cache())


def other_cached_models() -> tuple[PublishedModel, ...]:
    """Return the models of the hub's cache that can label and are not in `CATALOG`, by name."""
    known = {model.name for model in CATALOG}
    found = []
    for name, config in sorted(_complete_in_cache()):
        if name not in known:
            try:
                content = read_json(config, source=name)
                if "model_type" not in content:
                    continue  # a model of another library
                family_of(content, source=name)
            except CheckpointError:
                continue  # it does not detect boxes
            labels = content.get("id2label")
            found.append(PublishedModel(name, None, len(labels) if isinstance(labels, dict) else None, None, None))
    return tuple(found)


def _complete_in_cache() -> Iterator[tuple[str, Path]]:
    """Yield the hub id and the config.json of every complete model directory in the hub's cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    for repo in cached.repos:
        for revision in repo.revisions if repo.repo_type == "model" else ():
            files = {file.file_name: file.file_path for file in revision.files}
            if _is_complete(list(files)):
                yield repo.repo_id, files[CONFIG_FILE]
                break


def copy_model(reference: str, out: str, options: StoreOptions) -> ModelInfo:
    """Copy the files that `detr.load` reads of a model to a folder or bucket, and check the copy.

    Args:
        reference: a value of `--model`, except a single file.
        out: URI of a folder that is new or has the same files.
        options: access to both.

    Returns:
        The model, identified from its copy.

    Raises:
        UsageError: there is no such model, or `out` has other files.
        RayDetrError: the model cannot be read now, or the copy differs from the model.
    """
    wanted = identify_model(reference, options)
    try:
        folder = locate(reference.removeprefix("file://"))
        if not folder.is_dir():
            raise UsageError(
                f"model {reference} is a single file, which is not copied: give it to --model as it is, or name a "
                "model directory."
            )
        names = model_files([path.name for path in folder.iterdir()], source=reference)
        store = open_store(out, options)
        present = {entry.key: entry.size for entry in store.list()}
        if others := sorted(present.keys() - names):
            raise UsageError(
                f"{without_secrets(out)} contains {others[0]}, which is not part of the model. Give a new folder."
            )
        contents = {name: (folder / name).read_bytes() for name in names}
        for name in sorted(present.keys() & names):  # before writing: it may be another model that is in use
            if present[name] not in (None, len(contents[name])) or store.get(name).data != contents[name]:
                raise UsageError(
                    f"{without_secrets(out)} contains a {name} that differs from the model's. Give a new folder."
                )
        for name in contents.keys() - present.keys():
            store.put(name, contents[name])
    except CheckpointError as error:
        raise RayDetrError(str(error)) from error
    except StoreError as error:
        raise RayDetrError(f"the model cannot be copied: {error}") from error
    copied = identify_model(out, options)
    if copied.sha256 != wanted.sha256:
        raise RayDetrError(
            f"the copy at {without_secrets(out)} is not the model {wanted.id}: its fingerprint is "
            f"{copied.sha256[:12]}. Another program has probably written there. Copy it again, into a new folder."
        )
    return copied


def _is_complete(names: list[str]) -> bool:
    try:
        model_files(names, source="cache")
    except CheckpointError:
        return False
    return True
