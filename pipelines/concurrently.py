"""Maps a function over many items with a bounded number of threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_concurrently(function: Callable[[T], R], things: Iterable[T], *, threads: int) -> Iterator[R]:
    """Yield what a function makes of each thing, in their order, and raise what it raises in its place.

    With one thread it is the calling one, and nothing is begun behind a failure: then all is done in one order.
    """
    if threads == 1:
        yield from map(function, things)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, things)
