"""Locate the model that a reference names: in the package, on this disk, or in the hub's cache."""

import os
import re
from pathlib import Path

from detr.checkpoints.model_directory import CONFIG_FILE, CheckpointError, HubAnswer

EMBEDDED = Path(__file__).parents[1] / "weights"
"""The models included in the package, each a directory; `load` takes the directory's name."""


def locate(ref: str | os.PathLike[str]) -> Path:
    """Return the directory or `.pth` file that `detr.load` reads for a reference; a hub id is downloaded.

    Raises:
        CheckpointError: there is no such model, or it is in a folder that may not be entered.
    """
    return locate_with_answer(ref)[0]


def locate_with_answer(ref: str | os.PathLike[str]) -> tuple[Path, HubAnswer | None]:
    """Return what `locate` returns, and what the hub did for it; None if the reference is not a hub id."""
    source = os.fspath(ref)
    path = Path(source).expanduser()
    if isinstance(ref, str) and _is_embedded(ref):
        return EMBEDDED / ref, None
    try:
        is_here = source != "" and path.exists()
    except PermissionError as error:
        raise CheckpointError(f"model {source} cannot be read: permission denied.") from error
    return (path, None) if is_here else _fetched(source)


def absolute_reference(ref: str) -> str:
    """Return a model reference without relative paths, for processes with another working directory."""
    # Path.exists() would raise PermissionError, for which `locate` has a sentence
    is_path = "://" not in ref and os.path.exists(ref) and not _is_embedded(ref)  # noqa: PTH110
    return str(Path(ref).resolve()) if is_path else ref


def pinned(ref: str, directory: Path) -> str | None:
    """Return a hub id with the commit of its cached files; None if they do not come from the hub.

    Loading it later, on any machine, gives the same files even if the branch has changed.

    Args:
        ref: the reference.
        directory: what `locate` returned for it.
    """
    if directory.parent.name != "snapshots" or not re.fullmatch("[0-9a-f]{40}", directory.name):
        return None
    from detr.checkpoints.hub import split_hub_id  # imported here, as below

    hub_id = split_hub_id(ref)
    return None if hub_id is None else f"{hub_id[0]}@{directory.name}"


def _is_embedded(name: str) -> bool:
    return re.fullmatch(r"\w+", name) is not None and (EMBEDDED / name / CONFIG_FILE).is_file()


def _fetched(ref: str) -> tuple[Path, HubAnswer]:
    from detr.checkpoints.hub import fetch, split_hub_id  # deferred: takes 0.25 s

    hub_id = split_hub_id(ref)
    if "://" in ref:
        raise CheckpointError(
            f"model {ref}: only local paths and hub ids can be loaded here. Copy the model to this machine, then load "
            "the copy."
        )
    if hub_id is None or ref.endswith((".pth", ".ckpt", ".bin", ".safetensors")):
        embedded = sorted(path.parent.name for path in EMBEDDED.glob(f"*/{CONFIG_FILE}"))
        raise CheckpointError(
            f"model {ref}: there is no such file or directory, and it is not a hub id (owner/name[@revision])"
            + (f" or an embedded model ({', '.join(embedded)})." if embedded else ".")
        )
    return fetch(*hub_id)
