"""Choose the pictures of a report: the best, random, least certain and most crowded ones, and some of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pipelines.report.figures import score_bins
from pipelines.report.rows import Rows

LEAST_SCORE: Final = 0.05  # detections with lower scores are not drawn
MOST_BOXES: Final = 100  # of one picture, the best
PER_CLASS: Final = 3
MOST_CLASSES: Final = 20

Kept = TypeVar("Kept")

Box = tuple[int, float, float, float, float, float]
"""Class number, score, xmin, ymin, xmax, ymax in pixels of the upright picture."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image to show, from its row.

    Attributes:
        boxes: the drawn ones.
        more: the boxes that are not drawn, counted by the bin of their score, as in `score_bins`.
    """

    uri: str
    etag: str | None
    size: int | None
    width: int | None
    height: int | None
    boxes: tuple[Box, ...]
    more: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures that are shown together, and why."""

    id: str
    title: str
    note: str
    examples: Sequence[Example]


@dataclass(slots=True)
class Top(Generic[Kept]):
    """A collection that keeps the few offered rows with the highest key."""

    most: int
    held: list[tuple[float, Kept]] = field(default_factory=list)

    def offer(self, keys: npt.NDArray[np.float64], example: Callable[[int], Kept]) -> None:
        """Keep the rows whose key is high enough; a key of -inf is never kept."""
        least = self.held[-1][0] if len(self.held) == self.most else -np.inf
        candidates = np.flatnonzero(keys > least)
        best = candidates[np.argsort(-keys[candidates], kind="stable")[: self.most]]
        for row in best.tolist():
            self.held.append((float(keys[row]), example(row)))
        self.held.sort(key=lambda pair: -pair[0])
        del self.held[self.most :]

    def examples(self) -> list[Kept]:
        """Return the kept rows, the highest key first."""
        return [example for _, example in self.held]


class Examples:
    """Chooses pictures while the rows are read. Memory: the chosen rows."""

    def __init__(self, *, threshold: float, most: int, seed: int) -> None:
        """Set the minimum score of detections, the number of pictures of a gallery, and the seed of `random`."""
        self._threshold, self._most, self._seed = threshold, most, seed
        self._best, self._unsure, self._crowded, self._random = (Top[Example](most) for _ in range(4))
        self._classes: dict[int, Top[Example]] = {}

    def add(self, rows: Rows) -> None:
        """Process more rows."""
        made: dict[int, Example] = {}

        def example(row: int) -> Example:
            if row not in made:
                made[row] = example_of(rows, row)
            return made[row]

        count, owners = len(rows), rows.owners
        found = rows.scores >= self._threshold
        counts = np.bincount(owners[found], minlength=count)
        sums = np.bincount(owners[found], weights=rows.scores[found], minlength=count)
        never = np.full(count, -np.inf)
        self._best.offer(np.divide(sums, counts, out=never.copy(), where=counts > 0), example)
        self._crowded.offer(np.where(counts > 0, counts, -np.inf).astype(np.float64), example)
        self._unsure.offer(doubts(rows), example)
        self._random.offer(np.where(rows.is_ok, drawn(rows, self._seed), -np.inf), example)
        for number, of_class in rows.by_class(found):
            keys = never.copy()
            np.maximum.at(keys, owners[of_class], rows.scores[of_class].astype(np.float64))
            self._classes.setdefault(number, Top[Example](PER_CLASS)).offer(keys, example)

    def galleries(self, names: Sequence[str], frequent: Sequence[int]) -> Iterator[Gallery]:
        """Yield the galleries; those of classes only for the most frequent ones.

        Args:
            names: of classes, by number.
            frequent: numbers of classes, the most frequent first.
        """
        shown = f"with a score of {self._threshold:g} or more"
        yield Gallery("best", "Best", f"Highest mean score of the boxes {shown}.", self._best.examples())
        yield Gallery("random", "Random", f"Drawn at random, with seed {self._seed}.", self._random.examples())
        yield Gallery("least-certain", "Least certain", "Most boxes with a score near 0.5.", self._unsure.examples())
        yield Gallery("crowded", "Most crowded", f"Most boxes {shown}.", self._crowded.examples())
        for number in frequent[:MOST_CLASSES]:
            if number in self._classes:
                title = f"Class {names[number]}"
                yield Gallery(
                    f"class-{number}", title, "Highest score of this class.", self._classes[number].examples()
                )


def doubts(rows: Rows) -> npt.NDArray[np.float64]:
    """Return the uncertainty of each row, `(M,)`: the sum over its boxes of 1 - |score - 0.5| / 0.3 if positive.

    -inf if no score is between 0.2 and 0.8.
    """
    doubt = np.clip(1 - np.abs(rows.scores.astype(np.float64) - 0.5) / 0.3, 0, None)
    sums = np.bincount(rows.owners, weights=doubt, minlength=len(rows))
    return np.where(sums > 0, sums, -np.inf)


def drawn(rows: Rows, seed: int) -> npt.NDArray[np.float64]:
    """Return a random number for each row, `(M,)`: a function of the seed and the row's address."""
    salt = str(seed).encode()
    hashes = (blake2b(uri.encode(), digest_size=8, key=salt).digest() for uri in rows.words("uri"))
    return np.frombuffer(b"".join(hashes), np.uint64).astype(np.float64)


def example_of(rows: Rows, row: int) -> Example:
    """Return one row as an example: its best boxes, at most 100, with a score of 0.05 or more."""
    start = int(rows.starts[row])
    part = slice(start, start + int(rows.counts[row]))
    best = np.argsort(-rows.scores[part], kind="stable")
    order = best[:MOST_BOXES]
    order = order[rows.scores[part][order] >= LEAST_SCORE]
    boxes = tuple(
        (number, round(score, 4), *(round(side, 2) for side in sides))
        for number, score, sides in zip(
            rows.classes[part][order].tolist(),
            rows.scores[part][order].tolist(),
            rows.boxes[part][order].tolist(),
            strict=True,
        )
    )
    values = {name: rows.table[name][row].as_py() for name in ("uri", "etag", "size", "width", "height")}
    return Example(**values, boxes=boxes, more=left_out_bins(rows.scores[part][best[len(order) :]]))


def reaches(scores: npt.NDArray[np.floating[Any]], threshold: float) -> npt.NDArray[np.bool_]:
    """Return which scores reach a threshold, with the page's rounding."""
    reached: npt.NDArray[np.bool_] = np.round(scores.astype(np.float64), 4) >= threshold - 1e-9
    return reached


def left_out_bins(scores: npt.NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
    """Return how many of the boxes that are not drawn are in each bin of scores."""
    bins, counts = np.unique(score_bins(scores), return_counts=True)
    return tuple(zip(bins.tolist(), counts.tolist(), strict=True))
