"""Several writers, of which one at a time does one call to the store: in an order that a seed decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from random import Random


class Turns:
    """Lets each writer go on for one call when it is its turn. A frozen one is passed over until it is released."""

    def __init__(self, random: Random, writers: set[str]) -> None:
        self._random, self._alive = random, set(writers)
        self._waiting: set[str] = set()
        self._frozen: dict[str, int] = {}  # for how many turns of others
        self._turn: str | None = None
        self._changed = threading.Condition()

    def wait(self, writer: str) -> None:
        """Return when it is this writer's turn; until it waits again, or is done, nobody else moves."""
        with self._changed:
            self._waiting.add(writer)
            self._choose()
            self._changed.wait_for(lambda: self._turn == writer)
            self._turn = None
            self._waiting.discard(writer)

    def freeze(self, writer: str, turns: int) -> None:
        """Stop a writer before its next call, for so many turns of the others: a zombie."""
        self._frozen[writer] = turns

    def done(self, writer: str) -> None:
        """Say that a writer makes no calls any more."""
        with self._changed:
            self._alive.discard(writer)
            self._choose()

    def run(self, work: Mapping[str, Callable[[], None]]) -> None:
        """Let each writer do its work, in a thread of its own, to its end; raise what one of them raised."""
        failures: list[BaseException] = []

        def do(writer: str) -> None:
            try:
                work[writer]()
            except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
                failures.append(error)
            finally:
                self.done(writer)

        threads = [threading.Thread(target=do, args=(writer,)) for writer in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _choose(self) -> None:
        if self._turn is not None or not self._alive or self._waiting != self._alive:
            return
        for writer in list(self._frozen):
            self._frozen[writer] -= 1
            if self._frozen[writer] <= 0:
                del self._frozen[writer]
        ready = sorted(self._waiting - set(self._frozen)) or sorted(self._waiting)
        self._turn = self._random.choice(ready)
        self._changed.notify_all()
