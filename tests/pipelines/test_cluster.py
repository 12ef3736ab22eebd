"""The Ray cluster of a run: whether it answers, local folders on several machines, tokens, a slow start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest
import ray
from ray.exceptions import AuthenticationError

from pipelines.cluster import _check_answers, _connect, hosts, is_given, refuse_local
from pipelines.errors import RayDetrError, UsageError


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_without_a_server_is_reported_immediately(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        _check_answers(address)
    began = time.monotonic()

    with pytest.raises(RayDetrError, match=rf"^no Ray cluster answers at {address} \(.*refused\)\. Start it, or unset"):
        _check_answers(address)

    assert time.monotonic() - began < 5


def test_a_value_that_is_not_an_address_is_left_to_ray() -> None:
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


def test_a_cluster_of_another_ray_is_called_that_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n")

    monkeypatch.setattr("pipelines.cluster._check_answers", lambda _: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    with pytest.raises(UsageError, match=r"cannot be used: Version mismatch: The cluster .* Ray: 2\.59\.0 Python: 3"):
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
        "Ray's token is missing or differs from the cluster's token (RAY_AUTH_TOKEN_PATH is set but file cannot be "
        "opened: /x). RAY_AUTH_MODE is token: set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token, as "
        "docs/security.md says."
    )


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

    assert int(done.stdout) == min(niceness, 19 - os.nice(0))  # a process of `nice make test` cannot be nicer than 19
