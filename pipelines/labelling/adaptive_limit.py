"""Limits concurrent requests to a store: fewer after transient errors, more after successes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from pipelines.store import StoreError, is_transient

SUCCESSES_A_STEP: Final = 50

_Result = TypeVar("_Result")


class AdaptiveLimit:
    """A limit of turns from `least` to `most`: halved after a transient error, else raised by one, as in TCP.

    Clients with such limits share a throttled store without knowing each other.
    """

    def __init__(self, most: int, *, least: int = 1) -> None:
        assert 1 <= least <= most
        self._least, self._most = least, most
        self._limit = most
        self._turns = 0
        self._successes = 0  # since the last change of the limit
        self._cuts = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """The current limit of concurrent turns."""
        return self._limit

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and keep it, including all retries and the pauses between them."""
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
        """Call an attempt, adapt the limit to its outcome, and return its result.

        The failure of an attempt that began before the last reduction is ignored, so that thirty attempts that fail
        together halve the limit once.
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
