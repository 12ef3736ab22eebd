"""Functions in background threads: in order, as often as is asked, and not after the end."""

from __future__ import annotations

import threading

import pytest

from pipelines.concurrently import map_concurrently, repeating


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_an_exception_in_the_place_of_its_item(threads: int) -> None:
    results = map_concurrently(lambda number: 12 // number, [1, 2, 3, 0], threads=threads)

    assert [next(results) for _ in range(3)] == [12, 6, 4]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_function_is_called_again_and_again_until_the_context_ends() -> None:
    called = threading.Semaphore(0)

    with repeating(called.release, seconds=0.001, name="test"):
        for _ in range(3):
            assert called.acquire(timeout=10)

    while called.acquire(blocking=False):
        pass  # calls before the end
    assert not called.acquire(timeout=0.05)
    assert "test" not in {thread.name for thread in threading.enumerate()}


def test_a_function_that_returns_false_is_not_called_again() -> None:
    calls: list[int] = []
    ended = threading.Event()

    def once() -> bool:
        calls.append(1)
        ended.set()
        return False

    with repeating(once, seconds=0.001, name="test"):
        assert ended.wait(10)
        ended.clear()
        assert not ended.wait(0.05)

    assert calls == [1]


def test_the_context_is_left_at_once_however_long_the_interval() -> None:
    with repeating(lambda: None, seconds=3600.0, name="test"):
        pass
