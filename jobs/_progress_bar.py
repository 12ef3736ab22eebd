"""The progress bar of a terminal. The only module that imports rich, which takes 0.05 s of CPU time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Generic, TextIO, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from jobs.progress import Drawing

P = TypeVar("P")


def bar_on(stream: TextIO, drawing: "Drawing[P]") -> AbstractContextManager[Callable[[P], None]] | None:
    """Return a context that shows a bar and returns the function to update it; None if `stream` is not a terminal."""
    console = Console(file=stream)
    return _bar(console, drawing) if console.is_terminal else None


@contextmanager
def _bar(console: Console, drawing: "Drawing[P]") -> Iterator[Callable[[P], None]]:
    latest: list[P] = []
    with Live(_Bar(latest, drawing), console=console, refresh_per_second=4, transient=True):
        yield lambda progress: latest.__setitem__(slice(None), [progress])


class _Bar(Generic[P]):
    """The contents of the bar; rich renders it four times a second."""

    def __init__(self, latest: list[P], drawing: "Drawing[P]") -> None:
        self._latest, self._drawing = latest, drawing

    def __rich__(self) -> Table | Text:
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
