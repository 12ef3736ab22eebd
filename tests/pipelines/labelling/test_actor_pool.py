"""The actor pool on a real Ray: where actors are placed, how many there are, and what is lost with one that dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from _pytest import logging as pytest_logging
from ray.exceptions import RpcError

from pipelines.actor_resources import Pool, choose_pool
from pipelines.cluster import node_resources
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling import actor_pool as pool
from pipelines.labelling import pool_records, watched_decoding
from pipelines.labelling.actor_pool import ShardActor, label_shards, probe
from pipelines.labelling.fetching import LakeUnreadable
from pipelines.labelling.labeler import NotDetected
from pipelines.labelling.labeler_spec import LabelerSpec
from pipelines.labelling.outcome import Failed, Lost, Outcome, ShardReport
from pipelines.store import StoreOptions
from tests.waiting import wait_until

SPEC = LabelerSpec(
    table="/nowhere",
    run_id="run-1",
    model="/nowhere/model",
    model_sha256="",
    threshold=0.0,
    classes=None,
    device="cpu",
    precision="fp32",
    threads=1,
    max_pixels=1_000_000,
    image_options=StoreOptions(),
    table_options=StoreOptions(),
)
REPORT = ShardReport(
    3, 64, 120, {"truncated": 2, "missing": 1}, 1.5, 0.5, 0.25, 0.75, changed=4, notes=("cuda:0 is small.",)
)


def heard(outcomes: Iterator[Outcome]) -> list[str]:
    """Return what the shards of stand-ins have to say, which travels as a loss."""
    return [outcome.reason if isinstance(outcome, Lost) else "" for outcome in outcomes]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def shard_of(monkeypatch: pytest.MonkeyPatch, label: Callable[[int], Any], *, device: str = "cpu") -> ShardActor:
    """Return what an actor holds, with a labeler that does as it is told."""

    class Told:
        def label(self, shard: int, *, on_images: Callable[[int], None]) -> ShardReport:
            found: ShardReport = label(shard)
            return found

    monkeypatch.setattr(pool, "build_labeler", lambda spec: Told())
    return ShardActor(replace(SPEC, device=device))


def raising(error: Exception) -> Callable[[int], Any]:
    def label(shard: int) -> Any:
        raise error

    return label


@pytest.mark.parametrize(
    ("label", "outcome"),
    [
        (lambda shard: REPORT, REPORT),
        (raising(LakeUnreadable("the lake is gone")), Failed("the lake is gone")),
        (raising(RayDetrError("the plan is damaged")), Failed("the plan is damaged")),
        (raising(ValueError("one\ntwo")), Lost("ValueError: one", 3)),
        (raising(MemoryError()), Lost("MemoryError: MemoryError", 3)),
        (raising(NotDetected("NaN.", "https://u:secret@lake/1.jpg")), Lost("NaN", 3, "https://lake/1.jpg")),
    ],
)
def test_what_became_of_a_shard_travels_as_a_row(
    monkeypatch: pytest.MonkeyPatch, label: Callable[[int], Any], outcome: Outcome
) -> None:
    assert pool._from_row(shard_of(monkeypatch, label)({"shard": 3})) == outcome


def test_a_process_whose_gpu_fails_for_ever_loses_only_the_shards_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def end(reason: str) -> None:
        raise Ended(reason)

    def synchronize() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(pool, "REPLY_SECONDS", 0.0)
    monkeypatch.setattr(watched_decoding, "end_process", end)
    fetched: list[int] = []

    def label(shard: int) -> ShardReport:
        fetched.append(shard)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    actor = shard_of(monkeypatch, label, device="cuda")

    assert pool._from_row(actor({"shard": 0})) == Lost(
        "AcceleratorError: CUDA error: an illegal memory access was encountered", 0
    )
    with pytest.raises(Ended, match=r"^CUDA does not work in this process any more: CUDA error: an illegal"):
        actor({"shard": 1})
    assert fetched == [0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_process_whose_device_works_is_kept_after_an_error(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    synchronized: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronized.append(device))
    actor = shard_of(monkeypatch, raising(RuntimeError("no kernel image")), device=device)

    for shard in range(3):
        assert pool._from_row(actor({"shard": shard})) == Lost("RuntimeError: no kernel image", shard)
    assert synchronized == (["cuda"] * 3 if device == "cuda" else [])


@dataclass
class Head:
    """Ray's head and the place of this process, for actors that are made here."""

    records: dict[str, bytes] = field(default_factory=dict)
    node: str = "node-1"

    def __post_init__(self) -> None:
        self.refusals = 0

    def put(self, key: str, value: bytes) -> None:
        if self.refusals:
            self.refusals -= 1
            raise RpcError("deadline exceeded", 4)  # type: ignore[no-untyped-call]
        self.records[key] = value

    def get_actor_id(self) -> str:
        return "actor-1"

    def get_node_id(self) -> str:
        return self.node


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    head = Head()
    monkeypatch.setattr(pool_records, "_internal_kv_initialized", lambda: True)
    monkeypatch.setattr(pool_records, "_internal_kv_put", head.put)
    monkeypatch.setattr(pool_records, "_internal_kv_get", head.records.get)
    monkeypatch.setattr(pool_records, "_internal_kv_exists", head.records.__contains__)
    monkeypatch.setattr(
        pool_records,
        "_internal_kv_list",
        lambda prefix: [key.encode() for key in head.records if key.startswith(prefix)],
    )
    monkeypatch.setattr(ray, "get_runtime_context", lambda: head)
    return head


