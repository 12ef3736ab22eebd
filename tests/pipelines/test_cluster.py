"""How many actors a cluster gets, and what each takes: decided by what its nodes have."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import pytest
import ray
from ray._private import services
from ray.exceptions import AuthenticationError

from pipelines.cluster import (
    ActorShare,
    Pool,
    _check_answers,
    _connect,
    _patiently,
    choose_pool,
    first_line,
    hosts,
    is_given,
    refuse_local,
    remote_sentence,
    wait_for_pool,
)
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


def test_a_gpu_without_a_core_beside_it_is_no_room() -> None:
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


def test_what_is_left_over_of_a_node_is_no_room() -> None:
    nodes = [{"CPU": 64}, {"CPU": 12}, {"memory": 1e9}]  # 12 cores hold one actor of 8; the last is a head without

    assert choose_pool(nodes, None, None, device="cpu") == Pool(least=1, most=9, cpus=8, gpus=0, threads=8)


def test_gpus_that_are_asked_for_and_not_there_are_refused() -> None:
    with pytest.raises(
        RayDetrError, match=r"device cuda was asked for, but no node .* has a GPU: 1 node, 8 CPU, 0 GPU"
    ):
        choose_pool([LAPTOP], None, None, device="cuda")


def test_a_cluster_without_any_core_is_refused() -> None:
    with pytest.raises(RayDetrError) as stopped:
        choose_pool([{"memory": 1e9}], None, None, device="auto")

    assert str(stopped.value) == (
        "1 actor does not fit: each needs 1 CPU, and the cluster has room for 0 (1 node, 0 CPU, 0 GPU). Add nodes."
    )


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_told_at_once(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        _check_answers(address)
    began = time.monotonic()

    with pytest.raises(RayDetrError, match=rf"^no Ray cluster answers at {address} \(.*refused\)\. Start it, or unset"):
        _check_answers(address)

    assert time.monotonic() - began < 5


def test_what_is_no_address_is_left_to_ray() -> None:
    _check_answers("auto")


def nodes_of(monkeypatch: pytest.MonkeyPatch, *addresses: str, dead: str = "") -> None:
    nodes = [{"NodeManagerAddress": address, "Alive": address != dead} for address in addresses]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


def test_hosts_are_machines_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of(monkeypatch, "10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", dead="10.0.0.3")

    assert hosts() == {"10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize("folder", ["/data/shards", "file:///data/shards", "shards"])
def test_a_local_folder_is_refused_on_several_machines(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of(monkeypatch, "10.0.0.1", "10.0.0.2")

    with pytest.raises(RayDetrError) as stopped:
        refuse_local(["s3://lake/images", folder], are_shared=False)

    assert str(stopped.value) == (
        f"{folder} is a local folder, and the cluster has 2 machines: each would use its own disk. Use an address of "
        "an object store, such as s3://bucket/folder, or --shared-folders if this path is the same folder on every "
        "machine."
    )


def test_shared_folders_and_buckets_are_good_on_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of(monkeypatch, "10.0.0.1", "10.0.0.2")

    refuse_local(["/data/shards"], are_shared=True)
    refuse_local(["s3://lake/images", "gs://lake/shards"], are_shared=False)


def test_a_local_folder_is_good_on_one_machine_with_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of(monkeypatch, "10.0.0.1", "10.0.0.1", "10.0.0.2", dead="10.0.0.2")

    refuse_local(["/data/shards"], are_shared=False)


def test_a_cluster_is_given_by_the_environment_or_by_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not is_given()

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert is_given()

    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert is_given()


# what Ray 2.60 says of an actor whose class is not to be found on its node, shortened
NO_PACKAGE = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::MapWorker(Map(ShardActor)).__init__()"
    "\x1b[39m (pid=11951, ip=10.0.0.7, actor_id=0b9d4d1e, repr=MapWorker(<initializing>))\n"
    "  At least one of the input arguments for this task could not be computed:\n"
    "ray.exceptions.RaySystemError: System error: No module named 'pipelines'\ntraceback: Traceback (most recent call "
    "last):\n          ^^^^^^^^\nModuleNotFoundError: No module named 'pipelines'"
)


def test_a_local_ray_that_is_slow_to_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([RuntimeError("not there"), RuntimeError("not there"), {"node_id": "1"}])

    def get_node(address: str, node_id: str) -> dict[str, str]:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr("pipelines.cluster.ASK_SECONDS", 0.0)

    with _patiently(60):
        assert services.get_node("127.0.0.1:6379", "1") == {"node_id": "1"}
    assert services.get_node is get_node


def test_a_node_that_does_not_register_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_node(address: str, node_id: str) -> None:
        raise RuntimeError("not there")

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr("pipelines.cluster.ASK_SECONDS", 0.01)

    with pytest.raises(RuntimeError, match="not there"), _patiently(0.05):
        services.get_node("127.0.0.1:6379", "1")


def test_a_local_ray_that_does_not_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray raises it

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray, "init", init)

    with pytest.raises(
        RayDetrError, match=r"a local Ray could not be started: The current node timed out .* less busy"
    ):
        _connect(verbose=True)


@pytest.mark.parametrize("address", [None, "127.0.0.1:1"])
def test_a_missing_token_is_called_that(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    def init(**_: object) -> None:
        raise AuthenticationError("RAY_AUTH_TOKEN_PATH is set but file cannot be opened: /x. Ensure that the token is.")

    monkeypatch.setattr("pipelines.cluster._check_answers", lambda _: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_ADDRESS", address or "")

    with pytest.raises(RayDetrError) as stopped:
        _connect(verbose=True)

    assert str(stopped.value) == (
        "Ray's token is missing or not that of the cluster (RAY_AUTH_TOKEN_PATH is set but file cannot be opened: /x). "
        "RAY_AUTH_MODE is token: set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token, as "
        "docs/security.md says."
    )


def test_a_node_without_the_package_is_named_with_what_to_do() -> None:
    assert remote_sentence(RuntimeError(NO_PACKAGE)) == (
        "node 10.0.0.7 has no Python package pipelines. Install ray-detr with all it needs on every node, in the same "
        "versions, or submit the command with `ray job submit --working-dir .`"
    )


def test_what_else_is_raised_on_a_node_is_told_with_the_node_and_its_reason() -> None:
    text = "\x1b[36mray::_probe()\x1b[39m (pid=7, ip=10.0.0.7)\n  File x\nImportError: libcudart.so: cannot open"
    assert remote_sentence(RuntimeError(text)) == "on node 10.0.0.7: ImportError: libcudart.so: cannot open"


def test_a_sentence_of_rays_has_no_colours() -> None:
    assert first_line(RuntimeError("\x1b[36mray::_probe()\x1b[39m died\n  File x")) == "ray::_probe() died"
    assert remote_sentence(RuntimeError("\x1b[36mit\x1b[39m died")) == "it died"
    assert first_line(RuntimeError("")) == "RuntimeError"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("said", "niceness"), [({}, 0), ({"RAY_worker_niceness": "3"}, 3)])
def test_workers_of_a_local_ray_have_the_priority_of_the_command_unless_told_otherwise(
    said: Mapping[str, str], niceness: int
) -> None:
    script = """
import os
import ray
from pipelines.cluster import connected

with connected():
    print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
"""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    done = subprocess.run(
        [sys.executable, "-c", script], env={**outside, **said}, capture_output=True, text=True, timeout=120, check=True
    )

    assert int(done.stdout) == niceness


class Growing:
    """A cluster whose autoscaler adds a node of a kind until all bundles fit, one a look, as Ray's does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *kinds: Mapping[str, float]) -> None:
        self.nodes = [dict(kinds[0])]
        self.requests: list[list[dict[str, float]]] = []
        self.kinds = kinds
        monkeypatch.setattr("pipelines.cluster.request_resources", lambda bundles: self.requests.append(bundles))
        monkeypatch.setattr("pipelines.cluster.node_resources", self.look)
        monkeypatch.setattr("pipelines.cluster.NODE_POLL_SECONDS", 0.001)

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
    monkeypatch.setattr("pipelines.cluster.node_resources", cluster.look)
    given_up = threading.Event()

    with pytest.raises(RayDetrError, match="waiting for nodes was given up"):
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
