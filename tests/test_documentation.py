"""The documents name every command, option, column and error kind, and nothing that does not exist."""

import re
import runpy
from pathlib import Path

from jobs.cli import commands
from pipelines.table import ERROR_KINDS, SCHEMA

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OF_QUARANTINE = {"crashed", "decode_timeout", "out_of_memory"}  # no code gives these rows yet


def test_the_reference_of_the_commands_is_what_their_help_prints() -> None:
    written_by_script = runpy.run_path(str(ROOT / "scripts" / "cli_reference.py"))["reference"]()

    assert (ROOT / "docs" / "cli.md").read_text() == written_by_script, "run `make docs`"
    assert all(f"## {name.replace('_', '-')}\n" in written_by_script for name in commands())


def test_every_command_of_the_readme_is_there() -> None:
    assert set(re.findall(r"jobs\.([a-z_]+)", README)) <= set(commands())


def test_every_error_kind_that_rows_can_have_is_in_the_readme() -> None:
    assert {kind for kind in ERROR_KINDS - OF_QUARANTINE if f"`{kind}`" not in README} == set()


def test_every_column_is_in_the_readme() -> None:
    assert {name for name in SCHEMA.names if f"`{name}`" not in README} == set()
