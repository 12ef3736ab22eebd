"""Changes between two runs of a table: boxes that appeared, vanished or moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.errors import UsageError
from pipelines.report.examples import Box, Example, Top, example_of
from pipelines.report.overlaps import box_iou
from pipelines.report.page import ROLES, Comparison, Item, PictureRow
from pipelines.report.rows import Classes, Rows, TableFiles

SAME_IOU: Final = 0.9  # boxes of one class with this IoU or more are the same
FOUND_IOU: Final = 0.5  # boxes with less are different objects; between the two limits, the object moved

Counts = npt.NDArray[np.int64]
Origin = tuple[str, str | None]  # model and settings
_SAME, _MOVED, _APPEARED, _VANISHED = range(4)


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """The boxes of a run that reach a score, as columns: 24 bytes per box and 25 per row.

    Attributes:
        run_id: its name.
        keys: `(M,)`, sorted hashes of addresses.
        is_ok: `(M,)`; False for errors.
        starts: `(M + 1,)`, the index of the first box of each row.
        classes: `(N,)`, scores `(N,)` and boxes `(N, 4)`: as in `Rows`.
        origins: model and settings of its rows.
    """

    run_id: str
    keys: npt.NDArray[np.uint64]
    is_ok: npt.NDArray[np.bool_]
    starts: Counts
    classes: Counts
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    origins: frozenset[Origin] = frozenset()


def read_earlier(files: TableFiles, classes: Classes, threshold: float) -> EarlierRun:
    """Read a run to compare with.

    Raises:
        UsageError: the run has no rows.
        RayDetrError: a file is damaged.
        StoreError: the store refused.
    """
    origins: set[Origin] = set()
    parts = [
        (_keys(rows), rows.is_ok, np.bincount(rows.owners[kept], minlength=len(rows)), rows.classes[kept],
         rows.scores[kept], rows.boxes[kept])
        for rows in _noting_origins(files.rows(classes), origins)
        for kept in (reaches(rows.scores, threshold),)
    ]  # fmt: skip
    if not parts:
        raise UsageError(f"run {files.run_id} of table {files.table.uri} has no rows to compare with.")
    keys, is_ok, counts, numbers, scores, boxes = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")
    owners = np.repeat(np.arange(len(keys)), counts)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    by_row = np.argsort(places[owners], kind="stable")
    starts = np.concatenate(([0], np.cumsum(counts[order]))).astype(np.int64)
    run_id = files.run_id
    assert run_id is not None, "an earlier run is read by its name"
    columns = (keys[order], is_ok[order], starts, numbers[by_row], scores[by_row], boxes[by_row])
    return EarlierRun(run_id, *columns, frozenset(origins))


def _noting_origins(parts: Iterable[Rows], origins: set[Origin]) -> Iterator[Rows]:
    for rows in parts:
        origins |= _origins(rows)
        yield rows


def reaches(scores: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.bool_]:
    """Return which scores reach a threshold, with the page's rounding."""
    reached: npt.NDArray[np.bool_] = np.round(scores.astype(np.float64), 4) >= threshold - 1e-9
    return reached


