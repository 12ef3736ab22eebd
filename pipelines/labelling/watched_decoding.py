"""A watch over the threads that decode in an actor: an image that hangs one for ever ends the process, not the run."""

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

TICK_SECONDS = 0.5  # between two looks at the threads
# Code that holds Python's lock for ever stops the watch, too; faulthandler's thread needs no lock. Wall time is enough
# here: nothing is said about any image, its shard is run again in isolation.
SILENT_SECONDS = 600


@dataclass(eq=False, slots=True)
class _Call:
    thread: int
    data: bytes
    stopwatch: Stopwatch | None = None  # from the first tick on: most calls are done before, and cost nothing


class WatchedDecoder:
    """Another decoder, watched: whoever calls it for longer than an image may take is reported, with the evidence.

    Threads of this process cannot be killed, so what is done then is to end the process (`end_process`): its shards are
    lost, and run again where an image hangs a child process only. Waiting for a busy core or for Python's lock is
    hardly ever mistaken for that, and costs a repetition where it is.
    """

    def __init__(self, decoder: ImageDecoder, limits: DecodingLimits, *, on_hang: Callable[[str], None]) -> None:
        """Watch a decoder until `close` is called; `on_hang` is called from a thread of the watch, once."""
        self._decoder, self._limits, self._on_hang = decoder, limits, on_hang
        self._calls: set[_Call] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._run, name="decoding-watch", daemon=True)
        _end_if_silent()  # here, too: the first image may hold the lock before the watch has had it once
        self._watch.start()

    def read_header(self, data: bytes) -> Header:
        """Return what the header says of an image that can be decoded and resized."""
        with self._watched(data):
            return self._decoder.read_header(data)

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized."""
        with self._watched(data):
            return self._decoder.prepare(data)

    def close(self) -> None:
        """Watch no longer."""
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
    """End this process with a traceback after a while without another call of this."""
    faulthandler.dump_traceback_later(SILENT_SECONDS, exit=True, file=2)


def end_process(reason: str) -> None:
    """Log why, and end this process at once, as a crash would."""
    logging.getLogger(__name__).critical("%s This process ends; its shards are run again in isolation.", reason)
    os.kill(os.getpid(), signal.SIGKILL)


def _sentence(data: bytes, spent: Spent) -> str:
    return (
        f"an image of {len(data):,} bytes (sha256 {hashlib.sha256(data).hexdigest()[:12]}) hangs its decoder: "
        f"{spent.computing:.1f} s of CPU time, asleep for {spent.asleep:.1f} s, {spent.wall:.1f} s in all."
    )
