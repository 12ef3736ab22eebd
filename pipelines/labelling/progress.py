"""The progress of a labelling run."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run.

    Attributes:
        stage: "label", or a text about what happens before or after labelling.
        images: committed rows, including those of earlier attempts.
        images_this_start: committed rows of this attempt.
        images_planned: planned images so far; all of them once `is_planned`.
        errors: error rows of this attempt.
        changed: images of this attempt that changed between listing and reading.
        began: `time.monotonic()` when labelling began.
    """

    stage: str
    images: int = 0
    images_this_start: int = 0
    images_planned: int = 0
    is_planned: bool = False
    errors: int = 0
    changed: int = 0
    began: float = 0.0


class WithUnfinishedShards:
    """Shows the progress of a run, including images of shards in progress. Can be used by several threads."""

    def __init__(self, show: Callable[[Progress], None]) -> None:
        """Create without showing anything.

        Args:
            show: Called with the progress, in the thread that reports it.
        """
        self._show = show
        self._latest: Progress | None = None
        self._unfinished = 0
        self._shown = 0  # never decreases: the work of a dead process is soon repeated
        self._lock = threading.Lock()

    def show(self, progress: Progress) -> None:
        """Show the progress of committed shards plus that of shards in progress."""
        with self._lock:
            self._latest = progress
            self._tell(progress)

    def show_unfinished(self, images: int) -> None:
        """Show the number of labelled images in shards in progress."""
        with self._lock:
            self._unfinished = images
            if self._latest is not None and self._latest.stage == "label":
                self._tell(self._latest)

    def _tell(self, progress: Progress) -> None:
        if progress.stage != "label":
            self._show(progress)
            return
        self._shown = max(
            self._shown, progress.images, min(progress.images + self._unfinished, progress.images_planned)
        )
        more = self._shown - progress.images
        self._show(replace(progress, images=self._shown, images_this_start=progress.images_this_start + more))
