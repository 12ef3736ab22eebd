"""How far a labelling run is, for whoever shows it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: "label", or what happens before and after it.
        images: rows that are committed, those of earlier starts of this run included.
        images_this_start: those of this start.
        images_planned: in the plan so far; all of them once `is_planned`.
        errors: error rows of this start.
        changed: images of this start that were another version than was listed when they were read.
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
    """Shows the progress of a run with the images of shards that are still being labelled. Several threads may call."""

    def __init__(self, show: Callable[[Progress], None]) -> None:
        """Show nothing yet.

        Args:
            show: Is told the progress, in the thread that brings it.
        """
        self._show = show
        self._latest: Progress | None = None
        self._unfinished = 0
        self._shown = 0  # what a dead process had done is not taken back: it is done again soon
        self._lock = threading.Lock()

    def show(self, progress: Progress) -> None:
        """Show the progress by committed shards, and what is done of the others."""
        with self._lock:
            self._latest = progress
            self._tell(progress)

    def show_unfinished(self, images: int) -> None:
        """Show that so many images are done of shards that are not committed."""
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
