"""Status of a training run that workers report to the driver: progress, and reasons to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

MENTIONED_FAILURES = 3


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """The progress of a training run.

    Attributes:
        stage: "train", "evaluate", or a text about what happens before.
        epoch: number of the current epoch, from 0.
        epochs: number of epochs of the run.
        step: steps of the run so far.
        steps_done: steps of this epoch so far.
        steps: number of steps of this epoch.
        workers: number of workers.
        images_per_second: rate of all workers over the last log interval.
        losses: means over the last log interval.
        AP: AP of the last evaluation; None before the first.
        best: highest AP so far.
        figures: the last line of the log.
    """

    stage: str
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps_done: int = 0
    steps: int = 0
    workers: int = 0
    images_per_second: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)
    AP: float | None = None
    best: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class RunStatus:
    """An actor that outlives the workers and records why the run must stop.

    Ray restarts the workers after every error that they raise. Errors that must not be retried, such as a diverged
    loss or another configuration, are reported here instead, and the driver raises them. Failures without a new
    checkpoint are counted, so that a repeated failure ends the run. Workers that end without an error, because a
    machine is taken back or Ray changes their number, are started again as often as needed.
    """

    def __init__(self, starts_without_progress: int) -> None:
        self._most = starts_without_progress
        self._progress: TrainProgress | None = None
        self._stopped: str | None = None
        self._finished = False
        self._cap: str | None = None  # why a limit of time or cost is reached
        self._is_capped = False
        self._capped_step: int | None = None  # of the checkpoint at the limit
        self._starts: list[int] = []
        self._failed_starts: list[int] = []  # the steps of those that a failure ended
        self._failures: list[str] = []
        self._failed_before = 0  # failures since the last call of `begin`
        self._is_running = False  # whether workers have begun and are not known to have ended
        self._ended = ""  # why the last workers ended
        self._controller: Any = None
        self._notes: list[str] = []

    def begin(self, step: int) -> str | None:
        """Record that the workers begin at a step; return the reason if the run is stopped."""
        self._starts.append(step)
        self._failed_before = 0
        self._is_running = True
        if self._cap is not None:
            self.stop_at_cap(step)
        failed = self._failed_starts.count(step)
        if failed >= self._most and self._stopped is None:
            self._stopped = (
                f"the workers were started {failed + 1} times at step {step:,} and failed every time before the next "
                f"checkpoint ({self._last_failures()}). Fix the cause, then run the same command again to resume."
            )
        return self._stopped

    def fail(self, sentence: str) -> None:
        """Record why workers were lost, once for each group. The run stops after too many failures before `begin`."""
        self._failures.append(sentence)
        if self._starts and not self._failed_before:
            self._failed_starts.append(self._starts[-1])
        self._failed_before += 1
        self._is_running = False
        if self._cap is not None:
            self._stop_without_workers()
        if self._failed_before > self._most and self._stopped is None:
            self._stopped = (
                f"the workers failed {self._failed_before} times before they could begin ({self._last_failures()}). "
                "Is the same package installed on every node? Run the same command again to resume from the newest "
                "checkpoint."
            )

    def end_group(self, why: str) -> None:
        """Record that no worker is running any more, with or without a failure."""
        self._is_running, self._ended = False, why
        self._tell_stage(f"waiting for workers ({why})")
        if self._cap is not None:
            self._stop_without_workers()

    def wait_for(self, workers: int | None) -> None:
        """Record that Ray starts this number of workers again as soon as there is room; None if they have it."""
        if workers is None or not self._ended:
            self._tell_stage("starting workers")
        else:
            self._tell_stage(
                f"starting {workers:,} worker{'' if workers == 1 else 's'} as soon as there is room ({self._ended})"
            )

    def note(self, sentence: str) -> None:
        """Record a sentence for the user: what a worker prints itself reaches nobody."""
        self._notes.append(sentence)

    def take_notes(self) -> list[str]:
        """Return the sentences that were recorded since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def controlled_by(self, handle: Any) -> None:
        """Record the handle of Ray Train's controller."""
        self._controller = handle

    def controller(self) -> Any:
        """Return the handle of Ray Train's controller; None before it has begun."""
        return self._controller

    def _tell_stage(self, stage: str) -> None:
        self._progress = replace(self._progress or TrainProgress(stage), stage=stage)

    def stop(self, sentence: str) -> None:
        """Stop the run; the first reason is kept."""
        self._stopped = self._stopped or sentence

    def cap(self, reason: str) -> None:
        """Record that a limit of time or cost is reached: the workers write a checkpoint and end."""
        self._cap = reason
        if not self._is_running:  # no worker could write a checkpoint
            self._stop_without_workers()

    def stop_at_cap(self, step: int) -> None:
        """Stop the run at the limit, with a checkpoint of this step."""
        if self._stopped is None:
            self._is_capped, self._capped_step = True, step
            self.stop(
                f"{self._cap}. The newest checkpoint is from step {step:,}. Run the same command again to resume."
            )

    def _stop_without_workers(self) -> None:
        if self._stopped is None:
            self._is_capped = True
            self.stop(f"{self._cap}, and no worker is running. Run the same command again to resume.")

    def stopped_at_cap(self) -> tuple[bool, int | None]:
        """Return whether the run stopped at a limit of time or cost, and the step of its checkpoint if it is known."""
        return self._is_capped, self._capped_step

    def finish(self) -> None:
        """Record that the last epoch is done."""
        self._finished = True

    def tell(self, progress: TrainProgress) -> bool:
        """Record the progress; return whether a limit of time or cost is reached."""
        self._progress = progress
        return self._cap is not None

    def read(self) -> tuple[TrainProgress | None, str | None, bool, list[int]]:
        """Return the progress, why the run stopped, whether it is finished, and the steps at which workers began."""
        return self._progress, self._stopped, self._finished, list(self._starts)

    def _last_failures(self) -> str:
        return "; ".join(dict.fromkeys(self._failures[-MENTIONED_FAILURES:])) or "no message"
