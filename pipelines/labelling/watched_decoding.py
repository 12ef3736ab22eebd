"""Watches the decoding threads of an actor: an image that hangs a thread ends the process, but not the run."""

import faulthandler
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from detr.batching import Prepared
from detr.images.decoding import Header
from pipelines.labelling.decoding import DecodingLimits, ImageDecoder
from pipelines.labelling.process_time import Spent, Stopwatch

TICK_SECONDS = 0.5  # between two checks of the threads
# Code that never releases Python's lock stops the watching thread, too; faulthandler's thread needs no lock. Wall time
# suffices here: no image is judged by it, and the shard is labelled again in isolation.
SILENT_SECONDS = 600


@dataclass(eq=False, slots=True)
class _Call:
    thread: int
    data: bytes
    stopwatch: Stopwatch | None = None  # created at the first check: most calls end before it, without any cost


class WatchedDecoder:
    """A decoder that reports calls which take longer than the limit for an image.

    Threads cannot be killed, so the process must end (`end_process`). Its shards are lost and labelled again in child
    processes. A thread that waits for a busy core or for Python's lock is hardly ever mistaken for a hanging one; that
    would cost a repetition.
    """

    def __init__(self, decoder: ImageDecoder, limits: DecodingLimits, *, on_hang: Callable[[str], None]) -> None:
        """Watch a decoder until `close` is called; `on_hang` is called once, in the watching thread."""
        self._decoder, self._limits, self._on_hang = decoder, limits, on_hang
        self._calls: set[_Call] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._run, name="decoding-watch", daemon=True)
        _end_if_silent()  # here, too: the first image may acquire the lock before the watching thread
        self._watch.start()

    def read_header(self, data: bytes) -> Header:
        """Return the header of an image that can be decoded."""
        with self._watched(data):
            return self._decoder.read_header(data)

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized."""
        with self._watched(data):
            return self._decoder.prepare(data)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._watch.join()

    @contextmanager
    def _watched(self, data: bytes) -> Iterator[None]:
        call = _Call(threading.get_native_id(), data)
        with self._lock:
            self._calls.add(call)
        try:
            yield
        finally:
            with self._lock:
                self._calls.remove(call)

    def _run(self) -> None:
        try:
            self._look_again_and_again()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _look_again_and_again(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            _end_if_silent()
            with self._lock:
                calls = list(self._calls)
            for call in calls:
                if call.stopwatch is None:
                    call.stopwatch = Stopwatch(os.getpid(), call.thread)
                    continue
                spent = call.stopwatch.read()
                if spent.computing > self._limits.cpu_seconds or spent.asleep > self._limits.asleep_seconds:
                    self._on_hang(_sentence(call.data, spent))
                    return


def _end_if_silent() -> None:
    """End this process with a traceback unless this is called again in time."""
    faulthandler.dump_traceback_later(SILENT_SECONDS, exit=True, file=2)


def end_process(reason: str) -> None:
    """Log the reason and end this process immediately, like a crash."""
    logging.getLogger(__name__).critical("%s This process ends; its shards are run again in isolation.", reason)
    os.kill(os.getpid(), signal.SIGKILL)


def _sentence(data: bytes, spent: Spent) -> str:
    return (
        f"an image of {len(data):,} bytes (sha256 {hashlib.sha256(data).hexdigest()[:12]}) hangs its decoder: "
        f"{spent.computing:.1f} s of CPU time, asleep for {spent.asleep:.1f} s, {spent.wall:.1f} s in all."
    )
