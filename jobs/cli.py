"""The console script `ray-detr`: `ray-detr COMMAND ...` is the same as `python -m jobs.COMMAND ...`."""

import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from jobs.exits import WRONG_USE, run_process

_FOLDER = Path(__file__).parent
_NOT_COMMANDS = {"__init__", "cli", "exits", "options", "parser", "progress"}


def commands() -> list[str]:
    """Return the names of all commands: one for each module of this package, except helpers."""
    names = (path.stem for path in _FOLDER.glob("*.py"))
    return sorted(name for name in names if name not in _NOT_COMMANDS and not name.startswith("_"))


def main() -> NoReturn:
    """Run the command in the first argument and end the process with its exit code; called by the console script."""
    run_process(dispatch)


def dispatch(words: Sequence[str] | None = None) -> None:
    """Run the command in the first argument in this process; None uses the command line."""
    words = list(sys.argv[1:] if words is None else words) or ["--help"]
    if words[0] == "help":  # `ray-detr help label` is `ray-detr label --help`
        words = [words[1], "--help"] if len(words) > 1 else ["--help"]
    known = commands()
    name = words[0].replace("-", "_")
    if name in known:
        importlib.import_module(f"jobs.{name}").main(words[1:])
        return
    if words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] in ("-V", "--version"):
        print(versions())
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0].replace('_', '-')!r}?" if near else "ray-detr --help lists the commands."
    print(f"ray-detr: {words[0]!r} is not a command. {hint}", file=sys.stderr)
    sys.exit(WRONG_USE)


def overview() -> str:
    """Return the text of `ray-detr --help`: a line for each command."""
    lines = [f"  {name.replace('_', '-'):18}{_first_line(name)}" for name in commands()]
    return "\n".join([
        "usage: ray-detr COMMAND [OPTION ...]",
        "",
        "Train DETR on a Ray cluster, and detect objects in image lakes with it.",
        "",
        "commands:",
        *lines,
        "",
        "options:",
        "  --help            print this text; `ray-detr COMMAND --help` prints the options of a command",
        "  --version         print the versions of ray-detr, Python, torch, CUDA and Ray",
    ])  # fmt: skip


def versions() -> str:
    """Return one line with the versions that a bug report needs, without importing any of the packages."""
    python = ".".join(map(str, sys.version_info[:3]))
    cuda = _cuda_version() or "none"
    return (
        f"ray-detr {_version('ray-detr')}, Python {python}, torch {_version('torch')}, CUDA {cuda}, "
        f"Ray {_version('ray')}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _cuda_version() -> str | None:
    """Return the CUDA version that torch was built for, which only the file torch/version.py states."""
    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text()
    except (metadata.PackageNotFoundError, OSError):
        return None
    found = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
    return None if found is None else found[1]


def _first_line(command: str) -> str:
    """Return the first line of a command's docstring, without importing its module."""
    text = (_FOLDER / f"{command}.py").read_text()
    return text.partition('"""')[2].partition("\n")[0].removesuffix('"""')


if __name__ == "__main__":
    main()
