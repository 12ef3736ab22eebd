"""Reports the progress of a worker group: metrics to the log, progress to the driver."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import ray

from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.collective import Collective
from pipelines.training.config import TrainConfig
from pipelines.training.learner import Learner
from pipelines.training.metrics import MetricsWindow
from pipelines.training.order import EpochOrder
from pipelines.training.run_status import TrainProgress
from pipelines.training.training_log import TrainLog

REPORT_SECONDS: Final = 1.0  # between two reports to the driver


class Reporter:
    """Collects the metrics of all workers. On rank 0 it writes the log and reports the progress to the driver.

    Attributes:
        window: metrics since the last line of the log.
    """

    def __init__(self, config: TrainConfig, status: Any, collective: Collective) -> None:
        """Create it without a log.

        Args:
            config: The configuration of the run.
            status: The handle of the `RunStatus` actor.
            collective: The group of workers.
        """
        self.window = MetricsWindow()
        self._config, self._status, self._collective = config, status, collective
        self._progress = TrainProgress("train", epochs=config.recipe.epochs, workers=collective.workers)
        self._log: TrainLog | None = None
        self._reported = time.monotonic()
        self._capped: Any = None  # future of the last report: whether a limit of time or cost is reached

    def open(self, log: TrainLog, *, step: int, best: float | None) -> None:
        """Continue a run on rank 0, from its step and its best AP."""
        self._log = log
        self._progress = replace(self._progress, step=step, best=best)

    def is_due(self, position: TrainingPosition, order: EpochOrder) -> bool:
        """Return whether `step_done` closes a line of the log at this position, on all workers."""
        return position.step % self._config.log_steps == 0 or position.step_in_epoch == order.steps

    def step_done(self, learner: Learner, position: TrainingPosition, order: EpochOrder) -> None:
        """Log the metrics of the last steps if that is due (collective), and report the progress every second."""
        if self.is_due(position, order):
            line = self.window.close(self._collective, learner)
            if self._log is not None:
                self._log.add({"step": position.step, "epoch": position.epoch, **line})
            self._progress = replace(
                self._progress,
                images_per_second=line["images_per_second"],
                losses={"loss": line["loss"]},
                figures=line,
            )
        self._progress = replace(
            self._progress,
            epoch=position.epoch,
            step=position.step,
            steps_done=position.step_in_epoch,
            steps=order.steps,
        )
        is_recent = time.monotonic() - self._reported < REPORT_SECONDS
        if position.step_in_epoch == order.steps or not is_recent:
            self._report()

    def begin_evaluation(self) -> None:
        """Report that the model is being evaluated."""
        self._progress = replace(self._progress, stage="evaluate")
        self._report()

    def end_evaluation(self, position: TrainingPosition, metrics: Mapping[str, Any] | None) -> None:
        """Log and report the metrics of an evaluation, which only rank 0 has."""
        self._progress = replace(self._progress, stage="train")
        if metrics is None:
            return
        assert self._log is not None, "rank 0 has a log"
        self._log.evaluated(position.step, metrics)
        self._log.flush()
        best = max(value for value in (self._progress.best, metrics["AP"]) if value is not None)
        self._progress = replace(self._progress, AP=metrics["AP"], best=best)
        self._report()

    def is_capped(self) -> bool:
        """Return whether the driver has reported that a limit of time or cost is reached. False except on rank 0."""
        if self._capped is None or not ray.wait([self._capped], timeout=0)[0]:
            return False
        return bool(ray.get(self._capped))

    def flush(self) -> None:
        """Write the log to the store, on rank 0."""
        if self._log is not None:
            self._log.flush()

    def finish(self) -> None:
        """Finish the log and report that the run is finished, on rank 0."""
        assert self._log is not None, "rank 0 has a log"
        self._log.finish()
        ray.get(self._status.finish.remote())

    def _report(self) -> None:
        self._reported = time.monotonic()
        if self._collective.rank == 0:
            self._capped = self._status.tell.remote(self._progress)
