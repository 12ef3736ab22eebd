"""What the fault tests share: a lake, a Ray whose actors are counted, a driver, and the file of figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest

from detr.scenes.files import write_scenes
from pipelines.store import Store, open_store

ROOT = Path(__file__).parents[2]
DRAWN = 8
SHARD = 2
ACTORS = 2
# images of a pool's shards in flight: two wait at each actor, and as many have been taken from it when the driver dies
MOST_AGAIN = 4 * ACTORS * SHARD


@dataclass(frozen=True)
class CountingRay:
    """A Ray on this machine, and the file that its actors add a line to for each shard they begin."""

    address: str
    work: Path


@dataclass(frozen=True)
class Drivers:
    """Starts `jobs.label`, or what stands for it, on one lake, table and cluster, always with the same command."""

    lake: Path | str
    table: Path | str
    ray: CountingRay
    run_id: str | None
    options: tuple[str, ...]
    program: tuple[str, ...] = ("-m", "jobs.label")
    python: tuple[str, ...] = (sys.executable,)
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *more: str) -> list[str]:
        """Return the command."""
        places = ["--images", str(self.lake), "--table", str(self.table)]
        places += ["--run-id", self.run_id] if self.run_id else []
        model = ["--model", "scenes", "--device", "cpu"]
        return [*self.python, *self.program, *places, *model, *self.options, *more]

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Start a driver in a process group of its own."""
        return subprocess.Popen(
            self.command(*more),
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": self.ray.address, "RAY_AUTH_MODE": "disabled", **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell starts what it runs in the background deaf to it, and that is inherited
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    @contextmanager
    def running(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """Start a driver that does not outlive the block."""
        driver = self.start(*more)
        try:
            yield driver
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.communicate()

    def finish(self, *more: str) -> str:
        """Run the command to its end, which must be a good one, and return what it printed."""
        with self.running(*more) as driver:
            out, err = driver.communicate(timeout=300)
        assert driver.returncode == 0, err
        return out

    def committed(self) -> int:
        """Return how many parts there are."""
        return sum(entry.key.endswith(".part") for entry in _opened(str(self.table)).list("_runs/"))


@lru_cache
def _opened(table: str) -> Store:
    """Return the store of a table, which is asked many times a second."""
    return open_store(table)


def counting(work: Path) -> dict[str, str]:
    """Return the environment in which actors write down what they begin."""
    work.touch()
    return {"PYTHONPATH": str(Path(__file__).with_name("counting")), "FAULTS_WORK": str(work)}


@pytest.fixture(scope="session")
def counting_ray(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CountingRay:
    work = tmp_path_factory.mktemp("work") / "begun"
    with pytest.MonkeyPatch.context() as patched:
        for name, value in counting(work).items():
            patched.setenv(name, value)
        if "AWS_ACCESS_KEY_ID" not in os.environ:  # moto takes any keys, but actors have those that Ray began with
            patched.setenv("AWS_ACCESS_KEY_ID", "testing")
            patched.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        address: str = request.getfixturevalue("local_ray")  # the raylet and so all actors inherit both
    return CountingRay(address, work)


@pytest.fixture
def lake(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a lake of so many images: a few small scenes under many names."""

    def make(count: int) -> Path:
        folder = tmp_path / "lake"
        write_scenes(folder, DRAWN, 11, sizes={(96, 128): 1})
        (folder / "instances.json").unlink()
        drawn = sorted(folder.glob("*.jpg"))
        for number in range(count - DRAWN):
            (folder / f"copy {number:05d}.jpg").hardlink_to(drawn[number % DRAWN])
        return folder

    return make


@pytest.fixture
def drivers(tmp_path: Path, lake: Callable[[int], Path], counting_ray: CountingRay) -> Callable[[int], Drivers]:
    """Makes the drivers of one run over so many images, in small shards."""

    def make(images: int) -> Drivers:
        options = ("--shard-images", str(SHARD), "--actors", f"{ACTORS}:{ACTORS}")
        return Drivers(lake(images), tmp_path / "table", counting_ray, tmp_path.name, options)

    return make


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Adds a line of figures to $FAULTS_REPORT, which outlives the tests, and prints it."""
    path = Path(os.environ.get("FAULTS_REPORT") or tmp_path_factory.mktemp("report") / "faults.jsonl")

    def write(**figures: object) -> None:
        line = json.dumps(figures)
        with path.open("a") as file:
            file.write(line + "\n")
        sys.stdout.write(line + "\n")

    return write
