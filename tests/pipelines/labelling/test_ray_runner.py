"""What a run is told of a cluster before it is begun, without a cluster."""

from __future__ import annotations

import pytest

from pipelines.labelling.ray_runner import cluster_is_given


def test_a_cluster_is_given_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")

    assert cluster_is_given()
