"""Writes the log of a training run: TensorBoard files, JSON lines, and experiment trackers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from pipelines.clock import Clock, SystemClock
from pipelines.store import NotFound, Store, StoreError
from pipelines.strict_json import read_record
from pipelines.training.checkpoints import TrainingPosition, without_nan
from pipelines.training.config import TrainConfig
from pipelines.training.experiment_trackers import TrackedRun, TrackerThread, make_tracker
from pipelines.training.run_record import damaged, run_name

logger = logging.getLogger(__name__)

LOGS: Final = "logs/"
NEW_FILE_BYTES: Final = 8_000_000  # every flush rewrites the files, so they must not grow for weeks


@dataclass(frozen=True, slots=True)
class _Tracker:
    """The record `logs/<tracker>.json`: the tracker's own id of the run."""

    id: str


class TrainLog:
    """The log of rank 0. Files are written to a local folder and copied to the run's directory by `flush`.

    TensorBoard reads `RUN/logs/`. Each start writes its own files and hides the steps of earlier starts that it
    repeats. `steps-<first step>-<start id>.jsonl` has the same figures, one line for each step. Leaving the context
    flushes and ends the trackers.
    """

    def __init__(
        self,
        store: Store,
        config: TrainConfig,
        position: TrainingPosition,
        start_id: str,
        *,
        note: Callable[[str], None] | None = None,
        clock: Clock | None = None,
        new_file_bytes: int = NEW_FILE_BYTES,
    ) -> None:
        """Begin the log of a start.

        Args:
            store: The run's directory.
            config: The configuration, which is also sent to its trackers. Their packages must be installed, see
                `check_trackers`.
            position: The first position of this start; later steps are repeated if they were logged before.
            start_id: Identifies the execution of the command.
            note: Called with a sentence for the user, such as that a tracker failed. None writes it to the process's
                log.
            clock: The clock.
            new_file_bytes: Size of files after which new ones are begun.
        """
        self._store = store
        self._start_id = start_id
        self._note = note or logger.warning
        self._clock = clock or SystemClock()
        self._new_file_bytes = new_file_bytes
        self._is_finished = False
        self._folder = TemporaryDirectory(prefix="ray-detr-log-")
        self._trackers = [self._tracker(name, config.resume_identity()) for name in config.trackers]
        self._open_files(position.step + 1)
        restarted = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=self._now(), step=position.step + 1, session_log=restarted))

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StoreError as late:
            if error is None:
                raise
            self._note(f"the end of the training log was not written: {late}")  # the other error is raised

    def add(self, line: Mapping[str, float]) -> None:
        """Add the figures of a step: numbers by name, including `step` and `epoch`."""
        values = {f"train/{name}": value for name, value in line.items() if name not in ("step", "epoch")}
        self._write(int(line["step"]), {**values, "train/epoch": line["epoch"]}, line)

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the numbers among the metrics of an evaluation, as `val/AP` and so on.

        Negative ones are omitted: pycocotools returns -1 for what could not be measured.
        """
        values = {
            f"val/{name}": value
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and not value < 0  # NaN stays
        }
        self._write(step, values, {"step": step, **values})

    def finish(self) -> None:
        """Record that the run is finished. On closing, trackers get this state, otherwise that the run stopped."""
        self._is_finished = True

    def _write(self, step: int, values: Mapping[str, float], line: Mapping[str, Any]) -> None:
        if self._lines.tell() > self._new_file_bytes:
            self.flush()
            self._close_files()
            self._open_files(step)
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._events.write_event(Event(wall_time=self._now(), step=step, summary=summary))
        time = self._clock.now().isoformat(timespec="seconds")
        self._lines.write((json.dumps(without_nan({**line, "time": time}), allow_nan=False) + "\n").encode())
        for tracker in self._trackers:
            tracker.log(step, values)

    def flush(self) -> None:
        """Copy the log to the run's directory.

        If the store does not answer, the user gets a note, and the next flush copies everything.

        Raises:
            StoreError: the store refused.
        """
        try:
            self._upload()
        except StoreError as error:
            if not error.is_transient:
                raise
            self._note(f"the training log could not be written; it will be written with the next lines: {error}")

    def close(self) -> None:
        """Copy the rest of the log, and end the trackers.

        Raises:
            StoreError: the store refused or did not answer.
        """
        try:
            self._upload()
        finally:
            for tracker in self._trackers:
                tracker.close(is_finished=self._is_finished)
            self._close_files()
            self._folder.cleanup()

    def _open_files(self, first_step: int) -> None:
        self._files_step = first_step
        name = f"{first_step:09d}-{self._start_id}"
        # the writer's names have time and host, and TensorBoard reads files in the order of names
        self._events = EventsWriter(str(Path(self._folder.name) / "events"), filename_suffix=f".{name}")
        self._events_file = next(Path(self._folder.name).glob(f"events*.{name}"))
        self._lines_file = Path(self._folder.name) / f"steps-{name}.jsonl"
        self._lines = self._lines_file.open("wb")

    def _close_files(self) -> None:
        self._events.close()
        self._lines.close()

    def _upload(self) -> None:
        self._events.flush()
        self._lines.flush()
        for file in (self._events_file, self._lines_file):
            self._store.put(LOGS + file.name, file.read_bytes())

    def _tracker(self, name: str, configuration: Mapping[str, Any]) -> TrackerThread:
        key = f"{LOGS}{name}.json"
        try:
            tracker_id = read_record(_Tracker, self._store.get(key).data).id
        except NotFound:
            tracker_id = None
        except ValueError as error:
            raise damaged(self._store, key) from error

        def keep(new_id: str) -> None:
            self._store.put(key, json.dumps({"id": new_id}).encode())

        return TrackerThread(
            name,
            make_tracker(name),
            TrackedRun(run_name(self._store), configuration, tracker_id),
            on_open=keep,
            note=self._note,
        )

    def _now(self) -> float:
        return self._clock.now().timestamp()
