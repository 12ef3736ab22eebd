"""Open written pictures in the viewer of this machine (`detect --open`)."""

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipelines.errors import RayDetrError

MOST_PICTURES: Final = 8  # each opens a window
# of X, of Wayland, and a command that shows files elsewhere
DISPLAYS: Final = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def has_viewer() -> bool:
    """Return whether this process can show a picture: it has a display, or $BROWSER names a command."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in DISPLAYS)


def open_pictures(paths: Sequence[Path]) -> int:
    """Open the first eight files, and return the number of opened files.

    They are shown by the desktop's opener, by a browser, or by the command in $BROWSER.

    Raises:
        RayDetrError: no program that opens files was found.
    """
    shown = paths[:MOST_PICTURES]
    for path in shown:
        if not webbrowser.open(path.resolve().as_uri()):
            raise RayDetrError(
                f"no program opened {path}. The picture is written: open it yourself, or set BROWSER to a command that "
                "shows it."
            )
    return len(shown)