@pytest.mark.parametrize(
    ("nodes", "is_killed"),
    [
        (["a"], False),
        (["a", "a"], True),
        (["a", "b"], False),  # the first node was lost
        (["a", "b", "b"], True),
        (["a", "b", "c"], True),
    ],
)
def test_a_node_that_is_lost_while_an_actor_loads_the_model_is_not_the_models_fault(
    monkeypatch: pytest.MonkeyPatch, head: Head, nodes: list[str], *, is_killed: bool
) -> None:
    class Killed(BaseException):
        pass

    def kill(spec: LabelerSpec) -> None:
        raise Killed

    for head.node in nodes[:-1]:
        monkeypatch.setattr(pool, "build_labeler", kill)
        with pytest.raises(Killed):
            ShardActor(replace(SPEC, pool="p"))
    head.node = nodes[-1]
    monkeypatch.setattr(pool, "build_labeler", lambda spec: object())
    actor = ShardActor(replace(SPEC, pool="p"))

    assert ("was killed" in actor._failure) is is_killed


def test_a_node_that_cannot_load_the_model_is_named(monkeypatch: pytest.MonkeyPatch, head: Head) -> None:
    def refuse(spec: LabelerSpec) -> None:
        raise RuntimeError("CUDA driver is missing")

    monkeypatch.setattr(pool, "build_labeler", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(pool, "node_resources", lambda: [{}, {}])
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    actor = ShardActor(replace(SPEC, pool="p"))

    pool_records.Loading("p").has_loaded()  # an actor of the node may have loaded it before its GPU was lost
    assert pool._from_row(actor({"shard": 1})) == Failed("node 10.0.0.7: CUDA driver is missing")


def test_a_request_to_stop_is_repeated_until_the_head_has_it(monkeypatch: pytest.MonkeyPatch, head: Head) -> None:
    monkeypatch.setattr(pool, "STOP_POLL_SECONDS", 0.01)
    begun, stop = pool_records.ShardsInProgress("p"), threading.Event()
    head.refusals = 3

    with pool._stopping(begun, stop):
        stop.set()
        wait_until(lambda: begun.is_over)

    assert not pool_records.ShardsInProgress("p").begin(1)


def test_the_driver_reads_how_many_images_of_unfinished_shards_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    head: dict[bytes, bytes] = {b"ray-detr/another/images/1": b"9"}
    monkeypatch.setattr(pool_records, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(pool_records, "_internal_kv_initialized", lambda: True)
    monkeypatch.setattr(pool_records, "_internal_kv_put", lambda key, value: head.update({key.encode(): value}))
    monkeypatch.setattr(
        pool_records, "_internal_kv_list", lambda prefix: [k for k in head if k.startswith(prefix.encode())]
    )
    monkeypatch.setattr(pool_records, "_internal_kv_get", head.get)
    actor, driver = pool_records.ImagesDone("p"), pool_records.ImagesDone("p")

    first, second = actor.teller(1), actor.teller(2)
    assert driver.read() == 0
    first(3)
    second(20)
    first(5)
    assert driver.read() == 25
    assert driver.report(2) == 5  # its images are counted by its report now
    assert driver.read() == 5


def test_an_unreachable_head_costs_no_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_records, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(pool_records, "_internal_kv_initialized", lambda: True)

    def refuse(_key: str, _value: bytes) -> None:
        raise RpcError("the head restarts", 14)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(pool_records, "_internal_kv_put", refuse)

    pool_records.ImagesDone("p").teller(1)(3)


def test_an_actor_that_cannot_begin_says_why_for_each_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: LabelerSpec) -> None:
        raise RayDetrError("the model is another one on this node")

    monkeypatch.setattr(pool, "build_labeler", refuse)

    assert pool._from_row(ShardActor(SPEC)({"shard": 3})) == Failed("the model is another one on this node")


@pytest.mark.ray
@pytest.mark.parametrize("shards", [40, 8])
def test_the_pool_grows_to_one_actor_on_each_gpu_which_labels_two_shards_at_once(
    local_ray: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: int
) -> None:
    class Waiting:
        """Its shards wait until there are four actors, so that nothing depends on how fast they start."""

        def __init__(self, spec: object) -> None:
            (tmp_path / str(os.getpid())).touch()
            self.now = 0

        def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
            self.now += 1
            deadline = time.monotonic() + 120
            while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.2)
            seen = f"{os.environ['CUDA_VISIBLE_DEVICES']} {self.now}"
            self.now -= 1
            return {"failure": None, "loss": seen, "report": None}

    monkeypatch.setattr(pool, "ShardActor", Waiting)
    one_to_four = choose_pool(node_resources(), 1, None, device="auto")

    seen = [text.split() for text in heard(label_shards(range(shards), SPEC, one_to_four))]

    assert one_to_four == Pool(least=1, most=4, cpus=1, gpus=1, threads=2)
    assert len(seen) == shards
    assert {gpus for gpus, _ in seen} == {"0", "1", "2", "3"}
    assert {at_once for _, at_once in seen} <= {"1", "2"}
    assert "2" in {at_once for _, at_once in seen}


