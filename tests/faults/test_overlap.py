"""Starts of one job that overlap, as a schedule's do when a night is too short: one writes, the others wait or go."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.checks import check_history, check_table, images_begun, watched
from tests.faults.conftest import MOST_AGAIN, Drivers
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 200


def test_a_second_start_leaves_with_4_and_names_the_holder_and_the_first_goes_on(
    drivers: Callable[[int], Drivers], tmp_path: Path, report: Callable[..., None]
) -> None:
    run = drivers(IMAGES)
    started = time.monotonic()
    with watched(run.table, tmp_path / "history") as seen, run.running() as first:
        wait_until((run.table / "_lease.json").exists, 120, "the first start's lease")
        told = time.monotonic()
        with run.running() as second:
            _, refusal = second.communicate(timeout=60)
        refused_after = time.monotonic() - told
        _, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    assert second.returncode == 4, refusal
    assert f"is being written by another process (host {socket.gethostname()}, pid {first.pid}," in refusal
    assert "Traceback" not in refusal
    check_history(seen)
    images = check_table(run.table, run.run_id)
    work = images_begun(run.ray.work, run.table, run.run_id)
    report(
        line="two starts at once, the second leaves",
        rows=images,
        planned=IMAGES,
        begun=work,
        work=round(work / images, 3),
        refused_after=round(refused_after, 1),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    assert images == work == IMAGES


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_job_that_overlaps_itself_three_times_labels_each_image_once(
    drivers: Callable[[int], Drivers], tmp_path: Path, report: Callable[..., None], is_killed: bool
) -> None:
    job = replace(drivers(IMAGES), run_id=None)  # a schedule's command says no run's name
    started = time.monotonic()
    with watched(job.table, tmp_path / "history") as seen, ExitStack() as stack:
        first = stack.enter_context(job.running("--json"))
        wait_until(lambda: job.committed() >= 3, 120, "the first parts")
        others = [stack.enter_context(job.running("--json", "--wait-minutes", "10")) for _ in range(3)]
        if is_killed:
            wait_until(lambda: job.committed() >= 20, 120, "some parts")
            os.killpg(first.pid, signal.SIGKILL)
        done = [driver.communicate(timeout=300) for driver in (first, *others)]
    codes = [driver.returncode for driver in (first, *others)]
    assert codes == [-signal.SIGKILL if is_killed else 0, 0, 0, 0], done
    check_history(seen)
    (run_id,) = {path.stem.rpartition("-")[0] for path in job.table.glob("data/*.parquet")}
    images = check_table(job.table, run_id)
    work = images_begun(job.ray.work, job.table, run_id)
    labelled = sorted(json.loads(out)["images_this_start"] for out, _ in done if out)
    report(
        line="four overlapping starts" + (", the first killed" if is_killed else ""),
        rows=images,
        planned=IMAGES,
        begun=work,
        work=round(work / images, 3),
        labelled_by_start=labelled,
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    assert images == IMAGES
    assert sum(n > 0 for n in labelled) == 1, "one start did all that was left"
    assert images <= work <= images + MOST_AGAIN * is_killed
