"""What a run is told of a cluster before it is begun, without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipelines.caps import Caps, Meter
from pipelines.errors import CapReached, RayDetrError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import own_disks
from pipelines.labelling.outcome import Outcome
from pipelines.labelling.progress import Progress
from pipelines.labelling.ray_runner import Actors, RayRunner, cluster_is_given
from pipelines.watchdog import Watchdog


@dataclass(frozen=True)
class Placed:
    """Stands for the settings of actors."""

    run_id: str = ""
    model_sha256: str = ""
    model_id: str = ""
    settings: str = ""
    isolated: bool = False


class SimulatedTime:
    """A clock that is at 0 when it is first read, and some minutes later from then on."""

    def __init__(self, minutes: float) -> None:
        self._times = iter([0.0])
        self._later = 60.0 * minutes

    def monotonic(self) -> float:
        return next(self._times, self._later)

    def now(self) -> datetime:
        return datetime(2026, 11, 29, tzinfo=UTC)


def test_a_cluster_is_given_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")

    assert cluster_is_given()


def test_closing_does_not_wait_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.connected", lambda **_: nullcontext())
    monkeypatch.setattr("pipelines.actor_resources.node_resources", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr("pipelines.actor_resources.request_resources", lambda **_: None)
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


class StoppedClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 11, 29, tzinfo=UTC)


def test_nodes_cost_while_the_run_waits_for_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.connected", lambda **_: nullcontext())
    monkeypatch.setattr("pipelines.actor_resources.node_resources", lambda: [{"CPU": 0.0}, {"CPU": 1.0}, {"CPU": 1.0}])
    monkeypatch.setattr("pipelines.actor_resources.request_resources", lambda **_: None)
    waits = threading.Event()
    clock = StoppedClock()
    meter = Meter(Caps(max_cost=3.0, price_per_hour=2.0), clock)
    actors = Actors(least=9, most=9, device="cpu", node_minutes=600, stall_minutes=60, verbose=False)
    runner = RayRunner(
        cast("Any", None), actors, show=lambda progress: waits.set() if "nodes" in progress.stage else None,
        watchdog=Watchdog(), meter=meter,
    )  # fmt: skip
    runner.prepare()
    assert waits.wait(30)
    clock.seconds = 1800
    meter.look()
    assert (meter.cost, meter.reached.is_set()) == (2.0, False)
    clock.seconds = 2700
    meter.look()

    with pytest.raises(CapReached, match=r"^the cost limit of 3 \(--max-cost\) is reached"):
        runner.try_model()
    runner.close()
    clock.seconds = 9000
    meter.look()

    assert (meter.most_nodes, meter.node_hours) == (2, 1.5)  # the head has no room, and nothing counts at the end


def test_a_cluster_of_several_machines_is_not_given_what_lies_on_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.connected", lambda **_: nullcontext())
    monkeypatch.setattr("pipelines.cluster.hosts", lambda: {"10.0.0.1", "10.0.0.2"})
    monkeypatch.setattr("pipelines.doctor.at_start.check_at_start", lambda: None)
    actors = Actors(least=1, most=None, device="cpu", node_minutes=0, stall_minutes=60, verbose=False)
    runner = RayRunner(
        cast("Any", None), actors, show=lambda _: None, watchdog=Watchdog(), own_disks=["s3://lake/", "/data/photos"]
    )
    runner.prepare()

    with pytest.raises(RayDetrError, match="/data/photos is a local folder, and the cluster has 2 machines"):
        runner.try_model()
    runner.close()


def test_machines_that_are_added_for_the_pool_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = {"10.0.0.1"}
    monkeypatch.setattr("pipelines.cluster.connected", lambda **_: nullcontext())
    monkeypatch.setattr("pipelines.cluster.hosts", lambda: machines)
    monkeypatch.setattr("pipelines.doctor.at_start.check_at_start", lambda: None)
    monkeypatch.setattr("pipelines.actor_resources.wait_for_pool", lambda *_, **__: machines.add("10.0.0.2"))
    actors = Actors(least=1, most=None, device="cpu", node_minutes=60, stall_minutes=60, verbose=False)
    runner = RayRunner(cast("Any", None), actors, show=lambda _: None, watchdog=Watchdog(), own_disks=["/data/table"])
    runner.prepare()

    with pytest.raises(RayDetrError, match="/data/table is a local folder, and the cluster has 2 machines"):
        runner.try_model()
    runner.close()


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({}, ["photos/", "s3://lake/", "table"]),
        ({"shared_folders": True}, []),
        ({"images": ("list.csv",)}, ["table"]),
        ({"images": ("a.parquet",), "image_column": "image"}, ["a.parquet", "table"]),
    ],
)
def test_what_actors_read_must_be_where_all_of_them_reach_it(given: dict[str, Any], refused: list[str]) -> None:
    config = LabelConfig(**{"images": ("photos/", "s3://lake/"), "table": "table", "model": "scenes", **given})

    assert own_disks(config) == refused


@pytest.mark.parametrize(("is_reached", "error"), [(True, CapReached), (False, RayDetrError)])
def test_a_pool_that_does_not_go_on_after_the_limit_is_a_run_that_the_limit_has_stopped(
    monkeypatch: pytest.MonkeyPatch, is_reached: bool, error: type[Exception]
) -> None:
    def stalls(*_: Any, **__: Any) -> Generator[Outcome, None, None]:
        raise RayDetrError("no actor was ready within 600 s.")
        yield

    monkeypatch.setattr("pipelines.labelling.actor_pool.label_shards", stalls)
    monkeypatch.setattr(RayRunner, "_wait", lambda _: None)
    monkeypatch.setattr(RayRunner, "_placed", lambda *_: Placed())
    meter = Meter(Caps(max_minutes=5), SimulatedTime(minutes=6 if is_reached else 1))
    meter.look()
    actors = Actors(least=1, most=None, device="cpu", node_minutes=0, stall_minutes=60, verbose=False)
    runner = RayRunner(cast("Any", None), actors, show=lambda _: None, watchdog=Watchdog(), meter=meter)

    with pytest.raises(RayDetrError, match=r"no actor was ready within 600 s\.$") as stopped:
        next(
            runner.label(
                cast("Any", SimpleNamespace(precision="fp32", run_id="r", model="m", model_sha256="0", settings="{}")),
                [0],
                isolated=False,
            )
        )

    assert type(stopped.value) is error
