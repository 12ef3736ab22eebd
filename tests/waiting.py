"""Wait for a condition instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(predicate: Callable[[], bool], seconds: float = 120.0, what: str = "the condition") -> None:
    """Return when the predicate is true; fail after a time that only a hang can take."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)
