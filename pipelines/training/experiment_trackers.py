"""MLflow and Weights & Biases: they receive the training log in their own thread and never delay training."""

from __future__ import annotations

import importlib.util
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pipelines.errors import RayDetrError

WAITING_LINES: Final = 1000  # of the log, for a tracker that is slow: hours of training
CLOSE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run's data for a tracker: `tracker_id` is the tracker's id of the run, None at the first start."""

    name: str
    configuration: Mapping[str, Any]
    tracker_id: str | None


class Tracker(Protocol):
    """An experiment tracking service. Methods are called sequentially from one thread."""

    def open(self, run: TrackedRun) -> str:
        """Begin or resume a run, and return the tracker's id of it."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars of a step."""
        ...

    def close(self, *, is_finished: bool) -> None:
        """End the run: finished, or stopped to be resumed."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise if a tracker's package is missing. Call it before a run begins, on the machine of the worker.

    Raises:
        RayDetrError: with the command that installs it.
        ValueError: no such tracker.
    """
    for name in names:
        make_tracker(name)
        if importlib.util.find_spec(name) is None:
            raise RayDetrError(
                f"tracker {name} is not installed. `pip install {name}` on every node, or omit it: TensorBoard files "
                "are always written."
            )


def make_tracker(name: str) -> Tracker:
    """Return a tracker that is not open yet. Its own environment variables define its server.

    Raises:
        ValueError: no such tracker.
    """
    if name not in ("mlflow", "wandb"):
        raise ValueError(f"tracker: {name!r} is not known; use mlflow or wandb.")
    return MlflowTracker() if name == "mlflow" else WandbTracker()


class MlflowTracker:
    """A run of MLflow, by `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`."""

    def open(self, run: TrackedRun) -> str:
        """Begin a run with the configuration as its parameters, or resume it."""
        import mlflow  # type: ignore[import-not-found,unused-ignore]  # an optional package, and seconds

        self._mlflow: Any = mlflow
        active = self._mlflow.start_run(run_id=run.tracker_id, run_name=run.name)
        if run.tracker_id is None:
            self._mlflow.log_params(dict(run.configuration))
        return str(active.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars of a step; of a step that is repeated, MLflow keeps both."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, *, is_finished: bool) -> None:
        """End the run."""
        self._mlflow.end_run("FINISHED" if is_finished else "KILLED")


class WandbTracker:
    """A run of Weights & Biases, by `WANDB_API_KEY`, `WANDB_PROJECT`, `WANDB_MODE` and so on."""

    def open(self, run: TrackedRun) -> str:
        """Begin a run with the configuration, or resume it."""
        import wandb  # type: ignore[import-not-found,unused-ignore]  # an optional package, and seconds

        tracker_id = run.tracker_id or secrets.token_hex(6)
        self._run: Any = wandb.init(
            id=tracker_id,
            name=run.name,
            resume="allow",
            config=dict(run.configuration),
            settings=wandb.Settings(console="off"),  # otherwise it redirects standard output
        )
        # its own step must not decrease, as ours does after a resume: it would drop those lines
        self._run.define_metric("*", step_metric="step")
        return tracker_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars of a step."""
        self._run.log({**values, "step": step})

    def close(self, *, is_finished: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if is_finished else 1)


class TrackerThread:
    """A tracker that receives lines in a thread. If it fails, the user gets a note and training continues.

    Its server may be unreachable for minutes while its client retries; steps do not wait for it.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        run: TrackedRun,
        *,
        on_open: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        """Begin to open the tracker.

        Args:
            name: of the tracker, for notes.
            tracker: not open yet.
            run: the run.
            on_open: called in the thread with the tracker's id of the run.
            note: called with a sentence if the tracker fails, in any thread.
        """
        self._name, self._note = name, note
        self._lines: queue.Queue[tuple[int, Mapping[str, float]] | bool] = queue.Queue(WAITING_LINES)
        self._failed = False
        self._thread = threading.Thread(
            target=self._work, args=(tracker, run, on_open), name=f"tracker-{name}", daemon=True
        )
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the scalars of a step."""
        self._put((step, values))

    def close(self, *, is_finished: bool, seconds: float = CLOSE_SECONDS) -> None:
        """Queue the end, and wait at most `seconds` for the tracker to process the queue."""
        self._put(is_finished)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(f"it did not accept the last lines within {seconds:g} s")

    def _put(self, line: tuple[int, Mapping[str, float]] | bool) -> None:
        if self._failed:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._fail(f"it is {WAITING_LINES:,} lines behind")

    def _work(self, tracker: Tracker, run: TrackedRun, on_open: Callable[[str], None]) -> None:
        try:
            on_open(tracker.open(run))
            while not isinstance(line := self._lines.get(), bool):
                if self._failed:
                    return
                tracker.log(*line)
            tracker.close(is_finished=line)
        except Exception as error:  # noqa: BLE001 - trackers raise whatever their libraries do; said once, below
            self._fail(f"{type(error).__name__}: {str(error).strip() or 'no reason given'}")

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._note(
                f"tracker {self._name} failed and is disabled until workers start again ({reason}); the run's own logs "
                "are complete"
            )
