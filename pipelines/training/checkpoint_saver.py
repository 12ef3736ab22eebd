"""Saves checkpoints during training: copied to memory between two steps, uploaded during the next ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipelines.errors import RayDetrError
from pipelines.store import StoreError
from pipelines.training.checkpoints import TrainingPosition, TrainingRun, model_directory_files
from pipelines.training.learner import Learner


class Saver:
    """Writes the checkpoints of one group of workers; only its first worker has one.

    One upload runs at a time. What went wrong with it comes up at the next call, and at every one after it: what is
    written later must not pass over what is missing. Memory: the tensors of one checkpoint, three times while they are
    encoded.
    """

    def __init__(self, run: TrainingRun, *, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[object] | None = None
        self._failure: RayDetrError | None = None

    def save(self, position: TrainingPosition, learner: Learner) -> None:
        """Take a copy of everything, and begin to upload it; waits for the upload before."""
        self.wait()
        files, tensors, record = model_directory_files(learner.kept), learner.tensors(), learner.record()
        self._begin(lambda: self._run.save(position, files, tensors, record, keep=self._keep))

    def rate(self, metrics: Mapping[str, Any]) -> None:
        """Add an evaluation to the newest checkpoint, which is of the model that was evaluated."""
        self.wait()
        newest = self._run.latest()
        assert newest is not None
        self._begin(lambda: self._run.set_metrics(newest.name, metrics))

    def finish(self) -> str:
        """Mark the run as finished, and return the name of the checkpoint whose model is `model/` now."""
        self.wait()
        self._begin(self._run.finish)
        return str(self.wait())

    def check(self) -> None:
        """Raise what went wrong with an upload that has ended.

        Raises:
            RayDetrError: the store does not take checkpoints, or another start owns the run.
        """
        if self._failure is not None or (self._pending is not None and self._pending.done()):
            self.wait()

    def wait(self) -> object:
        """Wait for the upload, and return what it gave; raises as `check` does."""
        if self._failure is not None:
            raise self._failure
        pending, self._pending = self._pending, None
        try:
            return None if pending is None else pending.result()
        except RayDetrError as stopped:
            self._failure = stopped
            raise
        except StoreError as error:
            self._failure = RayDetrError(
                f"a checkpoint cannot be written: {error} Training stops at the last complete one; run the same "
                "command again to resume."
            )
            raise self._failure from error

    def close(self) -> None:
        """End the thread after the upload that it is in."""
        self._thread.shutdown()

    def _begin(self, work: Callable[[], object]) -> None:
        self._pending = self._thread.submit(work)
