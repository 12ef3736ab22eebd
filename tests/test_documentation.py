"""The README names every command, option and error kind, and nothing that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import commands
from pipelines.table import ERROR_KINDS, SCHEMA

README = (Path(__file__).parent.parent / "README.md").read_text()
OF_QUARANTINE = {"crashed", "decode_timeout", "out_of_memory"}  # no code gives these rows yet


def options_of(command: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-m", f"jobs.{command}", "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", shown.stdout)) - {"--help"}


@pytest.mark.parametrize("command", commands())
def test_a_command_and_its_options_are_in_the_readme(command: str) -> None:
    assert f"jobs.{command}" in README
    assert {option for option in options_of(command) if option not in README} == set()


def test_every_command_of_the_readme_is_there() -> None:
    assert set(re.findall(r"jobs\.([a-z_]+)", README)) <= set(commands())


def test_every_error_kind_that_rows_can_have_is_in_the_readme() -> None:
    assert {kind for kind in ERROR_KINDS - OF_QUARANTINE if f"`{kind}`" not in README} == set()


def test_every_column_is_in_the_readme() -> None:
    assert {name for name in SCHEMA.names if f"`{name}`" not in README} == set()
