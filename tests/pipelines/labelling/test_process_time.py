"""What threads did with their time: computing, sleeping, and waiting for a core, which is neither."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pipelines.labelling.process_time import Spent, Stopwatch

BUSY = "while True: pass"
ASLEEP = "import time; time.sleep(1000)"


@contextmanager
def running(code: str, *, count: int = 1, core: int | None = None) -> Iterator[list[int]]:
    """Run some Python processes, all on one core if told so, that are ended afterwards."""
    command = [sys.executable, "-S", "-c", code]
    pinned = command if core is None else ["taskset", "-c", str(core), *command]
    processes = [subprocess.Popen(pinned, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def watch_until(watch: Stopwatch, is_enough: Callable[[Spent], bool], *, seconds: float = 20) -> Spent:
    deadline = time.monotonic() + seconds
    while not is_enough(spent := watch.read()):
        assert time.monotonic() < deadline, spent
        time.sleep(0.05)
    return spent


def test_a_process_that_computes_is_not_asleep() -> None:
    with running(BUSY) as (pid,):
        spent = watch_until(Stopwatch(pid), lambda spent: spent.computing > 0.3)

    assert spent.asleep < 0.1
    assert spent.wall >= spent.computing


def test_a_process_that_sleeps_does_not_compute() -> None:
    with running(ASLEEP) as (pid,):
        watch_until(Stopwatch(pid), lambda spent: spent.asleep > 0)  # it has started
        spent = watch_until(Stopwatch(pid), lambda spent: spent.asleep > 0.4)

    assert spent.computing < 0.1


@pytest.mark.slow
def test_waiting_for_a_busy_core_is_neither_computing_nor_asleep() -> None:
    core = min(os.sched_getaffinity(0))
    with running(BUSY, count=10, core=core) as pids:
        spent = watch_until(Stopwatch(pids[0]), lambda spent: spent.wall > 2)

    assert spent.computing < 1  # a tenth of a core
    assert spent.asleep < 0.1


def test_a_process_that_was_stopped_is_not_asleep() -> None:
    with running(ASLEEP) as (pid,):
        watch_until(Stopwatch(pid), lambda spent: spent.asleep > 0)
        os.kill(pid, signal.SIGSTOP)
        watch_until(Stopwatch(pid), lambda spent: spent.wall > 0.2)
        spent = watch_until(Stopwatch(pid), lambda spent: spent.wall > 0.5)

    assert spent.asleep == 0


def test_time_that_nobody_watched_counts_for_two_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(ASLEEP) as (pid,):
        watch_until(Stopwatch(pid), lambda spent: spent.asleep > 0)
        watch = Stopwatch(pid)
        later = time.monotonic() + 3600
        monkeypatch.setattr("pipelines.labelling.process_time.time.monotonic", lambda: later)

        assert watch.read().asleep <= 2


def test_one_thread_of_a_process_can_be_watched() -> None:
    stop = threading.Event()
    idle = threading.Thread(target=stop.wait)
    idle.start()
    watch = Stopwatch(os.getpid(), idle.native_id)
    ours = Stopwatch(os.getpid(), threading.get_native_id())
    while ours.read().computing < 0.2:  # in this thread, which is none of the other's business
        sum(range(10_000))
        spent = watch.read()
    stop.set()
    idle.join()

    assert spent.computing < 0.05


def test_a_process_that_has_ended_keeps_what_was_seen() -> None:
    with running(BUSY) as (pid,):
        watch = Stopwatch(pid)
        seen = watch_until(watch, lambda spent: spent.computing > 0.1)

    assert watch.read().computing == pytest.approx(seen.computing)
