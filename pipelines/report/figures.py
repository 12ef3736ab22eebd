"""The figures of a report: counts and histograms, updated with one row group at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.report.rows import SETTINGS, Classes, Rows
from pipelines.store import without_known_secrets

SCORE_BINS: Final = 100  # so that the page's counts are exact at every position of its slider
MOST_BOXES: Final = 20  # images with more are counted together
SIZE_EDGES: Final = (0.0, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24, 0.32, 0.48, 0.64, 1.0)  # square root of the box's share
GRID: Final = (9, 12)  # rows and columns of the map of positions
ERROR_EXAMPLES: Final = 3

_ORIGIN: Final = ("model", "threshold", SETTINGS, "run_id", "status")

Counts = npt.NDArray[np.int64]


@dataclass(slots=True)
class RunFigures:
    """Totals of the shown rows of one run."""

    images: int = 0
    errors: int = 0
    detections: int = 0


@dataclass(slots=True)
class Figures:
    """Totals of all rows. Scores are counted in bins of 0.01, after rounding to four decimals."""

    images: int = 0
    ok: int = 0
    detections: int = 0
    left_out: int = 0  # additional detections that a mark covers
    errors: Counter[str] = field(default_factory=Counter)
    error_examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    scores: defaultdict[int, Counts] = field(default_factory=lambda: defaultdict(lambda: np.zeros(SCORE_BINS, int)))
    boxes_per_image: Counts = field(default_factory=lambda: np.zeros((SCORE_BINS, MOST_BOXES + 1), int))
    sizes: Counts = field(default_factory=lambda: np.zeros((len(SIZE_EDGES) - 1, SCORE_BINS), int))
    positions: Counts = field(default_factory=lambda: np.zeros((GRID[0] * GRID[1], SCORE_BINS), int))
    pictures: Counter[tuple[int, int]] = field(default_factory=Counter)
    runs: dict[str, RunFigures] = field(default_factory=dict)
    origins: Counter[tuple[str, float, str | None]] = field(default_factory=Counter)

    def add(self, rows: Rows) -> None:
        """Count more rows."""
        self.images += len(rows)
        self.ok += int(rows.is_ok.sum())
        self.detections += len(rows.scores)
        self.left_out += int(rows.left_out.sum())
        self._add_errors(rows)
        self._add_origins(rows)
        bins = score_bins(rows.scores)
        numbers, places = np.unique(rows.classes, return_inverse=True)
        by_class = np.bincount(places * SCORE_BINS + bins, minlength=len(numbers) * SCORE_BINS)
        for number, counts in zip(numbers.tolist(), by_class.reshape(-1, SCORE_BINS), strict=True):
            self.scores[number] += counts
        self._add_boxes_per_image(rows, bins)
        self._add_shapes(rows, bins)

    def frequent(self, classes: Classes, threshold: float) -> list[int]:
        """Return the numbers of all classes, sorted by their detections that reach a threshold, the most first."""
        names, first = classes.names, round(threshold * SCORE_BINS)
        return sorted(self.scores, key=lambda number: (-int(self.scores[number][first:].sum()), names[number]))

    def as_json(self) -> dict[str, Any]:
        """Return the data for the page's charts."""
        return {
            "classes": {number: bins.tolist() for number, bins in self.scores.items()},
            "boxes_per_image": self.boxes_per_image.tolist(),
            "sizes": self.sizes.tolist(),
            "size_edges": SIZE_EDGES,
            "positions": self.positions.tolist(),
            "grid": GRID,
        }

    def _add_errors(self, rows: Rows) -> None:
        if rows.is_ok.all():
            return
        where = np.flatnonzero(~rows.is_ok).tolist()
        failed = rows.table.take(where).to_pylist()
        for row in failed:
            kind = row["error_kind"] or "unknown"
            self.errors[kind] += 1
            examples = self.error_examples.setdefault(kind, [])
            if len(examples) < ERROR_EXAMPLES:
                examples.append((without_known_secrets(row["uri"]), row["error"] or ""))

    def settings(self) -> dict[str, int]:
        """Return the number of images by settings, the most frequent first."""
        counts: Counter[str] = Counter()
        for (_, _, settings), images in self.origins.items():
            counts[settings or "unknown settings"] += images
        return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))

    def _add_origins(self, rows: Rows) -> None:
        names = [name for name in _ORIGIN if name in rows.table.column_names]
        columns = {
            name: column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
            for name, column in ((name, rows.table[name]) for name in names)
        }
        table = pa.table({**columns, "images": rows.counts * 0 + 1, "detections": rows.counts})
        grouped = table.group_by(names).aggregate([("images", "sum"), ("detections", "sum")])
        for row in grouped.to_pylist():
            settings = row.get(SETTINGS)
            images = row["images_sum"]
            self.origins[row["model"], round(row["threshold"], 6), None if settings is None else str(settings)] += (
                images
            )
            run = self.runs.setdefault(row["run_id"], RunFigures())
            run.images += images
            run.errors += images if row["status"] != "ok" else 0
            run.detections += row["detections_sum"]

    def _add_boxes_per_image(self, rows: Rows, bins: Counts) -> None:
        table = np.bincount(rows.owners * SCORE_BINS + bins, minlength=len(rows) * SCORE_BINS)
        by_row = table.reshape(len(rows), SCORE_BINS)[rows.is_ok]
        at_least = np.minimum(by_row[:, ::-1].cumsum(axis=1)[:, ::-1], MOST_BOXES)
        places = np.arange(SCORE_BINS) * (MOST_BOXES + 1) + at_least
        counted = np.bincount(places.ravel(), minlength=self.boxes_per_image.size)
        self.boxes_per_image += counted.reshape(self.boxes_per_image.shape)

    def _add_shapes(self, rows: Rows, bins: Counts) -> None:
        sizes = np.array([(w or 0, h or 0) for w, h in zip(rows.words("width"), rows.words("height"), strict=True)])
        for width, height in sizes[rows.is_ok].tolist():
            self.pictures[width, height] += 1
        of_picture = sizes[rows.owners].reshape(-1, 2)
        known = (of_picture > 0).all(axis=1)
        boxes, of_picture, bins = rows.boxes[known], of_picture[known], bins[known]
        shares = np.clip((boxes.reshape(-1, 2, 2) / of_picture[:, None]).reshape(-1, 4), 0, 1)
        sides = np.sqrt((shares[:, 2] - shares[:, 0]) * (shares[:, 3] - shares[:, 1]))
        of_size = np.clip(np.searchsorted(SIZE_EDGES, sides, side="right") - 1, 0, len(SIZE_EDGES) - 2)
        self.sizes += _counted(of_size, bins, self.sizes.shape)
        centres = (shares[:, :2] + shares[:, 2:]) / 2
        column = np.minimum((centres[:, 0] * GRID[1]).astype(int), GRID[1] - 1)
        line = np.minimum((centres[:, 1] * GRID[0]).astype(int), GRID[0] - 1)
        self.positions += _counted(line * GRID[1] + column, bins, self.positions.shape)


def score_bins(scores: npt.NDArray[np.float32]) -> Counts:
    """Return the bin of each score, `(N,)`: 0 for [0, 0.01) ... 99 for [0.99, 1]."""
    bins = np.floor(np.round(scores.astype(np.float64), 4) * SCORE_BINS + 1e-9).astype(np.int64)
    clipped: Counts = np.clip(bins, 0, SCORE_BINS - 1)
    return clipped


def _counted(places: Counts, bins: Counts, shape: tuple[int, ...]) -> Counts:
    counted: Counts = np.bincount(places * SCORE_BINS + bins, minlength=shape[0] * shape[1]).reshape(shape)
    return counted
