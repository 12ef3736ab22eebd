"""Trying again, with time in hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipelines.store.retry import retry


class StillClock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "answer"


def is_timeout(error: Exception) -> bool:
    return isinstance(error, TimeoutError)


def test_an_answer_at_once_costs_no_pause() -> None:
    clock = StillClock()

    assert retry(Flaky(0, TimeoutError()), budget_seconds=60, is_retryable=is_timeout, clock=clock) == "answer"
    assert clock.slept == []


def test_pauses_double_up_to_twenty_seconds_under_full_jitter() -> None:
    clock = StillClock()
    draws = iter([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0])

    retry(Flaky(10, TimeoutError()), budget_seconds=600, is_retryable=is_timeout, clock=clock, draw=lambda: next(draws))

    assert clock.slept == [0.25, 0.5, 1, 2, 4, 8, 16, 20, 10, 0]


def test_the_last_try_comes_at_the_end_of_the_budget_and_its_failure_is_raised() -> None:
    clock = StillClock()
    call = Flaky(1000, TimeoutError("still"))

    with pytest.raises(TimeoutError, match="still"):
        retry(call, budget_seconds=10, is_retryable=is_timeout, clock=clock, draw=lambda: 1.0)

    assert clock.seconds == 1010.0
    assert clock.slept == [0.25, 0.5, 1, 2, 4, 2.25]
    assert call.calls == 7


def test_no_budget_is_one_try() -> None:
    call = Flaky(1, TimeoutError())

    with pytest.raises(TimeoutError):
        retry(call, budget_seconds=0, is_retryable=is_timeout, clock=StillClock())

    assert call.calls == 1


def test_other_failures_are_raised_at_once() -> None:
    call = Flaky(1, KeyError("a bug"))

    with pytest.raises(KeyError, match="a bug"):
        retry(call, budget_seconds=60, is_retryable=is_timeout, clock=StillClock())

    assert call.calls == 1
