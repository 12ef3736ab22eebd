"""How much is asked of a store at once: less when it pushes back, more again when it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from pipelines.store import StoreError, is_transient

SUCCESSES_A_STEP: Final = 50

_Result = TypeVar("_Result")


class AdaptiveLimit:
    """At most so many turns at once, between `least` and `most`: halved on trouble and raised by one, as in TCP.

    Every client that does so gets its share of a store that is asked for too much, without knowing of the others.
    """

    def __init__(self, most: int, *, least: int = 1) -> None:
        assert 1 <= least <= most
        self._least, self._most = least, most
        self._limit = most
        self._turns = 0
        self._successes = 0  # since the limit was changed
        self._cuts = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many turns there may be at once, as of now."""
        return self._limit

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until it is our turn, and hold it: with all attempts and the pauses between them."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns < self._limit)
            self._turns += 1
        try:
            yield
        finally:
            with self._changed:
                self._turns -= 1
                self._changed.notify()

    def learn(self, attempt: Callable[[], _Result]) -> _Result:
        """Return what an attempt returns, and learn from how it ends.

        An attempt that began before the limit was last cut says nothing about the limit of now, so that thirty
        attempts which fail together halve it once.
        """
        cuts = self._cuts
        try:
            result = attempt()
        except StoreError as error:
            if is_transient(error):
                self._cut(cuts)
            raise
        self._succeeded()
        return result

    def _cut(self, cuts: int) -> None:
        with self._changed:
            if cuts == self._cuts:
                self._limit = max(self._least, self._limit // 2)
                self._successes = 0
                self._cuts += 1

    def _succeeded(self) -> None:
        with self._changed:
            self._successes += 1
            if self._successes >= SUCCESSES_A_STEP and self._limit < self._most:
                self._limit += 1
                self._successes = 0
                self._changed.notify()
