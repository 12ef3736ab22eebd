"""Show the progress of training: a bar on a terminal, otherwise a line every 30 seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from jobs.progress import Drawing, shown
from pipelines.evaluation.explanations import shown_figure

if TYPE_CHECKING:
    from pipelines.training.run_status import TrainProgress


@contextmanager
def shown_training(stream: TextIO) -> Iterator[tuple[Callable[["TrainProgress"], None], Callable[[str], None]]]:
    """Provide a function that shows a `TrainProgress`, and one for messages; clean up at the end."""
    with shown(stream, Drawing(is_running=_is_running, line=line, done=_done)) as show:

        def say(sentence: str) -> None:
            print(f"note: {sentence}", file=stream, flush=True)

        yield show, say


def line(progress: "TrainProgress") -> str:
    """Return one line of figures."""
    if not _is_running(progress):
        return f"  {progress.stage}"
    parts = [
        f"epoch {progress.epoch + 1:,} of {progress.epochs:,}",
        f"step {progress.steps_done:,} of {progress.steps:,}",
        f"{progress.images_per_second:,.1f} images/s",
        *(f"{name} {value:.3f}" for name, value in progress.losses.items()),
    ]
    if progress.AP is not None and progress.best is not None:
        parts.append(f"AP {shown_figure(progress.AP)} (best {shown_figure(progress.best)})")
    parts.append(f"{progress.workers:,} worker{'' if progress.workers == 1 else 's'}")
    return f"  {progress.stage}  " + "  ".join(parts)


def _is_running(progress: "TrainProgress") -> bool:
    return progress.stage == "train" and progress.steps > 0


def _done(progress: "TrainProgress") -> tuple[int, int]:
    return progress.epoch * progress.steps + progress.steps_done, progress.epochs * progress.steps
