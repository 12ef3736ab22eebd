"""A Ray cluster of two hosts, which are network namespaces of this machine (`scripts/two-hosts-ray.sh`).

Images, tables and runs lie in folders that both see, as both would reach a store while they do not reach each other.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import ROOT
from tests.faults.own_ray import LOOPBACK

SCRIPT = str(ROOT / "scripts" / "two-hosts-ray.sh")
NEEDED = (
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make two hosts: run as root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs `ip`, to make two hosts: install iproute2"),
)
# a lost node is known after 13 s instead of 64, and a gRPC call to it is given up after 15 s instead of 420
SOON = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}

PORT = "8169"  # on the worker's own loopback, where nothing else listens


@dataclass(frozen=True)
class TwoHosts:
    """The two hosts that are up in a folder."""

    folder: str
    address: str = ""

    def do(self, command: str) -> str:
        """Do something to the hosts, and return what the script prints."""
        return subprocess.run(
            [SCRIPT, command, self.folder],
            env={**os.environ, "RAY_BIN": str(Path(sys.executable).parent)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=240,
        ).stdout.strip()

    def python(self, host: str) -> tuple[str, ...]:
        """Return the command that runs Python on a host: "head" or "worker"."""
        return (SCRIPT, "exec", self.folder, host, sys.executable)


@contextmanager
def two_hosts(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[TwoHosts]:
    """Start two hosts with Ray on them, and end them with the block.

    Args:
        monkeypatch: Sets the environment, which the hosts and later processes inherit.
        environment: Variables for the hosts, such as `WORKER_CPUS` or those of `SOON`.
    """
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    for name in LOOPBACK:
        monkeypatch.delenv(name, raising=False)  # from here on there is more than this machine
    folder = f"/tmp/two-{secrets.token_hex(3)}"  # noqa: S108 - Ray's sockets lie below it, whose paths must be short
    hosts = TwoHosts(folder)
    try:
        yield TwoHosts(folder, hosts.do("up"))
    finally:
        hosts.do("down")


@contextmanager
def preemption(hosts: TwoHosts, notice: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `ray-detr watch-preemption` on the worker, which hears of its end once the file `notice` exists."""
    python = hosts.python("worker")
    service = [*python, "-m", "tests.metadata_service", str(notice), PORT]
    watch = [*python, "-m", "jobs.watch_preemption", "--address", hosts.address, "--poll-seconds", "1"]
    watch += ["--metadata-url", f"http://127.0.0.1:{PORT}"]
    with subprocess.Popen(service, cwd=ROOT, stderr=subprocess.DEVNULL) as playing:
        try:
            with subprocess.Popen(watch, cwd=ROOT, stderr=subprocess.PIPE, text=True) as watching:
                try:
                    assert watching.stderr is not None
                    assert "watching AWS's notices for node" in watching.stderr.readline()
                    yield watching
                finally:
                    watching.kill()
        finally:
            playing.kill()
