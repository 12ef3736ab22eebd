"""What a run is told of a cluster before it is begun, without a cluster."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, cast

import pytest

from pipelines.labelling.progress import Progress
from pipelines.labelling.ray_runner import Actors, RayRunner, cluster_is_given
from pipelines.watchdog import Watchdog


def test_a_cluster_is_given_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")

    assert cluster_is_given()


def test_closing_does_not_wait_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.connected", lambda **_: nullcontext())
    monkeypatch.setattr("pipelines.cluster.node_resources", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr("pipelines.cluster.request_resources", lambda **_: None)
    waits = threading.Event()

    def show(progress: Progress) -> None:
        assert progress.stage == "waiting for nodes"
        waits.set()

    actors = Actors(least=2, most=None, device="cpu", node_minutes=60, stall_minutes=60, verbose=False)
    runner = RayRunner(cast("Any", None), actors, show=show, watchdog=Watchdog())
    runner.prepare()
    assert waits.wait(30)
    closing = threading.Thread(target=runner.close, daemon=True)
    closing.start()
    closing.join(10)

    assert not closing.is_alive()
