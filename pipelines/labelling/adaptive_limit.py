"""Limits concurrent requests to a store: fewer after transient errors, more after successes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pipelines.store import is_transient

SUCCESSES_A_STEP: Final = 50


class AdaptiveLimit:
    """A limit of turns from `least` to `most`: halved after a transient error, else raised by one, as in TCP.

    Clients with such limits share a throttled store without communicating.
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
        """Wait for a turn and keep it during all retries and the pauses between them."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns < self._limit)
            self._turns += 1
        try:
            yield
        finally:
            with self._changed:
                self._turns -= 1
                self._changed.notify()

    @property
    def cuts(self) -> int:
        """The number of reductions of the limit so far; pass the value at the start of an attempt to `fail`."""
        return self._cuts

    def fail(self, error: Exception, cuts: int) -> None:
        """Halve the limit after a transient error of an attempt that began when `cuts` was as given.

        The failure of an attempt that began before the last reduction is ignored, so that thirty attempts that fail
        together halve the limit once.
        """
        with self._changed:
            if is_transient(error) and cuts == self._cuts:
                self._limit = max(self._least, self._limit // 2)
                self._successes = 0
                self._cuts += 1

    def succeed(self) -> None:
        """Count an image that was read; `SUCCESSES_A_STEP` of them raise the limit by one."""
        with self._changed:
            self._successes += 1
            if self._successes >= SUCCESSES_A_STEP and self._limit < self._most:
                self._limit += 1
                self._successes = 0
                self._changed.notify()
