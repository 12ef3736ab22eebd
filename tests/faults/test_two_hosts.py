"""A run on two hosts of which one is lost, or the link to it: it goes on with the other, and nothing is lost or twice.

The hosts are network namespaces of this machine (`scripts/two-hosts-ray.sh`); images and table lie in folders that both
see, as both would reach a store while they do not reach each other.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.checks import begun, check_history, check_table, images_begun, watched
from tests.faults.conftest import ROOT, SHARD, CountingRay, Drivers, counting, wait_until
from tests.faults.own_ray import LOOPBACK

pytestmark = [
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.faults,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make two hosts: run as root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs `ip`, to make two hosts: install iproute2"),
]

SCRIPT = str(ROOT / "scripts" / "two-hosts-ray.sh")
IMAGES = 1_200
ACTORS = "3:3"  # one on the head, two on the worker
IN_FLIGHT = 4 * SHARD * 2  # images of the shards in flight on the worker's actors
# a lost node is known after 13 s instead of 64, and a gRPC call to it is given up after 15 s instead of 420
SOON = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}


@dataclass(frozen=True)
class TwoHosts:
    """The two hosts that are up in a folder."""

    folder: str
    address: str = ""

    def do(self, command: str) -> str:
        """Do something to the hosts, and return what the script says."""
        return subprocess.run(
            [SCRIPT, command, self.folder],
            env={**os.environ, "RAY_BIN": str(Path(sys.executable).parent)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=240,
        ).stdout.strip()


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Start two hosts with Ray on them, and end them with the block."""
    folder = f"/tmp/two-{secrets.token_hex(3)}"  # noqa: S108 - Ray's sockets lie below it, whose paths must be short
    hosts = TwoHosts(folder)
    try:
        yield TwoHosts(folder, hosts.do("up"))
    finally:
        hosts.do("down")


def run_on(hosts: TwoHosts, lake: Path, table: Path, work: Path) -> Drivers:
    """Return a run whose driver is on the head."""
    options = ("--shard-images", str(SHARD), "--actors", ACTORS, "--json")
    python = (SCRIPT, "exec", hosts.folder, "head", sys.executable)
    return Drivers(lake, table, CountingRay(hosts.address, work), "run", options, python=python)


@pytest.mark.parametrize("fault", ["raylet SIGKILL", "link cut for 20 s", "link cut until the host counts as dead"])
def test_a_run_that_loses_a_host_in_its_midst_ends_by_itself_and_loses_nothing(
    lake: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[..., None],
    fault: str,
) -> None:
    work = tmp_path / "work"
    for name, value in {**counting(work), **({} if fault == "link cut for 20 s" else SOON)}.items():
        monkeypatch.setenv(name, value)  # hosts and driver inherit it
    for name in LOOPBACK:
        monkeypatch.delenv(name, raising=False)  # from here on there is more than this machine
    started = time.monotonic()
    with two_hosts() as hosts:
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
