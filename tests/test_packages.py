"""What an installed ray-detr contains."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("detr", "pipelines", "jobs")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_installed() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("__init__.py")
    }

    assert found == set(SETUPTOOLS["packages"])


def test_the_templates_of_pages_are_installed() -> None:
    assert SETUPTOOLS["package-data"]["pipelines.report"] == ["template/*"]
    assert SETUPTOOLS["package-data"]["pipelines.repeats"] == ["template/*"]


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages_and_no_data_is_taken_for_a_package(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, source / layer, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    files = {
        path.relative_to(source).as_posix()
        for layer in LAYERS
        for path in (source / layer).rglob("*")
        if path.is_file()
    }

    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True)

    assert built.returncode == 0, built.stderr
    assert "Package would be ignored" not in built.stdout + built.stderr
    (wheel,) = out.glob("ray_detr-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        scripts = archive.read(entry_points).decode()
    assert names == files
    assert "detr/weights/scenes/model.safetensors" in names
    assert scripts == "[console_scripts]\nray-detr = jobs.cli:main\n"
