"""The RUN lines of the Dockerfile's CPU target, taken from the file and run in a new virtual environment.

What is different from a build of the image:

- The base image is missing, with its Ray and its packages of apt. The virtual environment's Python stands in for it.
- `/tmp/` in the lines is a temporary folder of the test, so that nothing of this machine is overwritten.
- Packages of the lock file are not installed, which would take 5 minutes and 7 GB: `PIP_DRY_RUN` makes pip only find
  each of them on the index, for this Python and system. `ray-detr --version` and `--help` need none of them.
- `TORCH_INDEX` is the index that pip uses here. PyTorch's index of CPU wheels is not asked.

The wheel is built and installed as in the image. The network is used: pip's index.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEFAULT_SHELL = ["/bin/sh", "-c"]
DEFAULT_INDEX = "https://pypi.org/simple"


def stage_lines(stage: str) -> list[tuple[str, str]]:
    """Return the instructions of a stage of the Dockerfile with their arguments, without line continuations."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    begin = next(number for number, line in enumerate(lines) if re.fullmatch(rf"FROM \S+ AS {stage}", line))
    end = next((number for number, line in enumerate(lines) if number > begin and line.startswith("FROM ")), len(lines))
    instructions = [line.partition(" ") for line in lines[begin + 1 : end]]
    return [(name, arguments) for name, _, arguments in instructions]


class Machine:
    """A folder that stands in for an image's /tmp, and a new virtual environment for its Python."""

    def __init__(self, folder: Path) -> None:
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        venv.create(folder / "python", with_pip=True)
        scripts = folder / "python" / "bin"
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        }
        settings = self.run([*DEFAULT_SHELL, "python -m pip config list"], self.tmp)
        index = re.search(r"^(?:global|:env:)\.index-url='(.+)'$", settings, re.MULTILINE)
        self._environment["TORCH_INDEX"] = DEFAULT_INDEX if index is None else index[1]

    def run(self, command: list[str], folder: Path, *, dry: bool = False) -> str:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**self._environment, **({"PIP_DRY_RUN": "1"} if dry else {})},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def build(self, stage: str) -> list[str]:
        """Run the RUN lines of a stage; return their output."""
        shell, folder, outputs = DEFAULT_SHELL, self.tmp, list[str]()
        for name, arguments in stage_lines(stage):
            if name == "SHELL":
                shell = json.loads(arguments)
            elif name == "WORKDIR":
                folder = self.tmp / Path(arguments).relative_to("/tmp")  # noqa: S108 - of the image, as below
            elif name == "RUN":
                line = arguments.replace("/tmp/", f"{self.tmp}/")  # noqa: S108
                outputs.append(self.run([*shell, line], folder, dry="--requirement" in line))
        return outputs


def names(lock: Path) -> set[str]:
    return {line.partition("==")[0] for line in lock.read_text().splitlines() if "==" in line}


@pytest.mark.long
def test_the_steps_of_the_cpu_image_build_and_start_the_command(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    source = machine.tmp / "source"
    source.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():  # COPY . .
        if line.startswith("!"):
            sent = ROOT / line[1:]
            if sent.is_dir():
                shutil.copytree(sent, source / sent.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(sent, source)
    shutil.copy(ROOT / "requirements.lock", machine.tmp)  # COPY requirements.lock /tmp/requirements.lock
    machine.build("wheel")
    installs, version = machine.build("cpu")
    gpu_installs, gpu_version = machine.build("gpu")
    helped = machine.run([*DEFAULT_SHELL, "ray-detr --help"], tmp_path)

    whole, torch, rest = (names(machine.tmp / name) for name in ("requirements.lock", "torch.lock", "rest.lock"))
    assert torch == {"torch", "torchvision"}
    assert {name for name in whole - torch - rest if not name.startswith(("nvidia-", "cuda-"))} == {"triton"}
    assert {"ray", "numpy", "pyarrow"} <= rest < whole
    assert re.search(r"^Would install .*\btorch-", installs, re.MULTILINE)
    assert re.search(r"^Would install .*\bnvidia-", gpu_installs, re.MULTILINE)
    for printed in (version, gpu_version):
        assert re.search(r"^ray-detr \d+\.\d+", printed, re.MULTILINE)
    assert "label" in helped
