"""Draw the scenes that a benchmark labels without given photographs."""

from pathlib import Path
from typing import Any

from detr.scenes.files import write_scenes

SEED = 17


def write(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Write `count` scenes to `folder`."""
    write_scenes(Path(settings["folder"]), settings["count"], SEED)
    return {}
