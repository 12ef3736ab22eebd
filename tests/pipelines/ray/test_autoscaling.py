"""Waiting for nodes, with Ray's own autoscaler and nodes that it starts on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[3]

# a head without CPUs, and one kind of node with two, of which there is none yet
SCRIPT = """
import json, sys, time
from ray.cluster_utils import AutoscalingCluster

node = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}
cluster = AutoscalingCluster({"CPU": 0}, {"cpu": node}, idle_timeout_minutes=999)
cluster.start()
try:
    from pipelines.cluster import connected, node_resources, wait_for_pool
    from pipelines.stopped import RunStopped

    with connected():
        said, refused = [], ""
        before = sum(one.get("CPU", 0) for one in node_resources())
        began = time.monotonic()
        pool = wait_for_pool(1, 2, device="auto", minutes=5, on_wait=lambda: said.append("waiting"))
        waited = time.monotonic() - began
        try:
            wait_for_pool(9, None, device="cpu", minutes=0.05, on_wait=lambda: None)
        except RunStopped as stopped:
            refused = str(stopped)
    found = {"least": pool.least, "most": pool.most, "cpus": pool.cpus}
    answer = {"before": before, "said": said, "refused": refused, **found}
    print("ANSWER", json.dumps(answer), flush=True)
finally:
    cluster.shutdown()
"""


def test_a_cluster_without_nodes_is_asked_for_them_and_waited_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "auto", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stdout + done.stderr
    answer = json.loads(answers[0].removeprefix("ANSWER "))

    assert answer["before"] == 0
    assert answer["said"] == ["waiting"]
    assert (answer["least"], answer["most"], answer["cpus"]) == (1, 2, 1.0)
    assert "9 actors do not fit" in answer["refused"]
    assert answer["refused"].endswith("It did not grow within 0.05 minutes (--node-minutes).")
