"""Poison images: good JPEG and HEIC files that kill, hang or starve whoever decodes them, for tests of quarantine.

No decoder that we use is known to do so, and product code has no hooks for tests. So the harm is done by
`poison_site/sitecustomize.py`, which Python runs at the start of every process that has its folder in PYTHONPATH: it
wraps `detr.images.decoding` when (and only when) a process imports it, and acts when the picture carries an order: in a
JPEG's comment, or in a `free` box at the end of a HEIC (ISO/IEC 14496-12, 8.1.2). To any other process, poison is a
good photograph.

    data = poison(jpeg, "segfault", log=tmp_path / "deaths")     # the bytes of a poison image
    subprocess.run([sys.executable, "-m", "jobs.label", ...], env=environment())
    victims(tmp_path / "deaths")                                  # what was struck: [Victim("segfault", pid, is_child)]

Ray's workers inherit PYTHONPATH from whoever starts Ray, so a test starts a Ray of its own: the session's has none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal, NamedTuple

SITE = Path(__file__).parent / "poison_site"
ROOT = Path(__file__).parents[2]
MAGIC = b"ray-detr poison "

Harm = Literal[
    "segfault",  # the signal of a bad pointer
    "abort",  # what C libraries do that notice their own damage
    "exit",  # the process ends with code 3, as by a library's exit()
    "kill",  # SIGKILL, as by the machine's out-of-memory killer or an operator
    "loop",  # computes for ever
    "sleep",  # waits for ever, as in a deadlock
    "grip",  # waits for ever in C and holds the interpreter's lock: no other Python thread runs
    "allocate",  # takes memory until there is none: MemoryError, or the machine's out-of-memory killer
    "raise",  # an exception that no damaged file should cause
]
When = Literal["decode", "header"]


class Victim(NamedTuple):
    """One process that met a poison image."""

    harm: str
    pid: int
    is_child: bool  # a process that decodes and nothing else, not the actor


def poison(picture: bytes, harm: Harm, *, when: When = "decode", log: Path | None = None, times: int = 0) -> bytes:
    """Return the picture with an order in it; it stays a picture that everybody else can decode.

    Args:
        picture: a whole JPEG or HEIC.
        harm: what happens to who decodes it.
        when: whether already reading its header does it.
        log: a file to which each victim adds a line first, for `victims`.
        times: how often it strikes, by the lines of `log` of this harm; 0 is always.
    """
    is_heic = picture[4:8] == b"ftyp"
    assert is_heic or picture.startswith(b"\xff\xd8"), "neither JPEG nor HEIC"
    order = {"harm": harm, "when": when, "log": None if log is None else str(log), "times": times}
    text = MAGIC + json.dumps(order).encode()
    if is_heic:  # at the end: places of the file's own data are counted from its beginning
        return picture + (len(text) + 8).to_bytes(4) + b"free" + text
    return picture[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2) + text + picture[2:]


def environment() -> dict[str, str]:
    """Return this process's environment, with PYTHONPATH so that poison acts in what is started with it."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT), *others])}


def victims(log: Path) -> list[Victim]:
    """Return who was struck, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Victim(harm, int(pid), kind == "child") for harm, pid, kind in (line.split() for line in lines)]
