"""Choose images of a table for correction in four ways, each determined by the rows and a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from detr.classes import UNUSED_NAME
from pipelines.exports.images import DECIMALS, LabelledImage
from pipelines.report.drift import Drift, EarlierRun
from pipelines.report.examples import Top, doubts, drawn
from pipelines.report.rows import Classes, Rows
from pipelines.store import without_known_secrets

_SCORE_DECIMALS: Final = 6
_COLUMNS: Final = ("uri", "etag", "size", "width", "height", "model", "run_id")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chosen image: its row, and its detections that reach the threshold."""

    uri: str
    etag: str | None
    size: int | None
    run_id: str
    image: LabelledImage


@dataclass(frozen=True, slots=True)
class Converter:
    """Creates `Chosen` from rows, with the detections that reach a threshold.

    Attributes:
        classes: the names of the rows' class numbers.
        threshold: the minimum score.
    """

    classes: Classes
    threshold: float

    def of(self, rows: Rows) -> Callable[[int], Chosen]:
        """Return a function that creates the `Chosen` of one of these rows, once for each row."""
        starts, names = rows.starts, self.classes.names
        made: dict[int, Chosen] = {}

        def take(row: int) -> Chosen:
            if row not in made:
                made[row] = self._chosen(rows, row, slice(starts[row], starts[row] + rows.counts[row]), names)
            return made[row]

        return take

    def _chosen(self, rows: Rows, row: int, part: slice, names: Sequence[str]) -> Chosen:
        scores = rows.scores[part].astype(np.float64).round(_SCORE_DECIMALS)
        is_used = np.array([names[number] != UNUSED_NAME for number in rows.classes[part].tolist()], np.bool_)
        kept = np.flatnonzero((scores >= self.threshold) & is_used)
        of_row = {name: rows.table[name][row].as_py() for name in _COLUMNS}
        image = LabelledImage(
            uri=without_known_secrets(of_row["uri"]),
            width=of_row["width"],
            height=of_row["height"],
            error_kind=None,
            error=None,
            model=of_row["model"],
            category_ids=rows.category_ids[part][kept].tolist(),
            labels=[names[number] for number in rows.classes[part][kept].tolist()],
            scores=scores[kept].tolist(),
            boxes=rows.boxes[part][kept].astype(np.float64).round(DECIMALS).tolist(),
        )
        return Chosen(of_row["uri"], of_row["etag"], of_row["size"], of_row["run_id"], image)


class Chooser(Protocol):
    """Chooses images while rows are read. Memory: the chosen rows; for `per-class` this many for each class."""

    def add(self, rows: Rows) -> None:
        """Process more rows, which must be without errors and not exported before."""
        ...

    def chosen(self) -> list[Chosen]:
        """Return the chosen images, the most useful first."""
        ...


@dataclass(slots=True)
class LeastCertain:
    """The images with most boxes whose score is near 0.5: see `doubts`."""

    count: int
    converter: Converter
    _top: Top[Chosen] = field(init=False)

    def __post_init__(self) -> None:
        self._top = Top(self.count)

    def add(self, rows: Rows) -> None:
        """Process more rows."""
        self._top.offer(doubts(rows), self.converter.of(rows))

    def chosen(self) -> list[Chosen]:
        """Return the images, the least certain first."""
        return self._top.examples()


@dataclass(slots=True)
class Random:
    """Images drawn at random."""

    count: int
    converter: Converter
    seed: int
    _top: Top[Chosen] = field(init=False)

    def __post_init__(self) -> None:
        self._top = Top(self.count)

    def add(self, rows: Rows) -> None:
        """Process more rows."""
        self._top.offer(drawn(rows, self.seed), self.converter.of(rows))

    def chosen(self) -> list[Chosen]:
        """Return the images in random order."""
        return self._top.examples()


@dataclass(slots=True)
class PerClass:
    """Equal numbers of images of each class: in rounds over the classes, the rarest first, each with a random image.

    An image is of a class if a detection of it reaches the threshold; each image is chosen once.
    """

    count: int
    converter: Converter
    seed: int
    _tops: dict[int, Top[Chosen]] = field(default_factory=dict)
    _images: Counter[int] = field(default_factory=Counter)

    def add(self, rows: Rows) -> None:
        """Process more rows."""
        make, keys = self.converter.of(rows), drawn(rows, self.seed)
        found, owners = rows.scores >= self.converter.threshold, rows.owners
        for number, of_class in rows.by_class(found):
            has = np.bincount(owners[of_class], minlength=len(rows)) > 0
            self._images[number] += int(has.sum())
            self._tops.setdefault(number, Top(self.count)).offer(np.where(has, keys, -np.inf), make)

    def chosen(self) -> list[Chosen]:
        """Return the images in rounds over the classes."""
        order = sorted(self._tops, key=lambda number: (self._images[number], number))
        waiting = {number: iter(self._tops[number].examples()) for number in order}
        taken: dict[str, Chosen] = {}
        while waiting and len(taken) < self.count:
            for number in list(waiting):
                if len(taken) == self.count:
                    break
                new = next((one for one in waiting[number] if one.uri not in taken), None)
                if new is None:
                    del waiting[number]
                else:
                    taken[new.uri] = new
        return list(taken.values())


@dataclass(slots=True)
class Disagreement:
    """The images with most boxes that appeared, vanished or moved since an earlier run: see `Drift`."""

    count: int
    converter: Converter
    earlier: EarlierRun
    _drift: Drift = field(init=False)
    _top: Top[Chosen] = field(init=False)

    def __post_init__(self) -> None:
        self._drift = Drift(self.earlier, self.converter.threshold, self.count)
        self._top = Top(self.count)

    def add(self, rows: Rows) -> None:
        """Process more rows."""
        changes, _ = self._drift.compare(rows)
        self._top.offer(changes, self.converter.of(rows))

    def chosen(self) -> list[Chosen]:
        """Return the images, the most changed first."""
        return self._top.examples()
