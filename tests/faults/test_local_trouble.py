"""Trouble of the cluster itself: a run stops within two minutes and says in one sentence what and where, or it goes on.

Each test has a Ray of its own, with the trouble built in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.checks import check_table
from tests.faults.conftest import ROOT, SHARD, CountingRay, Drivers
from tests.faults.own_ray import LOOPBACK, OwnRay, own_ray
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 24
BARE = {"env_vars": {"PYTHONPATH": str(Path(__file__).with_name("bare_site"))}}
DEADLY = {"env_vars": {"PYTHONPATH": str(Path(__file__).with_name("deadly_site"))}}

# fills most of the object store until its input ends
FILLER = """
import sys
import numpy, ray
ray.init(log_to_driver=False, logging_level="ERROR")
kept = [ray.put(numpy.ones(2**20, numpy.uint8)) for _ in range(int(sys.argv[1]))]
print("full", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run_on(lake: Callable[[int], Path], tmp_path: Path) -> Callable[..., Drivers]:
    images = lake(IMAGES)

    def make(cluster: OwnRay, *options: str) -> Drivers:
        ray = CountingRay(cluster.address, tmp_path / "work")
        shards = ("--shard-images", str(SHARD), *options)
        return Drivers(images, tmp_path / "table", ray, "run", shards, environment=LOOPBACK)

    return make


def stopped(run: Drivers) -> str:
    """Run the command, which must stop with one sentence within two minutes, and return that."""
    with run.running() as driver:
        _, err = driver.communicate(timeout=120)
    assert driver.returncode == 1, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "\x1b" not in last, "colours of Ray's"
    return last


@pytest.mark.parametrize("head_cpus", [0, 1])
def test_a_node_without_the_package_is_named(
    run_on: Callable[..., Drivers], report: Callable[..., None], head_cpus: int
) -> None:
    # without a core of the head's, already the probe of the model meets that node; with it, only the pool does
    started = time.monotonic()
    with own_ray({"num_cpus": head_cpus}, {"num_cpus": 1, **BARE}) as cluster:
        actors = str(1 + head_cpus)
        said = stopped(run_on(cluster, "--actors", f"{actors}:{actors}"))
    report(line="a node without the package", said=said, seconds=round(time.monotonic() - started, 1))
    assert "node 127.0.0.1 has no Python package pipelines. Install ray-detr" in said


def test_a_model_that_kills_its_process_while_it_is_loaded_stops_the_run(
    run_on: Callable[..., Drivers], report: Callable[..., None]
) -> None:
    started = time.monotonic()
    with own_ray({"num_cpus": 1, **DEADLY}) as cluster:
        said = stopped(run_on(cluster))
    report(line="a model that kills its process", said=said, seconds=round(time.monotonic() - started, 1))
    assert "the process that loaded scenes was killed" in said


def test_more_actors_than_there_is_room_for_stop_the_run(
    run_on: Callable[..., Drivers], report: Callable[..., None]
) -> None:
    started = time.monotonic()
    with own_ray({"num_cpus": 2}) as cluster:
        said = stopped(run_on(cluster, "--actors", "64:64"))
    report(line="more actors than there is room for", said=said, seconds=round(time.monotonic() - started, 1))
    assert "64 actors do not fit: each needs 1 CPU, and the cluster has room for 2" in said


def test_a_full_object_store_that_does_not_spill_stops_no_run(
    run_on: Callable[..., Drivers], report: Callable[..., None]
) -> None:
    # what travels is status rows of a kilobyte, which Ray keeps in the processes themselves
    started = time.monotonic()
    small = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
    with own_ray(small, environment={"RAY_automatic_object_spilling_enabled": "0"}) as cluster, full(cluster, 75):
        run = run_on(cluster)
        run.finish()
    images = check_table(run.table, "run")
    report(line="object store full, no spilling", rows=images, seconds=round(time.monotonic() - started, 1))
    assert images == IMAGES


def test_a_full_disk_below_ray_stops_no_run(run_on: Callable[..., Drivers], report: Callable[..., None]) -> None:
    started = time.monotonic()
    with own_ray({"num_cpus": 2}, environment={"RAY_local_fs_capacity_threshold": "0.0001"}) as cluster:
        run = run_on(cluster)
        run.finish()
    images = check_table(run.table, "run")
    report(line="disk below Ray full", rows=images, seconds=round(time.monotonic() - started, 1))
    assert images == IMAGES


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk: run as root")
def test_a_full_disk_below_the_table_stops_the_run_and_the_same_command_goes_on_when_there_is_room(
    run_on: Callable[..., Drivers], report: Callable[..., None]
) -> None:
    started = time.monotonic()
    with own_ray({"num_cpus": 2}) as cluster:
        run = run_on(cluster)
        with small_disk(Path(run.table), kilobytes=128):
            said = stopped(run)
            mount("-o", "remount,size=64m", str(run.table))
            run.finish()
            images = check_table(run.table, "run")
    report(line="disk below the table full", said=said, rows=images, seconds=round(time.monotonic() - started, 1))
    assert "the disk is full" in said
    assert images == IMAGES


@contextmanager
def full(cluster: OwnRay, megabytes: int) -> Iterator[None]:
    """Keep so much in the object store of a Ray."""
    filler = subprocess.Popen(
        [sys.executable, "-c", FILLER, str(megabytes)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled", **LOOPBACK},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert filler.stdout is not None
        assert filler.stdout.readline() == "full\n"
        yield
    finally:
        filler.kill()
        filler.communicate()


@contextmanager
def small_disk(folder: Path, *, kilobytes: int) -> Iterator[None]:
    """Mount a disk of so much."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))
    try:
        yield
    finally:
        unmount = ["umount", str(folder)]
        wait_until(lambda: subprocess.run(unmount, check=False).returncode == 0, 30, "the end of all use of the disk")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)  # noqa: S607 - where it lies differs
