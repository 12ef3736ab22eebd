"""Each guarantee in `docs/guarantees.md` names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "guarantees.md"
NAMED = re.findall(r"`([a-z_0-9/]+\.py)::(test_\w+)`", DOCUMENT.read_text())
ROWS = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "guarantee |" not in line]


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED)))
def test_a_named_test_exists(file: str, test: str) -> None:
    functions = [node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)]

    assert test in functions


@pytest.mark.parametrize("row", ROWS)
def test_each_guarantee_names_a_test(row: str) -> None:
    guarantee, proof = row.strip("| ").split(" | ")

    assert guarantee.endswith(".")
    assert "::test_" in proof
