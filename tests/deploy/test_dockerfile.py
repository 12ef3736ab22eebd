"""The Dockerfile, by its linter and by what it must share with the lock file. No image is built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_linter_has_no_finding() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)

    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_images_have_the_locked_ray() -> None:
    (locked,) = re.findall(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)

    assert re.findall(r"^ARG RAY_VERSION=(.+)$", DOCKERFILE, re.MULTILINE) == [locked]
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {
        "rayproject/ray:${RAY_VERSION}-py311-cpu",
        "rayproject/ray:${RAY_VERSION}-py311-gpu",
    }


def test_what_the_wheel_is_built_from_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert sent == {"detr", "jobs", "pipelines", "LICENSE", "README.md", "pyproject.toml", "requirements.lock"}
