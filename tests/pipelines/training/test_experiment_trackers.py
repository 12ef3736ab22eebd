"""Trackers: told everything, resumed under their own id, and never in the way of training.

The packages themselves are not installed for tests. Their stand-ins here keep what they are told and hold to the rules
of the real ones that matter: MLflow knows one active run, W&B drops lines whose own step goes back.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import threading
import types
from collections.abc import Mapping
from typing import Any

import pytest

from pipelines.errors import RayDetrError
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.experiment_trackers import TrackedRun, TrackerThread, check_trackers, make_tracker
from pipelines.training.training_log import TrainLog
from tests.memory_store import memory_store

RUN = TrackedRun("r50", {"lr": 1e-4}, None)


class StandInMlflow(types.ModuleType):
    """MLflow's fluent functions over dictionaries."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
        self.runs: dict[str, dict[str, Any]] = {}
        self.active: str | None = None

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> types.SimpleNamespace:
        assert self.active is None, "a run is active already"
        assert run_id is None or run_id in self.runs, "no such run"
        self.active = run_id or f"id-{len(self.runs)}"
        self.runs.setdefault(self.active, {"name": run_name, "params": {}, "metrics": []})["status"] = "RUNNING"
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=self.active))

    def log_params(self, params: dict[str, Any]) -> None:
        assert self.active is not None
        self.runs[self.active]["params"].update(params)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert self.active is not None
        self.runs[self.active]["metrics"].append((step, metrics))

    def end_run(self, status: str) -> None:
        assert self.active is not None
        self.runs[self.active]["status"], self.active = status, None


class StandInWandb(types.ModuleType):
    """W&B's init and runs over dictionaries."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs: dict[str, StandInWandbRun] = {}
        self.Settings = dict

    def init(self, *, id: str, name: str, resume: str, config: dict[str, Any], settings: dict[str, str]) -> Any:  # noqa: A002
        assert resume == "allow"
        assert settings == {"console": "off"}
        return self.runs.setdefault(id, StandInWandbRun(name, config))


class StandInWandbRun:
    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.name, self.config = name, config
        self.lines: list[dict[str, float]] = []
        self.axis: tuple[str, str] | None = None
        self.exit_code: int | None = None

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axis = (name, step_metric)

    def log(self, values: dict[str, float]) -> None:
        self.lines.append(values)

    def finish(self, *, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> StandInMlflow:
    module = StandInMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandInWandb:
    module = StandInWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_and_its_resume_are_one_run_in_every_tracker(mlflow: StandInMlflow, wandb: StandInWandb) -> None:
    store = memory_store("memory://runs/r50")
    config = TrainConfig(
        train="s3://shards", storage="s3://runs", name="r50", finetune="scenes", trackers=("mlflow", "wandb")
    )

    with TrainLog(store, config, TrainingPosition(0, 0, 0), "a") as log:
        log.add({"step": 10, "epoch": 0, "loss": 4.5})
        log.add({"step": 20, "epoch": 0, "loss": 4.0})
    assert next(iter(mlflow.runs.values()))["status"] == "KILLED"
    assert next(iter(wandb.runs.values())).exit_code == 1
    with TrainLog(store, config, TrainingPosition(0, 10, 10), "b") as log:
        log.add({"step": 20, "epoch": 0, "loss": 4.25})
        log.evaluated(20, {"AP": 0.5})
        log.finish()

    told = [
        (10, {"train/loss": 4.5, "train/epoch": 0}),
        (20, {"train/loss": 4.0, "train/epoch": 0}),
        (20, {"train/loss": 4.25, "train/epoch": 0}),
        (20, {"val/AP": 0.5}),
    ]
    ((mlflow_id, of_mlflow),) = mlflow.runs.items()
    assert of_mlflow["name"] == "r50"
    assert of_mlflow["params"] == config.resume_identity()
    assert of_mlflow["metrics"] == told
    assert of_mlflow["status"] == "FINISHED"
    ((wandb_id, of_wandb),) = wandb.runs.items()
    assert (of_wandb.name, of_wandb.config, of_wandb.exit_code) == ("r50", config.resume_identity(), 0)
    assert of_wandb.axis == ("*", "step")
    assert of_wandb.lines == [{**values, "step": step} for step, values in told]
    assert json.loads(store.get("logs/mlflow.json").data) == {"id": mlflow_id}
    assert json.loads(store.get("logs/wandb.json").data) == {"id": wandb_id}


class Recorder:
    """A tracker that fails at one of its calls, and waits at each until it may go on."""

    def __init__(self, fails_at: str = "", may_go_on: threading.Event | None = None) -> None:
        self.fails_at = fails_at
        self.may_go_on = may_go_on
        self.calls: list[str] = []

    def open(self, run: TrackedRun) -> str:
        self._call("open")
        return "id"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call(f"log {step}")

    def close(self, *, is_finished: bool) -> None:
        self._call(f"close {is_finished}")

    def _call(self, name: str) -> None:
        if self.may_go_on is not None:
            assert self.may_go_on.wait(10)
        if name == self.fails_at:
            raise ConnectionError("the server is away")
        self.calls.append(name)


@pytest.mark.parametrize("fails_at", ["open", "log 2", "close True"])
def test_a_tracker_that_fails_is_left_behind_with_one_note(fails_at: str) -> None:
    tracker, notes = Recorder(fails_at), list[str]()
    thread = TrackerThread("mlflow", tracker, RUN, on_open=lambda _: None, note=notes.append)
    for step in (1, 2, 3):
        thread.log(step, {})
    thread.close(is_finished=True, seconds=10)
    thread.log(4, {})

    expected = ["open", "log 1", "log 2", "log 3", "close True"]
    assert tracker.calls == expected[: expected.index(fails_at)]
    assert notes == [
        "tracker mlflow failed and is disabled until workers start again (ConnectionError: the server is away); "
        "the run's own logs are complete"
    ]


def test_a_tracker_that_hangs_holds_up_neither_steps_nor_the_end() -> None:
    may_go_on, notes = threading.Event(), list[str]()
    tracker = Recorder(may_go_on=may_go_on)
    thread = TrackerThread("wandb", tracker, RUN, on_open=lambda _: None, note=notes.append)
    thread.log(1, {})
    thread.close(is_finished=True, seconds=0.01)
    may_go_on.set()
    thread._thread.join(10)

    assert "it did not accept the last lines within 0.01 s" in notes[0]
    assert "log 1" not in tracker.calls


def test_a_tracker_that_is_too_slow_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.training.experiment_trackers.WAITING_LINES", 2)
    may_go_on, notes = threading.Event(), list[str]()
    tracker = Recorder(may_go_on=may_go_on)
    thread = TrackerThread("wandb", tracker, RUN, on_open=lambda _: None, note=notes.append)
    for step in range(4):
        thread.log(step, {})
    may_go_on.set()

    assert len(notes) == 1
    assert "it is 2 lines behind" in notes[0]


def test_a_tracker_that_is_not_installed_is_said_so_before_the_run(wandb: StandInWandb) -> None:
    check_trackers(["wandb"])
    with pytest.raises(RayDetrError, match=r"tracker mlflow is not installed. `pip install mlflow` on every node"):
        check_trackers(["wandb", "mlflow"])
    with pytest.raises(ValueError, match="tracker: 'neptune' is not known; use mlflow or wandb"):
        make_tracker("neptune")
