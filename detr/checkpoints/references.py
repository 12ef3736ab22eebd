"""Where a model is that a reference names: with the package, on this disk, or in the cache of the hub."""

import os
import re
from pathlib import Path

from detr.checkpoints.model_directory import CONFIG_FILE, CheckpointError

EMBEDDED = Path(__file__).parents[1] / "weights"
"""The models that come with the package, each a directory; its name is what `load` knows it by."""


def locate(ref: str | os.PathLike[str]) -> Path:
    """Return the directory or `.pth` file that `detr.load` reads for a reference; a hub id is downloaded.

    Raises:
        CheckpointError: there is no such model.
    """
    source = os.fspath(ref)
    path = Path(source).expanduser()
    if isinstance(ref, str) and _is_embedded(ref):
        return EMBEDDED / ref
    return path if source and path.exists() else _fetched(source)


def pinned(ref: str, directory: Path) -> str | None:
    """Return a hub id with the commit that its files in the cache are of; None where they do not come from the hub.

    Whoever loads it later, anywhere, gets the same files, also when the branch has moved on.

    Args:
        ref: what names the model.
        directory: what `locate` returned for it.
    """
    if directory.parent.name != "snapshots" or not re.fullmatch("[0-9a-f]{40}", directory.name):
        return None
    from detr.checkpoints.hub import split_hub_id  # here: as below

    hub_id = split_hub_id(ref)
    return None if hub_id is None else f"{hub_id[0]}@{directory.name}"


def _is_embedded(name: str) -> bool:
    return re.fullmatch(r"\w+", name) is not None and (EMBEDDED / name / CONFIG_FILE).is_file()


def _fetched(ref: str) -> Path:
    from detr.checkpoints.hub import fetch, split_hub_id  # here: the hub's client takes a quarter of a second to import

    hub_id = split_hub_id(ref)
    if "://" in ref:
        raise CheckpointError(
            f"model {ref}: only local files and the hub are read here. Copy the directory, then load it."
        )
    if hub_id is None or ref.endswith((".pth", ".ckpt", ".bin", ".safetensors")):
        embedded = sorted(path.parent.name for path in EMBEDDED.glob(f"*/{CONFIG_FILE}"))
        raise CheckpointError(
            f"model {ref}: there is no such file or directory, and it is not a hub id (owner/name[@revision])"
            + (f" or an embedded model ({', '.join(embedded)})." if embedded else ".")
        )
    return fetch(*hub_id)
