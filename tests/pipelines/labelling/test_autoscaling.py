"""Waiting for nodes: a real Ray that gets a second node when waiting begins. The request to an autoscaler is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.own_ray import LOOPBACK

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[3]

SCRIPT = """
import json, os
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = cluster.address
try:
    from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    from pipelines.actor_resources import wait_for_pool
    from pipelines.cluster import connected, node_resources
    from pipelines.errors import RayDetrError

    requests = []

    def requested():  # what an autoscaler would read
        text = _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
        requests.append(None if text is None else json.loads(text))

    def grow():
        requested()
        cluster.add_node(num_cpus=2)

    with connected():
        before = sum(one.get("CPU", 0) for one in node_resources())
        requested()
        pool = wait_for_pool(1, 2, device="auto", minutes=5, on_wait=grow)
        requested()
        try:
            wait_for_pool(9, None, device="cpu", minutes=0.05, on_wait=lambda: None)
        except RayDetrError as stopped:
            refused = str(stopped)
        requested()
    found = {"least": pool.least, "most": pool.most, "cpus": pool.cpus}
    print("ANSWER", json.dumps({"before": before, "requests": requests, "refused": refused, **found}), flush=True)
finally:
    cluster.shutdown()
"""


def test_a_cluster_without_room_is_asked_for_nodes_and_waited_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **LOOPBACK},
        capture_output=True,
        text=True,
        timeout=400,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stdout + done.stderr
    answer = json.loads(answers[0].removeprefix("ANSWER "))

    assert answer["before"] == 0
    assert answer["requests"] == [None, [{"CPU": 1}], [], []]  # before, while waiting, and after either end
    assert (answer["least"], answer["most"], answer["cpus"]) == (1, 2, 1.0)
    assert "9 actors do not fit" in answer["refused"]
    assert answer["refused"].endswith("The cluster did not grow within 0.05 minutes (--node-minutes).")
