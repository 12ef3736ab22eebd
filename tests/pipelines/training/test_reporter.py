"""What workers report: lines of the log, progress for the driver, and whether a limit is reached."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from pipelines.training import reporter as module
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.learner import Learner
from pipelines.training.order import EpochOrder
from pipelines.training.recipe import RECIPES
from pipelines.training.reporter import Reporter
from pipelines.training.run_status import TrainProgress

LINE = {"loss": 2.5, "images_per_second": 8.0}
ORDER = cast(EpochOrder, SimpleNamespace(steps=7))
LEARNER = cast(Learner, None)


@dataclass
class Log:
    """Keeps what is logged."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[int, Any]] = field(default_factory=list)
    did: list[str] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def evaluated(self, step: int, metrics: Any) -> None:
        self.evaluations.append((step, metrics))

    def flush(self) -> None:
        self.did.append("flush")

    def finish(self) -> None:
        self.did.append("finish")


class Told:
    """The `RunStatus` actor's handle, whose answers are there at once."""

    def __init__(self) -> None:
        self.progress: list[TrainProgress] = []
        self.is_capped = False
        self.tell = SimpleNamespace(remote=self._tell)

    def _tell(self, progress: TrainProgress) -> bool:
        self.progress.append(progress)
        return self.is_capped


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(ray, "wait", lambda futures, timeout: (futures, []))
    monkeypatch.setattr(ray, "get", lambda future: future)
    return Told()


def reporter_of(status: Told, monkeypatch: pytest.MonkeyPatch, *, rank: int = 0, log_steps: int = 3) -> Reporter:
    config = TrainConfig(
        train="shards", storage="runs", name="a", finetune="scenes", recipe=replace(RECIPES["finetune"], epochs=2),
        log_steps=log_steps,
    )  # fmt: skip
    made = Reporter(config, status, cast(Any, SimpleNamespace(rank=rank, workers=2)))
    monkeypatch.setattr(made.window, "close", lambda _collective, _learner: dict(LINE))
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
    return made


def test_a_line_is_logged_every_few_steps_and_at_the_end_of_an_epoch(
    status: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, log = reporter_of(status, monkeypatch), Log()
    reporter.open(cast(Any, log), step=0, best=None)

    for step in range(1, 8):
        reporter.step_done(LEARNER, TrainingPosition(0, step, step), ORDER)

    assert [line["step"] for line in log.lines] == [3, 6, 7]
    assert log.lines[0] == {"step": 3, "epoch": 0, **LINE}
    last = status.progress[-1]
    assert (last.stage, last.epoch, last.epochs, last.step, last.steps_done, last.steps) == ("train", 0, 2, 7, 7, 7)
    assert (last.workers, last.images_per_second, last.losses, last.figures) == (2, 8.0, {"loss": 2.5}, LINE)


def test_other_ranks_close_the_same_lines_and_report_nothing(status: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = reporter_of(status, monkeypatch, rank=1)
    closed: list[int] = []
    monkeypatch.setattr(reporter.window, "close", lambda _collective, _learner: closed.append(1) or dict(LINE))

    for step in range(1, 8):
        reporter.step_done(LEARNER, TrainingPosition(0, step, step), ORDER)
    reporter.begin_evaluation()
    reporter.end_evaluation(TrainingPosition(1, 0, 7), None)
    reporter.flush()

    assert len(closed) == 3
    assert status.progress == []
    status.is_capped = True
    assert not reporter.is_capped()


def test_an_evaluation_is_logged_and_the_best_so_far_is_kept(status: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, log = reporter_of(status, monkeypatch), Log()
    reporter.open(cast(Any, log), step=4, best=0.5)

    reporter.begin_evaluation()
    assert (status.progress[-1].stage, status.progress[-1].step, status.progress[-1].best) == ("evaluate", 4, 0.5)
    reporter.end_evaluation(TrainingPosition(1, 0, 7), {"AP": 0.25})
    assert (status.progress[-1].stage, status.progress[-1].AP, status.progress[-1].best) == ("train", 0.25, 0.5)
    reporter.end_evaluation(TrainingPosition(2, 0, 14), {"AP": 0.75})

    assert status.progress[-1].best == 0.75
    assert log.evaluations == [(7, {"AP": 0.25}), (14, {"AP": 0.75})]
    assert log.did == ["flush", "flush"]


def test_a_limit_is_known_when_the_driver_has_answered(status: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = reporter_of(status, monkeypatch)
    assert not reporter.is_capped()
    reporter.begin_evaluation()
    assert not reporter.is_capped()

    status.is_capped = True
    reporter.begin_evaluation()

    assert reporter.is_capped()
    monkeypatch.setattr(ray, "wait", lambda futures, timeout: ([], futures))
    assert not reporter.is_capped()
