"""What `make audit` says: a vulnerability fails it, and an answer that says nothing is not taken for a good one."""

from __future__ import annotations

import runpy
from pathlib import Path

AUDIT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "audit.py"))
GOOD = {"name": "pyarrow", "version": "26.0.1", "vulns": []}
BAD = {
    "name": "pillow",
    "version": "9.0.0",
    "vulns": [{"id": "PYSEC-2023-175", "aliases": ["CVE-2023-4863"], "fix_versions": ["10.0.1"], "description": "d"}],
}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.14.1)"}


def test_a_vulnerability_is_named_with_its_remedy_and_fails() -> None:
    assert AUDIT["verdict"]([GOOD, BAD]) == (
        [
            "pillow 9.0.0: PYSEC-2023-175, CVE-2023-4863; mended in 10.0.1",
            "audited: 2 of 2 packages, 1 known vulnerabilities",
        ],
        False,
    )


def test_packages_that_were_not_looked_up_are_said() -> None:
    assert AUDIT["verdict"]([GOOD, SKIPPED]) == (
        [
            "audited: 1 of 2 packages, 0 known vulnerabilities",
            "NOT audited: 1 packages that the service does not know (torch).",
        ],
        True,
    )


def test_nothing_known_of_any_package_is_good() -> None:
    assert AUDIT["verdict"]([GOOD]) == (["audited: 1 of 1 packages, 0 known vulnerabilities"], True)