@pytest.mark.ray
@pytest.mark.slow
def test_actors_may_die_as_often_as_they_like_and_only_shards_in_flight_are_lost(
    local_ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mortal:
        def __init__(self, spec: object) -> None: ...

        def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
            if row["shard"] < 9:  # five deaths at least, with two shards in flight each
                os.kill(os.getpid(), signal.SIGKILL)
            return {"failure": None, "loss": str(row["shard"]), "report": None}

    monkeypatch.setattr(pool, "ShardActor", Mortal)
    monkeypatch.setattr(pool, "LEAST_RESTARTS", 1)
    # pytest would keep records of exceptions, whose frames keep the actors
    monkeypatch.setattr(pytest_logging.LogCaptureHandler, "emit", lambda self, record: None)

    found = [int(text) for text in heard(label_shards(range(20), SPEC, Pool(1, 1, cpus=1, gpus=0, threads=1)))]

    assert len(found) == len(set(found))
    assert set(found) <= set(range(9, 20))
    assert len(found) >= 20 - 9 - (pool.SHARDS_AT_ONCE - 1)
    wait_until(lambda: ray.available_resources()["CPU"] == 8)  # for the next run of the same process


@pytest.mark.ray
def test_leaving_the_loop_ends_the_actors(local_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Where:
        def __init__(self, spec: object) -> None: ...

        def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
            time.sleep(0.2)
            return {"failure": None, "loss": str(os.getpid()), "report": None}

    monkeypatch.setattr(pool, "ShardActor", Where)
    outcomes = label_shards(range(200), SPEC, Pool(1, 1, cpus=1, gpus=0, threads=1))

    first = next(outcomes)
    assert isinstance(first, Lost)
    pid = int(first.reason)
    assert is_alive(pid)
    outcomes.close()  # type: ignore[attr-defined]  # a generator's

    wait_until(lambda: not is_alive(pid))


@pytest.mark.ray
def test_a_model_that_does_not_load_is_reported_before_the_pool_starts(local_ray: str) -> None:
    with pytest.raises(UsageError, match=r"/nowhere/model"):
        probe(SPEC, Pool(1, 1, cpus=1, gpus=0, threads=1))


@pytest.mark.ray
def test_a_model_that_kills_its_process_is_tried_once(
    local_ray: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def deadly(spec: object) -> None:
        with (tmp_path / "tries").open("a") as tries:
            tries.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(pool, "_probe", deadly)

    with pytest.raises(RayDetrError, match=r"the process that loaded /nowhere/model was killed"):
        probe(SPEC, Pool(1, 1, cpus=1, gpus=0, threads=1))
    assert (tmp_path / "tries").read_text() == "x"


@pytest.mark.ray
def test_a_model_that_kills_the_actor_that_loads_it_is_loaded_once_and_reported(
    local_ray: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Deadly(ShardActor):
        def __init__(self, spec: LabelerSpec) -> None:
            def deadly(_: LabelerSpec) -> None:
                with (tmp_path / "tries").open("a") as tries:
                    tries.write("x")
                os.kill(os.getpid(), signal.SIGKILL)

            # in the actor's process, which has a copy of the class: `pool` names another one there
            ShardActor.__init__.__globals__["build_labeler"] = deadly
            super().__init__(spec)

    monkeypatch.setattr(pool, "ShardActor", Deadly)

    outcome = next(label_shards(range(3), SPEC, Pool(1, 1, cpus=1, gpus=0, threads=1)))

    assert outcome == Failed(
        "the process that loaded /nowhere/model was killed: not enough memory, or a broken library on the node."
    )
    assert (tmp_path / "tries").read_text() == "x"


@pytest.mark.ray
def test_an_actor_that_does_not_load_its_model_says_why(local_ray: str) -> None:
    outcome = next(label_shards(range(3), SPEC, Pool(1, 1, cpus=1, gpus=0, threads=1)))

    assert isinstance(outcome, Failed)
    assert outcome.message.startswith("model /nowhere/model: there is no such file or directory")


@pytest.mark.ray
def test_an_actor_that_never_fits_ends_the_run_and_does_not_wait_forever(
    local_ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle:
        def __init__(self, spec: object) -> None: ...

        def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
            return {"failure": None, "loss": "", "report": None}

    monkeypatch.setattr(pool, "ShardActor", Idle)
    monkeypatch.setattr(pool, "ACTORS_WAIT_SECONDS", 2)
    began = time.monotonic()

    with pytest.raises(
        RayDetrError, match=r"no actor was ready within 2 s: the cluster has room for 0 actors \(1 node, 8 CPU"
    ):
        heard(label_shards([1], SPEC, Pool(1, 1, cpus=1, gpus=5, threads=1)))
    assert time.monotonic() - began < 30
    assert ray.is_initialized()


@pytest.mark.ray
@pytest.mark.slow
def test_a_shard_that_never_comes_back_ends_the_run_when_nothing_has_moved_for_long(
    local_ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = tmp_path / "over"

    class Hanging:
        def __init__(self, spec: object) -> None: ...

        def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
            while row["shard"] == 3 and not over.exists():
                time.sleep(0.05)
            return {"failure": None, "loss": str(row["shard"]), "report": None}

    monkeypatch.setattr(pool, "ShardActor", Hanging)
    came: list[str] = []
    outcomes = label_shards(range(6), SPEC, Pool(1, 1, cpus=1, gpus=0, threads=1), stall_seconds=5)

    with pytest.raises(RayDetrError, match=r"no shard was finished for 0 min: the cluster has room for 8 actors"):
        came.extend(outcome.reason if isinstance(outcome, Lost) else "" for outcome in outcomes)

    assert sorted(came) == ["0", "1", "2", "4", "5"]
    over.touch()  # Ray lets an actor end its call before it ends: its core would be missing in other tests
