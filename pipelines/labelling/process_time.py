"""How long threads have computed and how long they slept, as Linux counts it; waiting for a busy core is neither."""

import time
from dataclasses import dataclass
from pathlib import Path

DECODE_SECONDS = 120.0
"""Default limit for decoding one image, of CPU time or asleep; waiting for a core, a disk or the GIL does not count."""

# a longer time between two looks was not watched: we were starved ourselves, or the whole machine stood still
MOST_UNWATCHED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds since a watch began.

    Attributes:
        computing: on a core, summed over the threads.
        asleep: during which no thread did anything or wanted to: all waited for something that did not come. Waiting
            for a core, for a disk or for memory to be swapped in, and being stopped by a signal do not count.
        wall: in all.
    """

    computing: float = 0.0
    asleep: float = 0.0
    wall: float = 0.0


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    nanoseconds: dict[int, tuple[int, int]]  # of each thread: on a core, waiting for one
    all_sleep: bool


class Stopwatch:
    """Watches a process of ours, or one thread of it, from now on; read it a few times a second.

    `asleep` is added up between two looks that both find everything asleep, so it errs towards less.
    """

    def __init__(self, pid: int, thread: int | None = None) -> None:
        """Begin with the threads of a process, or with the one that has the native id `thread`."""
        tasks = Path("/proc", str(pid), "task")
        self._folder, self._threads = tasks, None if thread is None else [str(thread)]
        self._began = time.monotonic()
        self._last = self._look()
        self._computing = self._asleep = 0.0

    def read(self) -> Spent:
        """Return what was spent so far; of a process that has ended, what was seen of it."""
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
            states.add(stat.rpartition(")")[2].split()[0])  # the name before may hold anything
        return _Look(time.monotonic(), nanoseconds, all_sleep=states == {"S"})


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