@dataclass(slots=True)
class Drift:
    """Compares the rows of a report with an earlier run, one row group at a time."""

    earlier: EarlierRun
    threshold: float
    most: int
    images: int = 0
    only_here: int = 0
    errors_here: int = 0
    errors_before: int = 0
    errors_both: int = 0
    origins: set[Origin] = field(default_factory=set)
    by_class: defaultdict[int, Counts] = field(default_factory=lambda: defaultdict(lambda: np.zeros(4, np.int64)))
    _top: Top[Example] = field(init=False)
    _items: dict[str, tuple[tuple[object, ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._top = Top(self.most)

    @property
    def share(self) -> float:
        """Boxes that appeared, vanished or moved, of all boxes of both runs; a matched pair counts once."""
        totals = sum(self.by_class.values(), np.zeros(4, np.int64))
        return float(totals[1:].sum() / max(1, totals.sum()))

    @property
    def only_before(self) -> int:
        """Images of the earlier run that the report does not cover."""
        return len(self.earlier.keys) - self.images - self.errors_here - self.errors_before - self.errors_both

    def add(self, rows: Rows) -> None:
        """Compare more rows; rows of the earlier run itself are skipped."""
        self.origins |= _origins(rows, not_of=self.earlier.run_id)
        changes, found = self.compare(rows)
        self._top.offer(changes, lambda row: _with_boxes(example_of(rows, row), found[row]))

    def compare(self, rows: Rows) -> tuple[npt.NDArray[np.float64], dict[int, tuple[Box, ...]]]:
        """Count the changes in more rows.

        Returns:
            The number of boxes of each row that appeared, vanished or moved, `(M,)`; -inf if none did or the row cannot
            be compared. Also the boxes of both runs by row, each with its change.
        """
        run_ids, keys = rows.words("run_id"), _keys(rows)
        places = np.minimum(np.searchsorted(self.earlier.keys, keys), len(self.earlier.keys) - 1)
        is_there = self.earlier.keys[places] == keys
        changes = np.full(len(rows), -np.inf)
        found: dict[int, tuple[Box, ...]] = {}
        starts = rows.starts
        for row, (place, known) in enumerate(zip(places.tolist(), is_there.tolist(), strict=True)):
            if run_ids[row] == self.earlier.run_id:
                continue
            if not known:
                self.only_here += 1
            elif not rows.is_ok[row]:
                self.errors_both += not self.earlier.is_ok[place]
                self.errors_here += bool(self.earlier.is_ok[place])
            elif not self.earlier.is_ok[place]:
                self.errors_before += 1
            else:
                self.images += 1
                part = slice(starts[row], starts[row] + rows.counts[row])
                found[row], changes[row] = self._compare(rows, part, place)
        changes[changes == 0] = -np.inf
        return changes, found

    def comparison(self, classes: Classes) -> Comparison:
        """Return the part of the page about the difference."""
        names = classes.names
        order = sorted(self.by_class, key=lambda number: -int(self.by_class[number][1:].sum()))
        items = [Item(example) for example in self._top.examples()]
        gallery = PictureRow(
            "drift", "Most changed", "Images with the most boxes that appeared, vanished or moved.", items
        )
        totals = sum(self.by_class.values(), np.zeros(4, np.int64)).tolist()
        values = {
            "threshold": self.threshold,
            "images": self.images,
            "only_here": self.only_here,
            "only_before": self.only_before,
            "errors_here": self.errors_here,
            "errors_before": self.errors_before,
            "errors_both": self.errors_both,
            **self._named_origins(),
            "share": self.share,
            "totals": totals,
            "rows": [(names[number], self.by_class[number].tolist()) for number in order],
            "same_iou": SAME_IOU,
            "found_iou": FOUND_IOU,
        }
        return Comparison(f"Against run {self.earlier.run_id}", "drift.html.j2", values, [gallery])

    def _named_origins(self) -> dict[str, str]:
        """Return the models of both sides, with the settings if only these differ."""
        sides = {"now": self.origins, "then": self.earlier.origins}
        models = {name: ", ".join(sorted({model for model, _ in side})) for name, side in sides.items()}
        if models["now"] != models["then"] or self.origins == self.earlier.origins:
            return models
        return {
            name: ", ".join(f"{model} {settings or ''}".rstrip() for model, settings in sorted(side, key=str))
            for name, side in sides.items()
        }

    def _compare(self, rows: Rows, part: slice, place: int) -> tuple[tuple[Box, ...], int]:
        """Return the boxes of both rows, each with its change, and the number of changed ones."""
        old = slice(self.earlier.starts[place], self.earlier.starts[place + 1])
        kept = np.flatnonzero(reaches(rows.scores[part], self.threshold))
        here = [array[part][kept] for array in (rows.classes, rows.scores, rows.boxes)]
        before = [array[old] for array in (self.earlier.classes, self.earlier.scores, self.earlier.boxes)]
        overlaps = box_iou(before[2], here[2])
        overlaps[before[0][:, None] != here[0][None]] = 0
        kinds = np.full(len(kept), _APPEARED)
        is_lost = np.ones(len(before[0]), np.bool_)
        for index in np.argsort(-overlaps, axis=None, kind="stable").tolist():
            one, other = divmod(index, len(kept))
            if overlaps[one, other] < FOUND_IOU:
                break
            if is_lost[one] and kinds[other] == _APPEARED:
                is_lost[one] = False
                kinds[other] = _SAME if overlaps[one, other] >= SAME_IOU else _MOVED
        for number, kind in zip(here[0].tolist(), kinds.tolist(), strict=True):
            self.by_class[number][kind] += 1
        for number in before[0][is_lost].tolist():
            self.by_class[number][_VANISHED] += 1
        roles = np.array([ROLES.index(role) for role in ("found", "moved", "appeared")])[kinds]
        boxes = [
            *_boxes(here, roles),
            *_boxes([array[is_lost] for array in before], [ROLES.index("vanished")] * len(is_lost)),
        ]
        return tuple(boxes), int((kinds != _SAME).sum() + is_lost.sum())


def _boxes(columns: Sequence[npt.NDArray[Any]], roles: npt.ArrayLike) -> list[Box]:
    numbers, scores, boxes = (column.tolist() for column in columns)
    return [
        (number, round(score, 4), *(round(side, 2) for side in sides), role)
        for number, score, sides, role in zip(numbers, scores, boxes, np.asarray(roles).tolist(), strict=False)
    ]


def _with_boxes(example: Example, boxes: tuple[Box, ...]) -> Example:
    return Example(example.uri, example.etag, example.size, example.width, example.height, boxes)


def _origins(rows: Rows, *, not_of: str | None = None) -> set[Origin]:
    columns = zip(rows.words("model"), rows.words("settings"), rows.words("run_id"), strict=True)
    return {(model, settings) for model, settings, run_id in columns if run_id != not_of}


def _keys(rows: Rows) -> npt.NDArray[np.uint64]:
    return np.frombuffer(
        b"".join(blake2b(uri.encode(), digest_size=8).digest() for uri in rows.words("uri")), np.uint64
    )
