"""What a run is told of a cluster before it is begun, without a cluster."""

from __future__ import annotations

import pytest

from pipelines.cluster import Pool
from pipelines.labelling import pool, ray_runner
from pipelines.labelling.ray_runner import cluster_is_given, resolve_precision

CPUS = Pool(1, 2, cpus=1, gpus=0, threads=1)
GPUS = Pool(1, 2, cpus=1, gpus=1, threads=1)


@pytest.mark.parametrize(
    ("answers", "expected"), [({"bf16"}, "bf16"), ({"bf16", "fp16"}, "fp32"), ({"bf16", "fp32"}, "fp32")]
)
def test_auto_is_what_all_nodes_of_a_cluster_have(
    monkeypatch: pytest.MonkeyPatch, answers: set[str], expected: str
) -> None:
    asked: list[str] = []

    def node_precisions(device: str) -> set[str]:
        asked.append(device)
        return answers

    monkeypatch.setattr(pool, "node_precisions", node_precisions)

    assert resolve_precision("auto", GPUS, is_own=False) == expected
    assert resolve_precision("auto", CPUS, is_own=False) == expected
    assert asked == ["cuda", "cpu"]


def test_a_local_ray_has_what_this_machine_has_and_what_is_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(device: str) -> set[str]:
        raise AssertionError("no node is to be asked")

    monkeypatch.setattr(pool, "node_precisions", forbidden)
    monkeypatch.setattr(ray_runner, "native_precision", lambda device: {"cuda": "fp16", "cpu": "bf16"}[device])

    assert resolve_precision("auto", GPUS, is_own=True) == "fp16"
    assert resolve_precision("auto", CPUS, is_own=True) == "bf16"
    assert resolve_precision("bf16", GPUS, is_own=False) == "bf16"


def test_a_cluster_is_given_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")

    assert cluster_is_given()
