"""How far a labelling run is, for whoever shows it."""

from dataclasses import dataclass


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
