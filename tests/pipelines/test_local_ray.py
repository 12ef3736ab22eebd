"""Starting a local Ray on a busy machine: what is waited for, what is started again, what is reported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private import services
from ray._private.node import Node

from pipelines import local_ray
from pipelines.local_ray import RayletEnded, start_local_ray

ROOT = Path(__file__).parents[2]


class FakeRay:
    """Ray's start with a node that registers at the given question; a negative number is a raylet that has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *registers: int) -> None:
        self.starts, self.killed, self._registers = 0, 0, list(registers)
        self.options: dict[str, object] = {}
        monkeypatch.setattr(ray, "init", self._init)
        monkeypatch.setattr(services, "get_node", self._get_node)
        monkeypatch.setattr(Node, "start_ray_processes", lambda _node: None)
        monkeypatch.setattr(local_ray, "ASK_SECONDS", 0.0)

    def _init(self, **options: object) -> None:
        self.options = options
        self.starts += 1
        code = -6 if self._registers[0] < 0 else None
        raylet = SimpleNamespace(process=SimpleNamespace(poll=lambda: code))
        node = SimpleNamespace(
            all_processes={"raylet": [raylet]}, kill_all_processes=self._kill, get_logs_dir_path=lambda: "/logs"
        )
        Node.start_ray_processes(node)  # type: ignore[arg-type, no-untyped-call]
        services.get_node("127.0.0.1:6379", "1")  # type: ignore[no-untyped-call]
        self._registers.pop(0)

    def _get_node(self, address: str, node_id: str) -> dict[str, str]:
        self._registers[0] -= 1
        if self._registers[0] != 0:
            raise RuntimeError("not there")
        return {"node_id": node_id}

    def _kill(self, *, check_alive: bool, wait: bool) -> None:
        self.killed += 1
        self._registers.pop(0)


def test_a_node_that_is_slow_to_register_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, 3)
    before = services.get_node, Node.start_ray_processes, Node.start_monitor, Node.start_api_server

    start_local_ray(num_cpus=2)

    assert (fake.starts, fake.killed) == (1, 0)
    assert fake.options == {
        "address": "local", "include_dashboard": False, "log_to_driver": True,
        "_node_ip_address": "127.0.0.1", "num_cpus": 2,
    }  # fmt: skip
    assert (services.get_node, Node.start_ray_processes, Node.start_monitor, Node.start_api_server) == before


def test_a_node_that_does_not_register_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, 1_000_000_000)
    monkeypatch.setattr(local_ray, "START_SECONDS", 0.05)

    with pytest.raises(RuntimeError, match="not there"):
        start_local_ray()
    assert fake.starts == 1


def test_a_ray_whose_raylet_has_ended_is_ended_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, -1, -1, 2)

    start_local_ray()

    assert (fake.starts, fake.killed) == (3, 2)


@pytest.mark.parametrize(("seconds", "starts"), [(0.0, 1), (300.0, 5)])
def test_a_raylet_that_always_ends_is_an_error_with_its_log(
    monkeypatch: pytest.MonkeyPatch, seconds: float, starts: int
) -> None:
    fake = FakeRay(monkeypatch, *[-1] * 9)
    monkeypatch.setattr(local_ray, "START_SECONDS", seconds)

    with pytest.raises(RayletEnded, match=r"^its raylet ended with code -6, see /logs/raylet\.err\.$"):
        start_local_ray()
    assert fake.starts == fake.killed == starts


SLOW_ONCE = """
import os, sys, time
if "dashboard/agent.py" in " ".join(sys.orig_argv):
    try:
        open(os.environ["MARKER"], "x").close()
    except FileExistsError:
        pass
    else:
        raylet = os.getppid()
        while os.getppid() == raylet:
            time.sleep(0.1)
"""
START = """
import psutil, ray
from pipelines.local_ray import start_local_ray
start_local_ray(num_cpus=1, log_to_driver=False, object_store_memory=100 * 1024**2)
print(ray.get(ray.remote(lambda: "computed").remote()))
children = psutil.Process().children(recursive=True)
print(sum(child.name() == "gcs_server" for child in children))
print([line for child in children for line in child.cmdline() if line.endswith(("monitor.py", "/dashboard.py"))])
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_ray_whose_agent_takes_too_long_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_ONCE)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PYTHONPATH": f"{tmp_path}:{ROOT}", "MARKER": str(tmp_path / "marker"), "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip
    began = time.monotonic()

    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True)

    assert done.stdout == "computed\n1\n[]\n", done.stderr  # the first head has ended, and no services were started
    assert (tmp_path / "marker").exists()
    assert time.monotonic() - began > 15  # a raylet waited for its agent as long as Ray says
