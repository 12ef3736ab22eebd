"""Gauges are set again for as long as a job lives, also while it waits, because Ray removes one that is not."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import run_metrics
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.progress import Progress
from pipelines.run_metrics import RunMetrics
from pipelines.training.run_status import RunStatus, TrainProgress


class Exported:
    """What was set, in the place of Ray's metrics; `is_connected` is Ray's state."""

    def __init__(self) -> None:
        self.is_connected = True
        self.times: Counter[str] = Counter()
        self.values: dict[str, float] = {}
        self.counted: list[tuple[str, float]] = []

    def gauge(self, name: str, **_words: object) -> Any:
        def set_value(value: float, tags: dict[str, str]) -> None:
            key = ",".join([name, *tags.values()])
            self.times[key] += 1
            self.values[key] = value

        return SimpleNamespace(set=set_value)

    def counter(self, name: str, **_words: object) -> Any:
        def record(value: float, tags: dict[str, str]) -> None:
            self.counted.append((",".join([name, *tags.values()]), value))

        return SimpleNamespace(_record=record, inc=record)

    def again(self, key: str, times: int = 3) -> bool:
        """Whether a gauge is set this many times more within seconds, without anything being reported."""
        enough, deadline = self.times[key] + times, time.monotonic() + 30
        while self.times[key] < enough and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.times[key] >= enough


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    made = Exported()
    monkeypatch.setattr("ray.is_initialized", lambda: made.is_connected)
    monkeypatch.setattr("ray.util.metrics.Gauge", made.gauge)
    monkeypatch.setattr("ray.util.metrics.Counter", made.counter)
    monkeypatch.setattr(run_metrics, "EXPORT_SECONDS", 0.01)
    return made


def lost_a_node() -> TrainProgress:
    """What the driver reads after a loss, until there is room for the workers again."""
    status = RunStatus(3)
    status.begin(0)
    status.tell(TrainProgress("train", step=120, images_per_second=33.0, figures={"loss": 4.5}))
    status.end_group("a node was lost")
    status.wait_for(2)
    progress = status.read()[0]
    assert progress is not None
    assert progress.stage == "starting 2 workers as soon as there is room (a node was lost)"
    return progress


def run_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reports: Callable[[Any], None]) -> None:
    from jobs.train import main

    def train(_config: object, *, on_progress: Callable[[TrainProgress], None], say: object) -> Any:
        reports(on_progress)
        raise SystemExit(0)

    monkeypatch.setattr("pipelines.training.train.train", train)
    with (tmp_path / "stderr").open("w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit):
            main(["--train", "s3://data/train", "--storage", "s3://runs", "--name", "first", "--metrics"])


def test_a_training_run_that_waits_for_workers_stays_visible_without_the_figures_of_steps(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def reports(on_progress: Callable[[TrainProgress], None]) -> None:
        on_progress(TrainProgress("train", step=120, images_per_second=33.0, figures={"loss": 4.5}, AP=0.4))
        assert exported.values == {
            "detr_running,train": 1, "detr_train_step": 120, "detr_images_per_second,train": 33.0,
            "detr_train_loss,loss": 4.5, "detr_train_ap": 0.4,
        }  # fmt: skip
        assert exported.again("detr_train_step")
        on_progress(lost_a_node())
        before = exported.times["detr_train_step"]
        assert exported.again("detr_running,train")
        assert exported.times["detr_train_step"] == before

    run_train(monkeypatch, tmp_path, reports)


def test_a_training_run_that_never_gets_workers_is_visible(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def reports(on_progress: Callable[[TrainProgress], None]) -> None:
        on_progress(TrainProgress("starting workers"))
        assert exported.again("detr_running,train")

    run_train(monkeypatch, tmp_path, reports)

    assert set(exported.values) == {"detr_running,train"}


def test_labelling_that_waits_for_nodes_stays_visible(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from jobs.label import main

    def label(_config: object, *, on_progress: Callable[[Progress], None], **_words: object) -> Any:
        on_progress(Progress("waiting for nodes"))  # once, as `wait_for_pool` does
        assert exported.again("detr_running,label")
        raise SystemExit(0)

    monkeypatch.setattr("pipelines.labelling.label.label", label)
    with (tmp_path / "stderr").open("w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit):
            main(f"--images s3://lake/ --table {tmp_path / 'table'} --model scenes --metrics".split())

    assert set(exported.values) == {"detr_running,label"}
    assert "metrics" not in {thread.name for thread in threading.enumerate()}  # it has ended with the command


def test_the_speed_falls_while_no_image_is_labelled(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = RunMetrics("label")
    clock = [110.0]
    monkeypatch.setattr(run_metrics, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    metrics.labelling(Progress("label", images=70, images_this_start=50, images_planned=100, began=100.0))
    assert exported.values["detr_images_per_second,label"] == 5.0

    clock[0] = 200.0
    with metrics.exporting():
        assert exported.again("detr_images_done")

    assert exported.values == {
        "detr_running,label": 1, "detr_images_planned": 100, "detr_images_done": 70,
        "detr_images_per_second,label": 0.5,
    }  # fmt: skip


def test_counters_begin_with_zero_before_the_first_shard(exported: Exported) -> None:
    metrics = RunMetrics("label")
    metrics.labelling(Progress("waiting for nodes"))
    begun = dict(exported.counted)
    metrics.labelling(Progress("label"))
    metrics.shard(ShardReport(0, 8, 2, {"truncated": 3}, 1.0, 0.0, 0.0, 9.0, busy_seconds=3.0, actor_seconds=4.0))

    assert begun.keys() >= {"detr_images", "detr_errors,truncated", "detr_errors,missing", "detr_store_requests"}
    assert set(begun.values()) == {0}
    assert exported.counted[len(begun) :] == [
        ("detr_images", 8),
        ("detr_shards", 1),
        ("detr_network_seconds", 3.0),  # of the device; threads waited for 9
        ("detr_actor_seconds", 4.0),
        ("detr_errors,truncated", 3),
    ]


@pytest.mark.parametrize("importing", [False, True])
def test_nothing_is_set_before_ray_is_connected(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, *, importing: bool
) -> None:
    exported.is_connected = False
    metrics = RunMetrics("label")
    with metrics.exporting():
        with monkeypatch.context() as patched:
            if importing:  # another thread imports Ray: the module is there, but not yet what is in it
                patched.setitem(sys.modules, "ray", SimpleNamespace())
            metrics.labelling(Progress("listing images and reading the table"))
            time.sleep(0.1)
            assert exported.values == {}
        exported.is_connected = True

        assert exported.again("detr_running,label")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_export_is_reported_and_does_not_stop_the_run(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[BaseException | None] = []
    seen = threading.Event()

    def report(error: threading.ExceptHookArgs) -> None:
        reported.append(error.exc_value)
        seen.set()

    def gauge(name: str, **_words: object) -> Any:
        raise RuntimeError("no exporter")

    monkeypatch.setattr(threading, "excepthook", report)
    monkeypatch.setattr("ray.util.metrics.Gauge", gauge)
    with RunMetrics("label").exporting():
        assert seen.wait(30)

    assert [str(error) for error in reported] == ["no exporter"]
