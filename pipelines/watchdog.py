"""A watchdog for the stages of a run: reports each stage without progress for two minutes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.clock import Clock, SystemClock
from pipelines.concurrently import repeating

STALL_SECONDS = 120.0
LOOK_SECONDS = 5.0

_logger = logging.getLogger(__name__)


@dataclass
class Stage:
    """A stage in progress. `patience_seconds` may grow: a slow stage may be slow again."""

    name: str
    moved_at: float
    detail: Callable[[], str]
    patience_seconds: float
    named_after_seconds: float = 0.0

    def moved(self, at: float) -> None:
        """Record progress."""
        self.moved_at, self.named_after_seconds = at, 0.0


class Watchdog:
    """Records the stages in progress and the time of their last progress. Thread-safe."""

    def __init__(self, clock: Clock | None = None, tell: Callable[[str], None] = _logger.warning) -> None:
        """Set the clock, and the function that is called with a sentence about a stage without progress."""
        self._clock, self._tell = clock or SystemClock(), tell
        self._lock = threading.Lock()
        self._stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str, *, detail: Callable[[], str] = str) -> Iterator[Callable[..., None]]:
        """Watch a stage while the context is open; return the function to call after each progress.

        Args:
            name: description of the stage in messages.
            detail: returns a possible reason; "" for none.
        """
        stage = Stage(name, self._clock.monotonic(), detail, STALL_SECONDS)

        def moved(took_seconds: float = 0.0) -> None:
            stage.patience_seconds = max(stage.patience_seconds, 3 * took_seconds)
            stage.moved(self._clock.monotonic())

        with self._lock:
            self._stages.append(stage)
        try:
            yield moved
        finally:
            with self._lock:
                self._stages.remove(stage)

    def look(self) -> None:
        """Report the stages without progress for their patience, each again when that time has doubled."""
        now = self._clock.monotonic()
        with self._lock:
            stages = list(self._stages)
        for stage in stages:
            still = now - stage.moved_at
            if still >= max(stage.patience_seconds, 2 * stage.named_after_seconds):
                stage.named_after_seconds = still
                detail = stage.detail()
                self._tell(f"{stage.name}: no progress for {still / 60:.0f} min" + (f"; {detail}" if detail else ""))


@contextmanager
def watching() -> Iterator[Watchdog]:
    """Yield a watchdog that checks every few seconds in a background thread."""
    watchdog = Watchdog()
    with repeating(watchdog.look, seconds=LOOK_SECONDS, name="watchdog"):
        yield watchdog
