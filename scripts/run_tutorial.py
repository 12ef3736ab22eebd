"""Run the commands of the tutorial in order, and write what they print into it.

    python scripts/run_tutorial.py docs/tutorial.md

A command is a line that begins with "$ " in a fenced block, and what it printed follows it. Commands that prepare the
machine are left out (`PREPARE`). If a command ends with another exit code than the next `echo $?` shows, or than 0, the
page stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PREPARE = ("make demo", "source .venv/bin/activate", "mkdir /tmp/hour && cd /tmp/hour")
FOLDER = "/tmp/hour"  # noqa: S108 - where the page's reader works
ASK_CODE = "echo $?"


@dataclass(frozen=True, slots=True)
class Step:
    """A command of the page.

    Attributes:
        line: the number of its first line on the page, from 0.
        command: the typed command, with its continuation lines.
        output: the lines that follow it.
        code: its exit code: what the `echo $?` after it shows, or 0.
    """

    line: int
    command: str
    output: tuple[str, ...]
    code: int = 0

    @property
    def typed_lines(self) -> int:
        """The number of lines of the command."""
        return self.command.count("\n") + 1


def steps_of(page: str) -> list[Step]:
    """Return the commands of a Markdown page, with the output that it shows."""
    steps: list[Step] = []
    fenced = typed = False  # inside a fenced block; at a continuation line of a command
    first = 0  # the steps of this block
    for number, line in enumerate(page.splitlines()):
        if line.startswith("```"):
            fenced, typed, first = not fenced, False, len(steps)
        elif fenced and line.startswith("$ "):
            steps.append(Step(number, line[2:], ()))
            typed = line.endswith("\\")
        elif typed:
            steps[-1] = replace(steps[-1], command=f"{steps[-1].command}\n{line}")
            typed = line.endswith("\\")
        elif fenced and len(steps) > first:
            steps[-1] = replace(steps[-1], output=(*steps[-1].output, line))
    for index, step in enumerate(steps):
        if step.command == ASK_CODE:
            steps[index - 1] = replace(steps[index - 1], code=int(step.output[0]))
    return [step for step in steps if step.command not in PREPARE]


def run(steps: Sequence[Step], folder: Path) -> list[Step]:
    """Run commands one after the other in a new folder, and return them with what they print and their exit codes.

    Standard output and standard error come together, as on a terminal. The commands that the page calls `ray-detr` are
    those of this Python. The path of the folder is printed as that of the page.
    """
    mark = secrets.token_hex(8)
    script = "".join(
        f"(exit ${{code:-0}})\n{step.command}\ncode=$?; echo {mark} $code\n" for step in steps
    )  # `(exit N)` is for `echo $?`
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(  # noqa: S603 - the commands of our own page
        ["bash", "-c", script],  # noqa: S607 - the reader's shell
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    printed = done.stdout.replace(str(folder.resolve()), FOLDER)
    parts = re.split(rf"{mark} (\d+)\n", printed)
    return [
        replace(step, output=tuple(text.splitlines()), code=int(code))
        for step, text, code in zip(steps, parts[0::2], parts[1::2], strict=False)
    ]


def rewritten(page: str, steps: Sequence[Step], ran: Sequence[Step]) -> str:
    """Return the page with new output after its commands."""
    lines = page.splitlines()
    for old, new in reversed(list(zip(steps, ran, strict=True))):
        first = old.line + old.typed_lines
        lines[first : first + len(old.output)] = new.output
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    args = parser.parse_args(argv)
    page = args.page.read_text()
    steps = steps_of(page)
    with tempfile.TemporaryDirectory() as folder:
        ran = run(steps, Path(folder))
    for step, after in zip(steps, ran, strict=True):
        if step.code != after.code:
            sys.exit("\n".join([f"error: exit code {after.code} of: {step.command}", *after.output]))
    args.page.write_text(rewritten(page, steps, ran))
    print(f"wrote {args.page}: {len(ran)} commands")


if __name__ == "__main__":
    main()
