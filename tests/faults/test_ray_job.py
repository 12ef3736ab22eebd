"""A run as a job of Ray's, as docs/operations.md submits it: stopped as operators stop jobs, and submitted again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checks import check_history, check_table, images_begun, watched
from tests.faults.conftest import ACTORS, MOST_AGAIN, ROOT, SHARD, CountingRay, Drivers, counting
from tests.faults.own_ray import LOOPBACK, own_ray
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 400
PATIENCE = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'


def test_a_job_that_is_stopped_says_so_and_goes_on_when_it_is_submitted_again(
    lake: Callable[[int], Path], tmp_path: Path, report: Callable[..., None]
) -> None:
    work = tmp_path / "work"
    started = time.monotonic()
    with own_ray({"num_cpus": 4, "include_dashboard": True}, environment=counting(work)) as cluster:
        options = ("--shard-images", str(SHARD), "--actors", f"{ACTORS}:{ACTORS}")
        run = Drivers(lake(IMAGES), tmp_path / "table", CountingRay(cluster.address, work), "run", options)

        def job(*arguments: str) -> str:
            command = [str(Path(sys.executable).with_name("ray")), "job", arguments[0]]
            command += ["--address", f"http://{cluster.dashboard}", *arguments[1:]]
            env = {**os.environ, "RAY_AUTH_MODE": "disabled", **LOOPBACK}
            for _ in range(60):
                done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
                if "No available agent" not in done.stderr:
                    break
                time.sleep(1)  # a cluster that has only just begun takes no job yet, and says so
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        submit = ["submit", "--working-dir", ".", "--runtime-env-json", PATIENCE]
        with watched(run.table, tmp_path / "history") as seen:
            job(*submit, "--no-wait", "--submission-id", "night", "--", *run.command())
            wait_until(lambda: run.committed() >= 10, 180, "the first parts")
            told = time.monotonic()
            job("stop", "night")
            stopping = time.monotonic() - told
            state, log = job("status", "night"), job("logs", "night")
            job(*submit, "--submission-id", "night-again", "--", *run.command())
            again = job("logs", "night-again")
    check_history(seen)
    images = check_table(run.table, run.run_id)
    begun = images_begun(work, run.table, run.run_id)
    report(
        line="ray job stop",
        rows=images,
        planned=IMAGES,
        begun=begun,
        work=round(begun / images, 3),
        stopped_after=round(stopping, 1),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    assert "was stopped" in state
    assert "terminated: run the same command again to resume." in log.splitlines()
    assert "Traceback" not in log
    assert "resumed: " in again
    assert images == IMAGES
    assert images <= begun <= images + MOST_AGAIN
