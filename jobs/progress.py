"""Show the progress of a command: a bar on a terminal, otherwise a line every 30 seconds."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipelines.labelling.progress import Progress

LINE_SECONDS = 30.0

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Drawing(Generic[P]):
    """The displayed form of a progress.

    Attributes:
        is_running: whether it changes continuously; otherwise it is a stage, printed once.
        line: one line about it.
        done: finished and total amount.
    """

    is_running: Callable[[P], bool]
    line: Callable[[P], str]
    done: Callable[[P], tuple[int, int]]


@contextmanager
def shown(stream: TextIO, drawing: Drawing[P], *, line_seconds: float = LINE_SECONDS) -> Iterator[Callable[[P], None]]:
    """Provide a function that shows a progress, and clean up at the end.

    The elapsed time is updated between calls, because a shard or an evaluation may take minutes.
    """
    with own_stream(stream) as own:
        yield from _show(own, drawing, line_seconds)


@contextmanager
def own_stream(stream: TextIO) -> Iterator[TextIO]:
    """Provide the stream with a descriptor of its own: descriptors 1 and 2 are redirected to hide Ray's C++ lines."""
    try:
        descriptor = stream.fileno()
    except OSError:  # not a file of the operating system, as in notebooks and tests
        yield stream
        return
    with os.fdopen(os.dup(descriptor), "w", buffering=1, encoding=stream.encoding, errors="backslashreplace") as own:
        yield own


def shown_progress(
    stream: TextIO, *, line_seconds: float = LINE_SECONDS
) -> AbstractContextManager[Callable[["Progress"], None]]:
    """Provide a function that shows the progress of labelling, and clean up at the end."""
    drawing: Drawing[Progress] = Drawing(
        is_running=lambda progress: progress.stage == "label",
        line=lambda progress: line(progress, time.monotonic() - progress.began),
        done=lambda progress: (progress.images, progress.images_planned),
    )
    return shown(stream, drawing, line_seconds=line_seconds)


def _show(stream: TextIO, drawing: Drawing[P], line_seconds: float) -> Iterator[Callable[[P], None]]:
    bar = _terminal_bar(stream, drawing)
    if bar is not None:
        with bar as show:
            yield show
        return
    lines, ended = _Lines(stream, drawing), threading.Event()
    thread = threading.Thread(target=lines.go_on, args=(ended, line_seconds), daemon=True)
    thread.start()
    try:
        yield lines.show
    finally:
        ended.set()
        thread.join()


def _terminal_bar(stream: TextIO, drawing: Drawing[P]) -> AbstractContextManager[Callable[[P], None]] | None:
    if not stream.isatty():
        return None
    from rich.console import Console  # takes 0.05 s of CPU time

    console = Console(file=stream)
    return _bar(console, drawing) if console.is_terminal else None


@contextmanager
def _bar(console: "Console", drawing: Drawing[P]) -> Iterator[Callable[[P], None]]:
    from rich.live import Live

    latest: list[P] = []
    with Live(_Bar(latest, drawing), console=console, refresh_per_second=4, transient=True):
        yield lambda progress: latest.__setitem__(slice(None), [progress])


class _Bar(Generic[P]):
    """The contents of the bar; rich renders it four times a second."""

    def __init__(self, latest: list[P], drawing: Drawing[P]) -> None:
        self._latest, self._drawing = latest, drawing

    def __rich__(self) -> "Table | Text":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self._latest:
            return Text("")
        progress = self._latest[0]
        text = self._drawing.line(progress)
        if not self._drawing.is_running(progress):
            return Text(text)
        done, total = self._drawing.done(progress)
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(total=max(1, total), completed=done, width=24), text)
        return grid


def line(progress: "Progress", seconds: float) -> str:
    """Return one line of figures, `seconds` after labelling began."""
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


class _Lines(Generic[P]):
    """Writer for log files: each stage when it begins, and the figures from time to time."""

    def __init__(self, stream: TextIO, drawing: Drawing[P]) -> None:
        self._stream, self._drawing = stream, drawing
        self._latest: P | None = None
        self._told = ""

    def show(self, progress: P) -> None:
        self._latest = progress
        if self._drawing.is_running(progress):
            return
        text = self._drawing.line(progress)
        if text != self._told:
            self._told = text
            print(text, file=self._stream, flush=True)

    def go_on(self, ended: threading.Event, line_seconds: float) -> None:
        while not ended.wait(line_seconds):
            progress = self._latest
            if progress is not None and self._drawing.is_running(progress):
                print(self._drawing.line(progress), file=self._stream, flush=True)


def _short(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
