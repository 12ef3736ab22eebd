"""CPU time and sleeping time of threads, from Linux's counters; waiting for a busy core is neither."""

import time
from dataclasses import dataclass
from pathlib import Path

DECODE_SECONDS = 120.0
"""Default limit for decoding one image, of CPU time or asleep; waiting for a core, a disk or the GIL does not count."""

# a longer time between two checks does not count: this process was not scheduled, or the machine was suspended
MOST_UNWATCHED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds since a watch began.

    Attributes:
        computing: on a core, summed over the threads.
        asleep: time in which no thread was running or ready to run: all waited for an event. Waiting for a core, for a
            disk or for memory to be swapped in, and being stopped by a signal do not count.
        wall: in total.
    """

    computing: float = 0.0
    asleep: float = 0.0
    wall: float = 0.0


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    nanoseconds: dict[int, tuple[int, int]]  # of each thread: on a core, and waiting for one
    all_sleep: bool


class Stopwatch:
    """Watches one of our processes, or one of its threads, from now on. Call `read` a few times a second.

    `asleep` counts only the time between two checks that both find all threads asleep, so it is rather too low.
    """

    def __init__(self, pid: int, thread: int | None = None) -> None:
        """Watch all threads of a process, or the one with the native id `thread`."""
        tasks = Path("/proc", str(pid), "task")
        self._folder, self._threads = tasks, None if thread is None else [str(thread)]
        self._began = time.monotonic()
        self._last = self._look()
        self._computing = self._asleep = 0.0

    def read(self) -> Spent:
        """Return the time spent so far; for a process that has ended, up to the last check."""
        before, self._last = self._last, self._look()
        now = self._last
        ran = waited = 0
        for thread, (run, wait) in now.nanoseconds.items():
            run_before, wait_before = before.nanoseconds.get(thread, (0, 0))
            ran += run - run_before
            waited += wait - wait_before
        self._computing += ran / 1e9
        if before.all_sleep and now.all_sleep:
            watched = min(now.at - before.at, MOST_UNWATCHED_SECONDS)
            self._asleep += max(0.0, watched - (ran + waited) / 1e9)
        return Spent(self._computing, self._asleep, now.at - self._began)

    def _look(self) -> _Look:
        nanoseconds: dict[int, tuple[int, int]] = {}
        states: set[str] = set()
        for thread in self._threads or _names(self._folder):
            try:
                run, wait, _ = (self._folder / thread / "schedstat").read_text().split()
                stat = (self._folder / thread / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            nanoseconds[int(thread)] = int(run), int(wait)
            states.add(stat.rpartition(")")[2].split()[0])  # the name before it may contain any characters
        return _Look(time.monotonic(), nanoseconds, all_sleep=states == {"S"})


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
