"""How far a run is, for people: a bar on a terminal, a line every 30 seconds elsewhere."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipelines.labelling import Progress

LINE_SECONDS = 30.0


@contextmanager
def shown_progress(stream: TextIO, *, line_seconds: float = LINE_SECONDS) -> Iterator[Callable[["Progress"], None]]:
    """Give a function that shows a `Progress`, and clear up in the end.

    Between two calls the time goes on and is shown: shards may take minutes.
    """
    # a descriptor of its own: Ray's C++ lines are kept off descriptor 2 while a pool starts
    own = os.fdopen(os.dup(stream.fileno()), "w", buffering=1)
    with own:
        yield from _show(own, line_seconds)


def _show(stream: TextIO, line_seconds: float) -> Iterator[Callable[["Progress"], None]]:
    console = Console(file=stream)
    latest: list[Progress] = []
    if console.is_terminal:
        with Live(_Bar(latest), console=console, refresh_per_second=4, transient=True):
            yield lambda progress: latest.__setitem__(slice(None), [progress])
        return
    lines, ended = _Lines(stream), threading.Event()
    thread = threading.Thread(target=lines.go_on, args=(ended, line_seconds), daemon=True)
    thread.start()
    try:
        yield lines.show
    finally:
        ended.set()
        thread.join()


def line(progress: "Progress", seconds: float) -> str:
    """Return one line of figures, `seconds` after the run began to label."""
    if progress.stage != "label":
        return f"  {progress.stage}"
    done, total = progress.images, progress.images_planned
    rate = progress.images_this_start / seconds if seconds > 0 else 0.0
    share = f"{done / total:.1%}  " if total else ""
    of = f"{done:,} of {total:,} images" if progress.is_planned else f"{done:,} of more than {total:,} images"
    left = ""
    if rate and progress.is_planned and total > done:
        left = f"  {_short((total - done) / rate)} left"
    errors = "1 error" if progress.errors == 1 else f"{progress.errors:,} errors"
    return f"  label  {share}{of}  {rate:,.1f} images/s  {errors}{left}"


class _Bar:
    """What the terminal shows; rich asks for it four times a second."""

    def __init__(self, latest: list["Progress"]) -> None:
        self._latest = latest

    def __rich__(self) -> Table | Text:
        if not self._latest:
            return Text("")
        progress = self._latest[0]
        if progress.stage != "label":
            return Text(line(progress, 0.0))
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, progress.images_planned), completed=progress.images, width=24)
        grid.add_row(bar, line(progress, time.monotonic() - progress.began))
        return grid


class _Lines:
    """What a log file gets: each stage as it begins, and the figures from time to time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._latest: Progress | None = None
        self._stage = "label"  # whose lines come with time

    def show(self, progress: "Progress") -> None:
        self._latest = progress
        if progress.stage not in ("label", self._stage):
            self._stage = progress.stage
            print(line(progress, 0.0), file=self._stream, flush=True)

    def go_on(self, ended: threading.Event, line_seconds: float) -> None:
        while not ended.wait(line_seconds):
            progress = self._latest
            if progress is not None and progress.stage == "label":
                print(line(progress, time.monotonic() - progress.began), file=self._stream, flush=True)


def _short(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
