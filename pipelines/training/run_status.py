"""Status of a training run that workers report to the driver: progress, and reasons to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MENTIONED_FAILURES = 3


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a run is, for whoever shows it.

    Attributes:
        stage: "train", "evaluate", or what happens before.
        epoch: the one that runs, from 0.
        epochs: of the run.
        step: of the whole run, taken so far.
        steps_done: of this epoch.
        steps: of this epoch.
        workers: that take part.
        images_per_second: over the last log interval.
        losses: means over the last log interval.
        AP: of the last evaluation; None before the first.
        best: AP of the best so far.
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
    """Kept by one small actor beside the driver, so that it outlives every worker.

    Ray starts the workers anew after any failure. What must not be tried again - a diverged loss, another
    configuration - is written here instead of raised, and the driver raises it. Starts without a new step between them
    are counted here, too: a failure that comes again and again ends the run.
    """

    def __init__(self, starts_without_progress: int) -> None:
        self._most = starts_without_progress
        self._progress: TrainProgress | None = None
        self._stopped: str | None = None
        self._finished = False
        self._cap: str | None = None  # the limit of time or cost that is reached
        self._is_capped = False
        self._starts: list[int] = []
        self._failures: list[str] = []
        self._failed_before = 0  # failures since the workers last got as far as `begin`

    def begin(self, step: int) -> str | None:
        """Note that the workers start at a step; return why they must not, if the run has stopped."""
        self._starts.append(step)
        self._failed_before = 0
        if self._cap is not None:
            self.stop_at_cap(step)
        same = [begun for begun in self._starts if begun == step]
        if len(same) > self._most and self._stopped is None:
            self._stopped = (
                f"the workers were started {len(same)} times at step {step:,} and failed every time before the next "
                f"checkpoint ({self._last_failures()}). Fix the cause, then run the same command again to resume."
            )
        return self._stopped

    def fail(self, sentence: str) -> None:
        """Note why workers were lost; too often before they could even begin is the end of the run."""
        self._failures.append(sentence)
        self._failed_before += 1
        if self._cap is not None:
            self._stop_without_workers()
        if self._failed_before > self._most and self._stopped is None:
            self._stopped = (
                f"the workers failed {self._failed_before} times before they could begin ({self._last_failures()}). "
                "Is the same package installed on every node? Run the same command again to resume from the newest "
                "checkpoint."
            )

    def stop(self, sentence: str) -> None:
        """Note why the run stops for good; the first reason counts."""
        self._stopped = self._stopped or sentence

    def cap(self, reason: str) -> None:
        """Note that a limit of time or cost is reached: the workers are to write a checkpoint and end."""
        self._cap = reason
        if not self._starts or self._failed_before:  # nobody is there to write a checkpoint
            self._stop_without_workers()

    def stop_at_cap(self, step: int) -> None:
        """Note that the run stops for the limit that is reached, with a checkpoint at a step."""
        if self._stopped is None:
            self._is_capped = True
            self.stop(f"{self._cap}. The newest checkpoint is of step {step:,}. Run the same command again to resume.")

    def _stop_without_workers(self) -> None:
        if self._stopped is None:
            self._is_capped = True
            self.stop(f"{self._cap}, and no worker is running. Run the same command again to resume.")

    def is_stopped_by_cap(self) -> bool:
        """Return whether a limit of time or cost is why the run stopped."""
        return self._is_capped

    def finish(self) -> None:
        """Note that the last epoch is done."""
        self._finished = True

    def tell(self, progress: TrainProgress) -> bool:
        """Replace what is known about the progress; return whether a limit of time or cost is reached."""
        self._progress = progress
        return self._cap is not None

    def read(self) -> tuple[TrainProgress | None, str | None, bool, list[int]]:
        """Return the progress, why the run stopped, whether it finished, and at which steps workers were started."""
        return self._progress, self._stopped, self._finished, list(self._starts)

    def _last_failures(self) -> str:
        return "; ".join(dict.fromkeys(self._failures[-MENTIONED_FAILURES:])) or "no message"
