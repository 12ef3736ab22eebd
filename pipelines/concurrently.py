"""Run functions in background threads: mapped over many items, or called at intervals."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_concurrently(function: Callable[[T], R], things: Iterable[T], *, threads: int) -> Iterator[R]:
    """Yield the results of a function for each item, in order; an exception is raised instead of its result.

    With `threads=1` the calling thread is used, and no item after a failed one is started. Otherwise no waiting item is
    started after an item or `things` has failed, or the caller has stopped iterating.
    """
    if threads == 1:
        yield from map(function, things)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(function, things)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def map_in_chunks(function: Callable[[T], R], things: Iterable[T], *, threads: int) -> Iterator[R]:
    """Yield the results of a function for each item, in order, with at most `threads` items running at a time.

    The first item runs alone, and the next ones start when their results are requested, so that leaving early saves
    work.
    """
    rest, size = iter(things), 1
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(rest, size)):
            yield from pool.map(function, chunk) if len(chunk) > 1 else map(function, chunk)
            size = threads


def map_small(
    function: Callable[[T], R], things: Sequence[T], *, is_small: Callable[[T], bool], threads: int
) -> Generator[R, None, None]:
    """Yield the results of a function for each item, in order: small neighbours concurrently, others one by one."""
    with ThreadPoolExecutor(threads) as pool:
        first = 0
        while first < len(things):
            end = first + 1
            while end < min(first + threads, len(things)) and is_small(things[first]) and is_small(things[end]):
                end += 1
            chunk = things[first:end]
            yield from pool.map(function, chunk) if len(chunk) > 1 else map(function, chunk)
            first = end


@contextmanager
def repeating(function: Callable[[], bool | None], *, seconds: float, name: str) -> Iterator[None]:
    """Call a function every `seconds` in a background thread while the context lasts, or until it returns False.

    The first call is after `seconds`. The context waits for a call in progress when it ends. An exception ends the
    thread and is reported by `threading.excepthook`.

    Args:
        function: Called without arguments.
        seconds: Between the end of a call and the next one.
        name: Name of the thread.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds) and function() is not False:
            pass

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
