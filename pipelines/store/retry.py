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
    budget_seconds: float | Callable[[Exception], float],
    is_retryable: Callable[[Exception], bool],
    clock: Clock | None = None,
    draw: Callable[[], float] = random.random,
) -> _Result:
    """Call a function until it succeeds or its budget is over, and return its result.

    The upper limit of a pause doubles from a quarter of a second to twenty seconds; each pause is random between zero
    and its limit ("full jitter"), so that many clients do not return at the same moment. The last error is raised
    unchanged. The last attempt is made at the end of the budget.

    Args:
        call: The function; it must be safe to call twice.
        budget_seconds: Time for all attempts and pauses, from the first one on, or a function that returns it for the
            latest error. 0 means one attempt.
        is_retryable: Whether to retry after an error; other errors are raised immediately.
        clock: Measures the budget and sleeps.
        draw: Random numbers from 0 to 1 for the jitter.
    """
    clock = clock or SystemClock()
    began = clock.monotonic()
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:
            if not is_retryable(error):
                raise
            budget = budget_seconds(error) if callable(budget_seconds) else budget_seconds
            left = began + budget - clock.monotonic()
            if left <= 0:
                raise
        clock.sleep(min(left, pause * draw()))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
