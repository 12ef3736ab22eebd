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
    """One thing that is being done. `patience_seconds` may grow: what took long before may take long again."""

    name: str
    moved_at: float
    detail: Callable[[], str]
    patience_seconds: float
    named_after_seconds: float = 0.0

    def moved(self, at: float) -> None:
        """Say that something was done."""
        self.moved_at, self.named_after_seconds = at, 0.0


class Watchdog:
    """Knows which stages are being worked on and when each last moved. For any number of threads."""

    def __init__(self, clock: Clock | None = None, tell: Callable[[str], None] = _logger.warning) -> None:
        """Take what measures time, and what a sentence about a stage that does not move is given to."""
        self._clock, self._tell = clock or SystemClock(), tell
        self._lock = threading.Lock()
        self._stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str, *, detail: Callable[[], str] = str) -> Iterator[Callable[..., None]]:
        """Watch a stage for as long as the context is open; give what is called whenever something of it is done.

        Args:
            name: what is being done, as it is printed.
            detail: says what may be the reason, when it is asked; "" for nothing.
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
        """Name the stages that have not moved for their patience, each again when that time has doubled."""
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
    """Yield a watchdog that looks every few seconds in a background thread."""
    watchdog = Watchdog()
    with repeating(watchdog.look, seconds=LOOK_SECONDS, name="watchdog"):
        yield watchdog
