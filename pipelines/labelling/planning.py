"""Writes the plan in a thread while earlier segments are labelled, wave by wave."""

import queue
import threading
import time
from collections.abc import Iterator

from pipelines.labelling.manifest import PlannedSegment

PLANNING_AHEAD_SECONDS = 20.0  # how long the first wave waits for more segments


class Planner:
    """Writes a plan in a thread, and yields its durable segments in waves."""

    def __init__(self, plan: Iterator[PlannedSegment], *, wave_shards: int) -> None:
        self.images_planned = 0
        self.is_complete = False
        self._wave_shards = wave_shards
        self._failure: BaseException | None = None
        self._is_left = threading.Event()
        self._queue: queue.Queue[PlannedSegment | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write, args=(plan,), name="plan", daemon=True)
        self._thread.start()

    def waves(self) -> Iterator[list[PlannedSegment]]:
        """Yield waves: lists of the segments that are durable and not yet labelled.

        The first wave waits a little, so that a small lake is one wave, because every wave starts a pool of actors.
        Leaving the loop ends the planning after the segment that is being written.

        Raises:
            RayDetrError: planning failed. Other errors of the planning thread are also raised here.
        """
        try:
            yield from self._waves()
        finally:
            self._is_left.set()

    def _waves(self) -> Iterator[list[PlannedSegment]]:
        deadline = time.monotonic() + PLANNING_AHEAD_SECONDS
        while True:
            wave: list[PlannedSegment] = []
            ended = False
            while not ended and sum(len(segment.shards) for segment in wave) < self._wave_shards:
                wait = max(0.0, deadline - time.monotonic()) if wave else None
                try:
                    segment = self._queue.get(timeout=wait)
                except queue.Empty:
                    break
                ended = segment is None
                if segment is not None:
                    wave.append(segment)
            if wave:
                yield wave
            if ended:
                if self._failure is not None:
                    raise self._failure
                return
            deadline = time.monotonic()

    def _write(self, plan: Iterator[PlannedSegment]) -> None:
        try:
            for segment in plan:
                self.images_planned += segment.images
                self._queue.put(segment)
                if self._is_left.is_set():
                    return
            self.is_complete = True
        except BaseException as error:  # noqa: BLE001 - `waves` raises it again in the thread of the run
            self._failure = error
        finally:
            self._queue.put(None)
