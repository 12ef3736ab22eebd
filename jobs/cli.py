"""The console script: `ray-detr COMMAND ...` is `python -m jobs.COMMAND ...`."""

import difflib
import importlib
import sys
from pathlib import Path

from jobs.exits import WRONG_USE, run

_NOT_COMMANDS = {"__init__", "cli", "exits", "options", "progress", "recipe_options", "train_progress"}


def commands() -> list[str]:
    """Return the names of all commands: one a file of this folder, but those that begin with an underscore."""
    names = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in names if name not in _NOT_COMMANDS and not name.startswith("_"))


def main() -> None:
    """Find the command by its file name and leave with its exit code."""
    known = commands()
    asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
    name = asked.replace("-", "_")
    if name in known:
        run(importlib.import_module(f"jobs.{name}").main, sys.argv[2:])
        return
    listing = "commands: " + ", ".join(command.replace("_", "-") for command in known)
    if asked in ("-h", "--help", "help"):
        print(f"usage: ray-detr COMMAND [OPTION ...]\n{listing}\nray-detr COMMAND --help shows a command's options.")
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0].replace('_', '-')!r}?" if near else listing
    print(f"ray-detr: {asked!r} is not a command. {hint}", file=sys.stderr)
    sys.exit(WRONG_USE)


if __name__ == "__main__":
    main()
