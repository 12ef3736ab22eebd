"""How many actors fit into a cluster, and waiting for its autoscaler."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from pipelines.actor_resources import ActorShare, Pool, choose_pool, wait_for_pool
from pipelines.errors import RayDetrError

LAPTOP: Mapping[str, float] = {"CPU": 8, "memory": 1e10}
GPU_HOST: Mapping[str, float] = {"CPU": 16, "GPU": 4}


def test_four_gpus_hold_four_actors_with_one_each_and_its_share_of_the_cores() -> None:
    assert choose_pool([GPU_HOST], None, None, device="auto") == Pool(least=1, most=4, cpus=1, gpus=1, threads=4)


def test_the_range_that_is_asked_for_is_kept() -> None:
    assert choose_pool([GPU_HOST], 2, 3, device="auto") == Pool(least=2, most=3, cpus=1, gpus=1, threads=4)
    assert choose_pool([GPU_HOST], 4, 4, device="cuda") == Pool(least=4, most=4, cpus=1, gpus=1, threads=4)


def test_more_at_most_than_there_is_stays_so_because_the_cluster_may_grow() -> None:
    assert choose_pool([GPU_HOST], None, 100, device="auto").most == 100


def test_more_at_least_than_there_is_is_refused_with_the_figures() -> None:
    with pytest.raises(RayDetrError) as stopped:
        choose_pool([GPU_HOST, LAPTOP], 5, None, device="auto")

    assert str(stopped.value) == (
        "5 actors do not fit: each needs 1 GPU and 1 CPU, and the cluster has room for 4 (2 nodes, 24 CPU, 4 GPU). "
        "Ask for 4 at most with --actors, or add nodes."
    )


def test_the_cores_of_the_weakest_gpu_host_count() -> None:
    nodes = [GPU_HOST, {"CPU": 8, "GPU": 4}]

    assert choose_pool(nodes, None, None, device="auto") == Pool(least=1, most=8, cpus=1, gpus=1, threads=2)


@pytest.mark.parametrize(
    ("gpus", "most"), [(0.1, 40), (0.2, 20), (0.3, 12), (0.5, 8), (0.6, 4), (1, 4), (2, 2), (3, 1)]
)
def test_shares_of_a_gpu_are_of_one_gpu_each_and_more_than_one_are_whole_ones(gpus: float, most: int) -> None:
    host = {"CPU": 64, "GPU": 4}

    assert choose_pool([host], None, None, device="cuda", own=ActorShare(gpus=gpus)).most == most


def test_a_gpu_without_a_free_core_does_not_fit_an_actor() -> None:
    nodes = [{"CPU": 2, "GPU": 4}]

    assert choose_pool(nodes, None, None, device="auto") == Pool(least=1, most=2, cpus=1, gpus=1, threads=1)
    with pytest.raises(RayDetrError, match="3 actors do not fit"):
        choose_pool(nodes, 3, None, device="auto")


def test_cpu_keeps_off_the_gpus() -> None:
    assert choose_pool([GPU_HOST], None, None, device="cpu") == Pool(least=1, most=8, cpus=2, gpus=0, threads=2)


def test_a_small_node_gets_an_actor_for_each_core() -> None:
    assert choose_pool([LAPTOP], None, None, device="auto") == Pool(least=1, most=8, cpus=1, gpus=0, threads=1)
    assert choose_pool([{"CPU": 2}], None, None, device="auto") == Pool(least=1, most=2, cpus=1, gpus=0, threads=1)


def test_a_large_node_gets_eight_actors_of_several_cores() -> None:
    assert choose_pool([{"CPU": 64}], None, None, device="auto") == Pool(least=1, most=8, cpus=8, gpus=0, threads=8)


def test_a_node_gets_no_more_than_eight_actors() -> None:
    assert choose_pool([{"CPU": 12}], None, None, device="auto") == Pool(least=1, most=6, cpus=2, gpus=0, threads=2)


def test_the_remainder_of_a_node_does_not_fit_an_actor() -> None:
    nodes = [{"CPU": 64}, {"CPU": 12}, {"memory": 1e9}]  # 12 cores hold one actor of 8; the last is a head without

    assert choose_pool(nodes, None, None, device="cpu") == Pool(least=1, most=9, cpus=8, gpus=0, threads=8)


def test_gpus_that_are_asked_for_and_not_there_are_refused() -> None:
    with pytest.raises(
        RayDetrError, match=r"device cuda was requested, but no node .* has a GPU: 1 node, 8 CPU, 0 GPU"
    ):
        choose_pool([LAPTOP], None, None, device="cuda")


def test_a_cluster_without_any_core_is_refused() -> None:
    with pytest.raises(RayDetrError) as stopped:
        choose_pool([{"memory": 1e9}], None, None, device="auto")

    assert str(stopped.value) == (
        "1 actor does not fit: each needs 1 CPU, and the cluster has room for 0 (1 node, 0 CPU, 0 GPU). Add nodes."
    )


class Growing:
    """A cluster whose autoscaler adds a node of a kind until all bundles fit, one a look, as Ray's does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *kinds: Mapping[str, float]) -> None:
        self.nodes = [dict(kinds[0])]
        self.requests: list[list[dict[str, float]]] = []
        self.kinds = kinds
        monkeypatch.setattr(
            "pipelines.actor_resources.request_resources", lambda bundles: self.requests.append(bundles)
        )
        monkeypatch.setattr("pipelines.actor_resources.node_resources", self.look)
        monkeypatch.setattr("pipelines.actor_resources.NODE_POLL_SECONDS", 0.001)

    def look(self) -> list[dict[str, float]]:
        if self.requests and self.requests[-1]:
            bundle, count = self.requests[-1][0], len(self.requests[-1])
            room = sum(min(node.get(name, 0) // need for name, need in bundle.items()) for node in self.nodes)
            if room < count:
                self.nodes.append(dict(self.kinds[-1]))
        return self.nodes


@pytest.mark.parametrize(
    ("kinds", "device", "least", "bundle"),
    [
        ([{"CPU": 16, "GPU": 1}], "auto", 2, {"CPU": 1, "GPU": 1}),
        ([{"CPU": 16}, {"CPU": 16, "GPU": 1}], "cuda", 2, {"CPU": 1, "GPU": 1}),
        ([{"CPU": 16}], "auto", 12, {"CPU": 2}),
        ([{"CPU": 2}, {"CPU": 32}], "auto", 9, {"CPU": 4}),
        ([{"CPU": 0}, {"CPU": 4, "GPU": 1}], "auto", 3, {"CPU": 1, "GPU": 1}),
    ],
)
def test_nodes_are_asked_for_what_the_actors_take(
    kinds: list[dict[str, float]], device: str, least: int, bundle: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Growing(monkeypatch, *kinds)
    pool = wait_for_pool(least, None, device=device, minutes=0.05, on_wait=lambda: None)

    assert pool.least == least
    assert cluster.requests[-2:] == [[bundle] * least, []]


def test_waiting_for_nodes_ends_when_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Growing(monkeypatch, {"CPU": 2})
    cluster.look = lambda: cluster.nodes  # type: ignore[method-assign]  # an autoscaler that has reached its limit
    monkeypatch.setattr("pipelines.actor_resources.node_resources", cluster.look)
    given_up = threading.Event()

    with pytest.raises(RayDetrError, match="the wait for nodes was cancelled"):
        wait_for_pool(3, None, device="auto", minutes=60, on_wait=given_up.set, is_given_up=given_up)

    assert cluster.requests[-1] == []


@pytest.mark.parametrize(
    ("node", "device", "own", "expected"),
    [
        (GPU_HOST, "auto", ActorShare(cpus=4), Pool(1, 4, cpus=4, gpus=1, threads=4)),
        (GPU_HOST, "auto", ActorShare(gpus=0.5), Pool(1, 8, cpus=1, gpus=0.5, threads=2)),  # two share a GPU's cores
        (GPU_HOST, "auto", ActorShare(cpus=2, gpus=0.5), Pool(1, 8, cpus=2, gpus=0.5, threads=2)),
        (LAPTOP, "auto", ActorShare(cpus=4), Pool(1, 2, cpus=4, gpus=0, threads=4)),
        (GPU_HOST, "cpu", ActorShare(cpus=8, gpus=0.5), Pool(1, 2, cpus=8, gpus=0, threads=8)),
    ],
)
def test_actors_take_what_is_asked_for_each(
    node: Mapping[str, float], device: str, own: ActorShare, expected: Pool
) -> None:
    assert choose_pool([node], None, None, device=device, own=own) == expected


def test_actors_that_ask_for_more_than_a_node_has_do_not_fit() -> None:
    with pytest.raises(
        RayDetrError, match=r"^1 actor does not fit: each needs 2 GPU and 32 CPU, and the cluster has room"
    ):
        choose_pool([GPU_HOST], None, None, device="auto", own=ActorShare(32, 2))
