"""The main job as a shell or a scheduler sees it: exit codes, sentences, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from detr.scenes.files import write_scenes
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MANY = 200


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Three small scenes and a page."""
    folder = tmp_path / "lake"
    write_scenes(folder, 3, 4, sizes={(96, 128): 1})
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    return folder


def command(lake: Path, *more: str) -> list[str]:
    line = ["--images", str(lake), "--table", str(lake.parent / "table"), "--model", "scenes", "--device", "cpu"]
    return [sys.executable, "-m", "jobs.label", *line, *more]


def label(lake: Path, *more: str, ray: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if ray is None else {"RAY_ADDRESS": ray, "RAY_AUTH_MODE": "disabled"})}
    return subprocess.run(
        command(lake, *more), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def names(lake: Path) -> list[str]:
    table: Sequence[dict[str, Any]] = pyarrow.dataset.dataset(lake.parent / "table" / "data").to_table().to_pylist()
    return sorted(Path(row["uri"]).name for row in table)


def lake_names(lake: Path) -> list[str]:
    return sorted(path.name for path in lake.glob("*.jpg"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_a_cluster_that_is_there_ends_with_its_report_and_too_many_errors_with_3(
    local_ray: str, lake: Path
) -> None:
    done = label(lake, "--actors", "1", ray=local_ray)

    assert done.returncode == 3
    report = done.stdout.splitlines()
    assert report[0].startswith("done: 4 images in ")
    assert report[1] == "errors: 1 (25 %): not_an_image 1"
    assert [line.partition(":")[0] for line in report[2:]] == ["work", "left out", "table", "query", "note"]
    assert names(lake) == lake_names(lake)
    # nothing of Ray's: what is not ours would be read as a message of ours
    said = done.stderr.splitlines()
    assert said[-1].startswith("error: 1 of 4 images have errors: a share of 0.25, but --max-error-rate allows 0.05.")
    stages = ["listing images and reading the table", "planning", "connecting to Ray"]
    assert [line.strip() for line in said[:-1] if not line.startswith(("  label ", "note: "))] == stages


@pytest.mark.ray
def test_a_class_that_is_mistyped_is_reported_with_the_nearest(local_ray: str, lake: Path) -> None:
    done = label(lake, "--classes", "sqare", ray=local_ray)

    assert (done.returncode, done.stdout) == (2, "")
    assert not (lake / "table").exists()
    assert "'sqare' is not a class of scenes. Did you mean 'square'?" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_folder_that_is_not_there_is_reported_and_no_table_is_made(lake: Path) -> None:
    done = label(lake / "other")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: there is nothing at {lake}/other. Check the address.")
    assert not (lake / "table").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(local_ray: str, lake: Path) -> None:
    for number in range(MANY - 4):
        (lake / f"copy {number:04d}.jpg").hardlink_to(lake / "scene_4_000000.jpg")
    table = lake.parent / "table"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    running = subprocess.Popen(
        command(lake, "--shard-images", "4"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell starts what it runs in the background deaf to it, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_until(lambda: any(table.glob("_runs/*/parts/*.part")), 300)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all that run in its foreground
        out, err = running.communicate(timeout=240)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)

    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: run the same command again to resume."
    assert "Traceback" not in err

    done = label(lake, "--shard-images", "4", "--actors", ":1", "--json", ray=local_ray)

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["resumed"]) == (MANY, True)
    assert 0 < summary["images_this_start"] < MANY
    assert names(lake) == lake_names(lake)


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_start_leaves_with_4_and_names_the_first_and_one_that_waits_finds_nothing_to_do(
    local_ray: str, lake: Path
) -> None:
    table = lake.parent / "table"
    environment = {**os.environ, "RAY_ADDRESS": local_ray, "RAY_AUTH_MODE": "disabled"}
    first = subprocess.Popen(command(lake, "--max-error-rate", "1"), cwd=ROOT, env=environment)
    waiting: list[str] = []
    try:
        wait_until((table / "_lease.json").exists, 60)
        os.kill(first.pid, signal.SIGSTOP)  # else it may be done before the second looks
        second = label(lake, ray=local_ray)
        with subprocess.Popen(
            command(lake, "--wait-minutes", "5"),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as third:
            assert third.stderr is not None
            for line in third.stderr:
                waiting.append(line)
                if "waiting:" in line:
                    break
            os.kill(first.pid, signal.SIGCONT)
            out, err = third.communicate(timeout=200)
    finally:
        os.kill(first.pid, signal.SIGCONT)
        first.wait(timeout=100)

    assert first.returncode == 0
    assert (second.returncode, second.stdout) == (4, "")
    assert f"is being written by another process (host {os.uname().nodename}, pid {first.pid}, " in second.stderr
    assert third.returncode == 0, err
    assert f"waiting: table file://{table} is being written by another process" in waiting[-1]
    assert out.startswith("nothing to do: all 4 images have rows of ")
    assert names(lake) == lake_names(lake)
