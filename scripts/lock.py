"""Write requirements.lock and requirements-dev.lock: every package of the resolved set, pinned.

Run by `make lock` with the project's own interpreter. pip resolves, this only writes down what it found.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ["setuptools>=77", "wheel"]  # what installs the project itself, in development


def resolve(requirements: list[str]) -> dict[str, str]:
    """Return name -> version of everything that the requirements need."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run([*command, *requirements], check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    found = (item["metadata"] for item in json.loads(report)["install"])
    return {item["name"].lower().replace("_", "-"): item["version"] for item in found}


def write(path: Path, pins: dict[str, str], heading: str) -> None:
    """Write one lock file."""
    lines = [f"# {heading}", "# Written by `make lock` for Linux x86-64, Python 3.11. Do not edit."]
    path.write_text("\n".join([*lines, *(f"{name}=={version}" for name, version in sorted(pins.items()))]) + "\n")


def main() -> None:
    """Resolve all at once, so that both files agree, and part the runtime from the rest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = project["project"]["dependencies"]
    everything = resolve([*runtime, *project["dependency-groups"]["dev"], *BUILD])
    pinned = [f"{name}=={version}" for name, version in everything.items()]
    needed = resolve([*runtime, *(f"--constraint={_constraints(pinned)}",)])
    write(ROOT / "requirements.lock", needed, "What ray-detr needs to run.")
    rest = {name: version for name, version in everything.items() if name not in needed}
    write(ROOT / "requirements-dev.lock", rest, "What its development needs beside requirements.lock.")


def _constraints(pinned: list[str]) -> Path:
    path = ROOT / "build" / "constraints.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(pinned) + "\n")
    return path


if __name__ == "__main__":
    main()
