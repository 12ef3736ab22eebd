"""What an installed ray-detr contains."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_installed() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for layer in ("detr", "pipelines", "jobs")
        for path in (ROOT / layer).rglob("__init__.py")
    }

    assert found == set(SETUPTOOLS["packages"])


def test_the_templates_of_pages_are_installed() -> None:
    assert SETUPTOOLS["package-data"]["pipelines.report"] == ["template/*"]
    assert SETUPTOOLS["package-data"]["pipelines.repeats"] == ["template/*"]
