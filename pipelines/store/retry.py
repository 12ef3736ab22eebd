"""Retries of transient failures within a time budget."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from pipelines.clock import Clock, SystemClock

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 20.0

_Result = TypeVar("_Result")


def retry(
    call: Callable[[], _Result],
    *,
    budget_seconds: float,
    is_retryable: Callable[[Exception], bool],
    clock: Clock | None = None,
    draw: Callable[[], float] = random.random,
) -> _Result:
    """Return what `call` returns, calling it again until it succeeds or `budget_seconds` are over.

    Pauses double from a quarter of a second to twenty seconds, each drawn evenly between zero and that ("full
    jitter"), so that a thousand clients of a store that came back do not all return in the same instant. The last
    failure is raised as it is; the budget is never overslept, so the last try comes at its very end.

    Args:
        call: What to do; it must be harmless to do twice.
        budget_seconds: Time for all tries together, pauses included. 0 means one try.
        is_retryable: Whether a failure is worth another try; any other is raised at once.
        clock: What measures the budget and sleeps.
        draw: Where the jitter comes from: numbers from 0 to 1.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic() + budget_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:
            left = deadline - clock.monotonic()
            if left <= 0 or not is_retryable(error):
                raise
        clock.sleep(min(left, pause * draw()))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
