"""The parser of a command: accepts variants of option names, and prints short errors."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from jobs.exits import WRONG_USE

_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*):/+([^\s'\"]+)")


class AsWritten(argparse.RawDescriptionHelpFormatter):
    """Prints a description as it is written, and an option of two names with its value once, as Python 3.13 does."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class _Store(argparse.Action):
    """Stores the values of an option. A list option that is given again adds to its list; argparse would replace it."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _name: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        if self.nargs == "+" and before is not None and before is not self.default:
            values = [*before, *values]
        setattr(namespace, self.dest, values)


class CommandParser(argparse.ArgumentParser):
    """Parser of one command: `--max_images` means `--max-images`, and an error is one line.

    Args:
        command: the name after `ray-detr`, such as `label`.
        description: the docstring of the command's module, printed unchanged.
        usage: text after the program's name in the usage; by default the required arguments and `[OPTION ...]`.
    """

    def __init__(self, command: str, description: str | None, *, usage: str | None = None) -> None:
        super().__init__(prog=typed_program(command), description=description, formatter_class=AsWritten)
        self.register("action", None, _Store)  # where add_argument has no `action`
        self._usage = usage
        self._words: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Parse like argparse, but read underscores in option names as hyphens."""
        self._words = [_hyphened(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self._words, namespace)

    def format_usage(self) -> str:
        """Return the usage in one line: the required arguments and `[OPTION ...]`."""
        return f"usage: {self._short_usage()}\n"

    def format_help(self) -> str:
        """Return the help; its usage has only required arguments, because every option has its own line below."""
        self.usage = self._short_usage().replace("%", "%%")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the error in one line, with the most similar option if one is unknown, and exit with code 2.

        argparse quotes the command line, in which an address may contain a password.
        """
        from pipelines.store import without_secrets

        names = [name for action in self._actions for name in action.option_strings]
        own = takewhile(lambda word: word != "--", self._words)  # values follow it, such as another command's line
        given = [word.partition("=")[0] for word in own if word.startswith("--")]
        unknown = next((word for word in given if not any(name.startswith(word) for name in names)), None)
        if unknown is not None:  # argparse would check the required options first
            near = difflib.get_close_matches(unknown, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"{self.prog} --help lists the options."
            message = f"{unknown} is not an option. {hint}"
        message = _ADDRESS.sub(
            lambda found: found[0] if found[1] == "file" else without_secrets(f"{found[1]}://{found[2]}"), message
        )
        self.exit(WRONG_USE, f"{self.prog}: error: {message}\n")

    def _short_usage(self) -> str:
        if self._usage is not None:
            return f"{self.prog} {self._usage}"
        exclusive = [group for group in self._mutually_exclusive_groups if group.required]
        grouped = {action for group in exclusive for action in group._group_actions}  # noqa: SLF001 - argparse has no accessor
        parts = [_usage(action) for action in self._actions if action.required and action not in grouped]
        parts += [f"({' | '.join(map(_usage, group._group_actions))})" for group in exclusive]  # noqa: SLF001
        return " ".join([self.prog, *parts, "[OPTION ...]"])


def typed_program(command: str) -> str:
    """Return how the user started a command: `python -m jobs.label` or `ray-detr label`."""
    module = command.replace("-", "_")
    if Path(sys.argv[0]).name == f"{module}.py":
        return f"python -m jobs.{module}"
    return f"ray-detr {command}"


def _usage(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest.upper())
    if action.choices is not None and action.metavar is None:
        value = f"{{{','.join(map(str, action.choices))}}}"
    if action.nargs == "+":
        value = f"{value} [{value} ...]"
    return " ".join([*action.option_strings[:1], value])


def _hyphened(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word
