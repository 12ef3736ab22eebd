"""A run on two hosts goes on when one is lost, or the link to it: nothing is lost or labelled twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checks import begun, check_history, check_table, images_begun, watched
from tests.faults.conftest import SHARD, CountingRay, Drivers, counting
from tests.faults.two_hosts import NEEDED, SOON, TwoHosts, preemption, two_hosts
from tests.waiting import wait_until

pytestmark = [*NEEDED, pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 1_200
ACTORS = "3:3"  # one on the head, two on the worker
IN_FLIGHT = 4 * SHARD * 2  # images of the shards in flight on the worker's actors


def run_on(hosts: TwoHosts, lake: Path, table: Path, work: Path) -> Drivers:
    """Return a run whose driver is on the head."""
    options = ("--shard-images", str(SHARD), "--actors", ACTORS, "--shared-folders", "--json")
    return Drivers(lake, table, CountingRay(hosts.address, work), "run", options, python=hosts.python("head"))


@pytest.mark.parametrize("fault", ["raylet SIGKILL", "link cut for 20 s", "link cut until the host counts as dead"])
def test_a_run_that_loses_a_host_in_its_midst_ends_by_itself_and_loses_nothing(
    lake: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[..., None],
    fault: str,
) -> None:
    work = tmp_path / "work"
    environment = {**counting(work), **({} if fault == "link cut for 20 s" else SOON)}
    started = time.monotonic()
    with two_hosts(monkeypatch, **environment) as hosts:
        run = run_on(hosts, lake(IMAGES), tmp_path / "table", work)
        with watched(run.table, tmp_path / "history") as seen, run.running() as driver:
            wait_until(
                lambda: sum(one.host == "worker" for one in begun(work)) >= 20, 180, "some shards of the worker's"
            )
            struck = time.monotonic()
            if fault == "raylet SIGKILL":
                hosts.do("kill-raylet")
            else:
                hosts.do("cut")
                time.sleep(20)
                hosts.do("restore")
            out, err = driver.communicate(timeout=400)
            ended_after = time.monotonic() - struck
    assert driver.returncode == 0, err
    check_history(seen)
    images = check_table(run.table, "run")
    work_done = images_begun(work, run.table, "run")
    report(
        line=f"two hosts, {fault}",
        rows=images,
        planned=IMAGES,
        begun=work_done,
        work=round(work_done / images, 3),
        ended_after=round(ended_after, 1),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    assert images == IMAGES
    assert json.loads(out)["errors"] == {}
    assert images <= work_done <= images + IN_FLIGHT


def test_a_run_leaves_a_host_that_is_preempted(
    lake: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    work, notice = tmp_path / "work", tmp_path / "notice"
    with two_hosts(monkeypatch, **counting(work), **SOON) as hosts, preemption(hosts, notice) as watching:
        run = run_on(hosts, lake(IMAGES), tmp_path / "table", work)
        with watched(run.table, tmp_path / "history") as seen, run.running() as driver:
            wait_until(
                lambda: sum(one.host == "worker" for one in begun(work)) >= 20, 180, "some shards of the worker's"
            )
            notice.touch()
            assert watching.wait(60) == 0  # the host is drained; a cloud takes it two minutes later
            hosts.do("kill-host")
            out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    check_history(seen)
    images = check_table(run.table, "run")
    work_done = images_begun(work, run.table, "run")
    report(line="two hosts, preemption notice", rows=images, planned=IMAGES, begun=work_done)
    assert images == IMAGES
    assert json.loads(out)["errors"] == {}
    assert images <= work_done <= images + IN_FLIGHT
