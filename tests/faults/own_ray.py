"""A Ray of a test's own, in another process: of several nodes, with settings and faults that no other test shares."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Ray takes 127.0.0.1 for the machine's outward address, where nothing listens, unless it is told that there is no other
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# holds the nodes until its input ends; Ray prints, too, so that the answer is told by its mark
HOLDER = """
import json, sys
from ray.cluster_utils import Cluster

nodes = json.loads(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args=nodes[0])
others = [cluster.add_node(**node) for node in nodes[1:]]
raylets = [node.all_processes["raylet"][0].process.pid for node in (cluster.head_node, *others)]
print("OWN RAY", json.dumps([cluster.address, cluster.webui_url, raylets]), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class OwnRay:
    """A Ray that is there: its address, that of its dashboard without a scheme, and the processes of its raylets."""

    address: str
    dashboard: str
    raylets: tuple[int, ...]


def _free_ports(*names: str) -> dict[str, int]:
    """Return ports that nobody else is given before Ray binds them: the kernel and Ray draw from other ranges."""
    ports: dict[str, int] = {}
    with ExitStack() as held:
        for port in random.sample(range(20_000, 32_000), k=200):
            if len(ports) == len(names):
                break
            with suppress(OSError):  # taken
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports[names[len(ports)]] = port
    return ports


@contextmanager
def own_ray(*nodes: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Iterator[OwnRay]:
    """Start a Ray, and end all of it with the block.

    Args:
        nodes: what each is given, the head first: `num_cpus`, `object_store_memory`, `env_vars` ...
        environment: what all of them have in their environment besides.
    """
    head, *others = nodes
    # Ray's fixed ports are taken by another Ray of this machine: its agent would take no jobs then, or those of others
    head = {**_free_ports("dashboard_port", "dashboard_agent_listen_port"), **head}
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", **LOOPBACK}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, json.dumps([head, *others])],
        cwd=ROOT,
        env={**os.environ, **quiet, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        said = []
        for line in holder.stdout:
            said.append(line)
            if line.startswith("OWN RAY "):
                break
        assert said, "Ray's holder said nothing"
        assert said[-1].startswith("OWN RAY "), "".join(said)
        address, dashboard, raylets = json.loads(said[-1].removeprefix("OWN RAY "))
        yield OwnRay(address, dashboard, tuple(raylets))
    finally:
        holder.stdin.close()
        try:
            holder.wait(60)
        finally:
            if holder.poll() is None:
                holder.kill()
                holder.wait()
            holder.stdout.close()
