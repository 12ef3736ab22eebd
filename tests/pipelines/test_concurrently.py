"""Functions in background threads: in order, as often as is asked, and not after the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipelines.concurrently import map_concurrently, map_in_chunks, map_small, repeating
from tests.waiting import wait_until


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_an_exception_in_the_place_of_its_item(threads: int) -> None:
    results = map_concurrently(lambda number: 12 // number, [1, 2, 3, 0], threads=threads)

    assert [next(results) for _ in range(3)] == [12, 6, 4]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("left", ["a failing source", "a caller who leaves"])
def test_items_that_wait_are_not_begun_after_a_failure_or_when_the_caller_leaves(left: str) -> None:
    begun: list[int] = []
    goes_on = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        goes_on.wait(0 if number == 0 else 0.2)
        return number

    def numbers() -> Iterator[int]:
        yield from range(50)
        if left == "a failing source":
            raise OSError("no answer")

    results = map_concurrently(work, numbers(), threads=2)
    if left == "a failing source":
        with pytest.raises(OSError, match="no answer"):
            next(results)
    else:
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]

    assert len(begun) < 10


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_give_all_results_in_order_and_little_is_begun_before_it_is_asked_for(threads: int) -> None:
    begun: list[int] = []

    def square(number: int) -> int:
        begun.append(number)
        return number**2

    results = map_in_chunks(square, iter(range(8)), threads=threads)

    assert next(results) == 0
    assert begun == [0]
    assert next(results) == 1
    wait_until(lambda: len(begun) == 1 + threads, 20, "the other threads' work")
    assert sorted(begun) == list(range(1 + threads))
    assert list(results) == [4, 9, 16, 25, 36, 49]
    assert list(map_in_chunks(square, [], threads=threads)) == []


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_small_neighbours_are_done_at_once_and_large_items_alone(threads: int) -> None:
    at_once, most = 0, [0]
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal at_once
        with lock:
            at_once += 1
            most.append(at_once)
        try:
            if number >= 100:
                assert at_once == 1, "a large item is not alone"
            return number + 1
        finally:
            with lock:
                at_once -= 1

    items = [1, 2, 100, 3, 101, 102, 4, 5, 6, 7]
    results = map_small(work, items, is_small=lambda number: number < 100, threads=threads)

    assert list(results) == [number + 1 for number in items]
    assert max(most) <= threads


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
