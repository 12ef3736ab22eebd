"""A decoder that hangs in the actor is noticed, whatever it does, and a slow one is not."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch

from detr.batching import Prepared
from detr.images.decoding import Header, TruncatedImage
from pipelines.labelling import watched_decoding
from pipelines.labelling.decoding import DecodingLimits
from pipelines.labelling.watched_decoding import WatchedDecoder

LIMITS = DecodingLimits(memory_bytes=0, cpu_seconds=0.3, asleep_seconds=0.3)
PREPARED = Prepared(torch.zeros(3, 2, 2, dtype=torch.uint8), 4, 4)


class Doing:
    """A decoder that does as it is told before it answers."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def read_header(self, data: bytes) -> Header:
        self.what()
        return Header(4, 4, 1, "JPEG", None)

    def prepare(self, data: bytes) -> Prepared:
        self.what()
        return PREPARED


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_decoding, "TICK_SECONDS", 0.02)


def hang_of(what: Callable[[threading.Event], object], call: str) -> str:
    """Decode in a thread until the watch calls, and return what it says."""
    found: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop = threading.Event()
    watched = WatchedDecoder(Doing(lambda: what(stop)), LIMITS, on_hang=found.put)
    thread = threading.Thread(target=getattr(watched, call), args=(b"some image",))
    thread.start()
    try:
        return found.get(timeout=20)
    finally:
        stop.set()
        thread.join()
        watched.close()


def compute(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


@pytest.mark.parametrize("call", ["read_header", "prepare"])
def test_a_decoder_that_computes_forever_is_reported_with_its_evidence(call: str) -> None:
    said = hang_of(compute, call)

    found = re.fullmatch(
        r"an image of 10 bytes \(sha256 db16f7898bb4\) hangs its decoder: "
        r"(\d+\.\d) s of CPU time, asleep for \d+\.\d s, \d+\.\d s in all\.",
        said,
    )
    assert found
    assert float(found[1]) >= LIMITS.cpu_seconds


def test_a_decoder_that_waits_forever_is_reported() -> None:
    found = re.search(r"asleep for (\d+\.\d) s", hang_of(lambda stop: stop.wait(), "prepare"))

    assert found
    assert float(found[1]) >= LIMITS.asleep_seconds


def test_a_good_decoder_answers_and_its_errors_come_through() -> None:
    def fail() -> None:
        raise TruncatedImage("cut")

    called: list[str] = []
    good = WatchedDecoder(Doing(lambda: None), LIMITS, on_hang=called.append)
    bad = WatchedDecoder(Doing(fail), LIMITS, on_hang=called.append)

    assert good.prepare(b"x") is PREPARED
    with pytest.raises(TruncatedImage, match="cut"):
        bad.read_header(b"x")
    assert (good.read_header(b"x").format, called) == ("JPEG", [])
    good.close()
    bad.close()


def test_many_short_calls_of_one_thread_are_not_added_up() -> None:
    called: list[str] = []
    watched = WatchedDecoder(Doing(lambda: time.sleep(0.06)), LIMITS, on_hang=called.append)
    for _ in range(10):
        watched.prepare(b"x")
    watched.close()

    assert called == []


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("hang", "silent_seconds", "code"),
    [("while True: pass", 120, -signal.SIGKILL), ("ctypes.PyDLL(None).sleep(1000)", 2, 1)],
    ids=["computes", "holds Python's lock"],
)
def test_the_process_ends_even_if_the_image_holds_the_lock_that_the_watch_needs(
    hang: str, silent_seconds: int, code: int
) -> None:
    program = f"""
import ctypes
from pipelines.labelling import watched_decoding
from pipelines.labelling.decoding import DecodingLimits
watched_decoding.SILENT_SECONDS = {silent_seconds}
class Hangs:
    def prepare(self, data):
        {hang}
limits = DecodingLimits(0, cpu_seconds=1, asleep_seconds=1)
watched_decoding.WatchedDecoder(Hangs(), limits, on_hang=watched_decoding.end_process).prepare(b"x")
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=120, capture_output=True, text=True, check=False)

    assert ended.returncode == code
    assert ("prepare" if code == 1 else "hangs its decoder") in ended.stderr
