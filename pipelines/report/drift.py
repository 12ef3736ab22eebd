"""Changes between two runs of a table: boxes that appeared, vanished or moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.errors import UsageError
from pipelines.lake.members import split_member
from pipelines.report.examples import LEAST_SCORE, MOST_BOXES, Box, Example, Top, example_of, left_out_bins, reaches
from pipelines.report.overlaps import box_iou
from pipelines.report.page import ROLES, Comparison, Item, PictureRow
from pipelines.report.rows import Classes, Rows, TableFiles

SAME_IOU: Final = 0.9  # boxes of one class with this IoU or more are the same
FOUND_IOU: Final = 0.5  # boxes with less are different objects; between the two limits, the object moved

Counts = npt.NDArray[np.int64]
Origin = tuple[str, str | None]  # model and settings
_SAME, _MOVED, _APPEARED, _VANISHED, _BEFORE, _BELOW = range(6)
_CHANGED: Final = (_MOVED, _APPEARED, _VANISHED)
_ROLE_OF_KIND: Final = np.array(
    [ROLES.index(role) for role in ("found", "moved", "appeared", "vanished", "before", "found")]
)


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of the pictures of M rows: hashes of etags (0: unknown), and sizes in bytes and pixels (-1: unknown).

    Attributes:
        etags: `(M,)`. Unknown for images inside files, whose etag is that of the file: it changes with any of them.
        sizes: `(M, 3)`: bytes, width, height.
    """

    etags: npt.NDArray[np.uint64]
    sizes: Counts

    @classmethod
    def of(cls, rows: Rows) -> Versions:
        """Return those of rows."""
        etags = [
            0 if etag is None or split_member(uri) is not None else _hash(etag)
            for uri, etag in zip(rows.words("uri"), rows.words("etag"), strict=True)
        ]
        sizes = [[-1 if one is None else one for one in rows.words(name)] for name in ("size", "width", "height")]
        return cls(np.array(etags, np.uint64), np.array(sizes, np.int64).T.reshape(-1, 3))

    def take(self, places: Counts) -> Versions:
        """Return those of some rows."""
        return Versions(self.etags[places], self.sizes[places])

    def differ(self, other: Versions) -> npt.NDArray[np.bool_]:
        """Return which pictures are other ones, `(M,)`: by their etags, or by sizes where an etag is unknown."""
        is_known = (self.sizes >= 0) & (other.sizes >= 0)
        by_size: npt.NDArray[np.bool_] = (is_known & (self.sizes != other.sizes)).any(axis=1)
        has_etags = (self.etags != 0) & (other.etags != 0)
        return np.where(has_etags, self.etags != other.etags, by_size)


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """The boxes of a run that reach a score, as columns: 28 bytes per box and 49 per row.

    Attributes:
        run_id: its name.
        keys: `(M,)`, sorted hashes of addresses.
        is_ok: `(M,)`; False for errors.
        starts: `(M + 1,)`, the index of the first box of each row.
        classes: `(N,)`, scores `(N,)` and boxes `(N, 4)`: as in `Rows`.
        versions: of the pictures of its rows.
        origins: model and settings of its rows.
    """

    run_id: str
    keys: npt.NDArray[np.uint64]
    is_ok: npt.NDArray[np.bool_]
    versions: Versions
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
        (_keys(rows), rows.is_ok, versions.etags, versions.sizes, np.bincount(rows.owners[kept], minlength=len(rows)),
         rows.classes[kept], rows.scores[kept], rows.boxes[kept])
        for rows in _noting_origins(files.rows(classes), origins)
        for kept, versions in ((reaches(rows.scores, threshold), Versions.of(rows)),)
    ]  # fmt: skip
    if not parts:
        raise UsageError(f"run {files.run_id} of table {files.table.uri} has no rows to compare with.")
    keys, is_ok, etags, sizes, counts, numbers, scores, boxes = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    order = np.argsort(keys, kind="stable")
    owners = np.repeat(np.arange(len(keys)), counts)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    by_row = np.argsort(places[owners], kind="stable")
    starts = np.concatenate(([0], np.cumsum(counts[order]))).astype(np.int64)
    run_id = files.run_id
    assert run_id is not None, "an earlier run is read by its name"
    rows_of = (keys[order], is_ok[order], Versions(etags, sizes).take(order), starts)
    return EarlierRun(run_id, *rows_of, numbers[by_row], scores[by_row], boxes[by_row], frozenset(origins))


def _noting_origins(parts: Iterable[Rows], origins: set[Origin]) -> Iterator[Rows]:
    for rows in parts:
        origins |= _origins(rows)
        yield rows


@dataclass(frozen=True, slots=True)
class ImageChanges:
    """The boxes of one image in both runs, each with its change.

    Attributes:
        classes: `(N,)`, scores `(N,)` and boxes `(N, 4)`: those of the later run, then those that vanished, the former
            places of those that moved, and those of the later run below the threshold, which are not compared.
        kinds: `(N,)`, the change.
    """

    classes: Counts
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    kinds: Counts

    @property
    def count(self) -> int:
        """Number of boxes that appeared, vanished or moved."""
        return int(np.isin(self.kinds, _CHANGED).sum())

    def drawn(self) -> tuple[tuple[Box, ...], tuple[tuple[int, int], ...]]:
        """Return at most 100 boxes of class, score, four sides and role, and bins of the others.

        Changed ones are drawn first, then former places of those that moved. Boxes below the threshold are drawn from a
        score of 0.05 on.
        """
        is_drawn = (self.kinds != _BELOW) | (self.scores >= LEAST_SCORE)
        is_former = self.kinds == _BEFORE
        ranked = np.lexsort((-self.scores, ~is_former, ~np.isin(self.kinds, _CHANGED), ~is_drawn))
        count = min(MOST_BOXES, int(is_drawn.sum()))
        left_out = ranked[count:]
        kept = np.sort(ranked[:count])
        boxes = tuple(
            (number, round(score, 4), *(round(side, 2) for side in sides), role)
            for number, score, sides, role in zip(
                self.classes[kept].tolist(),
                self.scores[kept].tolist(),
                self.boxes[kept].tolist(),
                _ROLE_OF_KIND[self.kinds[kept]].tolist(),
                strict=True,
            )
        )
        return boxes, left_out_bins(self.scores[left_out[~is_former[left_out]]])


@dataclass(slots=True)
class Drift:
    """Compares the rows of a report with an earlier run, one row group at a time.

    Attributes:
        images: number of images without error in both, which are compared.
        changed_pictures: images without error in both whose picture is another one; not compared.
        own: rows of the report that are of the earlier run itself; not compared.
        only_here: images that the earlier run does not have.
        errors_here: images with an error in the report only, errors_before in the earlier run only, errors_both in
            both.
    """

    earlier: EarlierRun
    threshold: float
    most: int
    images: int = 0
    changed_pictures: int = 0
    own: int = 0
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
    def in_both(self) -> int:
        """Images that have a row of the earlier run and another one in the report."""
        return self.images + self.changed_pictures + self.errors_here + self.errors_before + self.errors_both

    @property
    def only_before(self) -> int:
        """Images of the earlier run that the report does not cover."""
        return len(self.earlier.keys) - self.own - self.in_both

    def add(self, rows: Rows) -> None:
        """Compare more rows; rows of the earlier run itself are skipped."""
        self.origins |= _origins(rows, not_of=self.earlier.run_id)
        changes, found = self.compare(rows)
        self._top.offer(changes, lambda row: _example(example_of(rows, row), found[row]))

    def compare(self, rows: Rows) -> tuple[npt.NDArray[np.float64], dict[int, ImageChanges]]:
        """Count the changes in more rows.

        Returns:
            The number of boxes of each row that appeared, vanished or moved, `(M,)`; -inf if none did or the row cannot
            be compared. Also the changes of each compared row.
        """
        earlier, keys = self.earlier, _keys(rows)
        places = np.minimum(np.searchsorted(earlier.keys, keys), len(earlier.keys) - 1)
        is_own = np.array([run_id == earlier.run_id for run_id in rows.words("run_id")], np.bool_)
        is_new = (earlier.keys[places] != keys) & ~is_own
        is_both, was_ok = ~is_own & ~is_new, earlier.is_ok[places]
        is_compared = is_both & rows.is_ok & was_ok
        is_changed = is_compared & Versions.of(rows).differ(earlier.versions.take(places))
        self.own += int(is_own.sum())
        self.only_here += int(is_new.sum())
        self.errors_here += int((is_both & ~rows.is_ok & was_ok).sum())
        self.errors_before += int((is_both & rows.is_ok & ~was_ok).sum())
        self.errors_both += int((is_both & ~rows.is_ok & ~was_ok).sum())
        self.changed_pictures += int(is_changed.sum())
        changes, found, starts = np.full(len(rows), -np.inf), dict[int, ImageChanges](), rows.starts
        for row in np.flatnonzero(is_compared & ~is_changed).tolist():
            self.images += 1
            found[row] = self._compare(rows, slice(starts[row], starts[row] + rows.counts[row]), int(places[row]))
            changes[row] = found[row].count or -np.inf
        return changes, found

    def comparison(self, classes: Classes) -> Comparison:
        """Return the part of the page about the difference."""
        names = classes.names
        order = sorted(self.by_class, key=lambda number: -int(self.by_class[number][1:].sum()))
        items = [Item(example) for example in self._top.examples()]
        note = (
            "Images with the most boxes that appeared, vanished or moved. The runs are compared at a score of "
            f"{self.threshold:g}, wherever the slider is: below it, boxes of this report are drawn, and none of the "
            "earlier run."
        )
        gallery = PictureRow("drift", "Most changed", note, items)
        totals = sum(self.by_class.values(), np.zeros(4, np.int64)).tolist()
        values = {
            "threshold": self.threshold,
            "images": self.images,
            "only_here": self.only_here,
            "only_before": self.only_before,
            "errors_here": self.errors_here,
            "errors_before": self.errors_before,
            "errors_both": self.errors_both,
            "changed_pictures": self.changed_pictures,
            "has_no_common_class": self._has_no_common_class(),
            **self._named_origins(),
            "share": self.share,
            "totals": totals,
            "rows": [(names[number], self.by_class[number].tolist()) for number in order],
            "same_iou": SAME_IOU,
            "found_iou": FOUND_IOU,
        }
        return Comparison(f"Against run {self.earlier.run_id}", "drift.html.j2", values, [gallery])

    def _has_no_common_class(self) -> bool:
        """Return whether both runs have boxes, and none of a class that the other one has boxes of."""
        counts = [count.tolist() for count in self.by_class.values()]
        has_common = any(same or moved or (appeared and vanished) for same, moved, appeared, vanished in counts)
        is_found = any(appeared for *_, appeared, _ in counts) and any(vanished for *_, vanished in counts)
        return is_found and not has_common

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

    def _compare(self, rows: Rows, part: slice, place: int) -> ImageChanges:
        """Compare the boxes of a row with those of the earlier row at a place, and count them by class."""
        old = slice(self.earlier.starts[place], self.earlier.starts[place + 1])
        is_kept = reaches(rows.scores[part], self.threshold)
        columns = [array[part] for array in (rows.classes, rows.scores, rows.boxes)]
        here, below = [array[is_kept] for array in columns], [array[~is_kept] for array in columns]
        before = [array[old] for array in (self.earlier.classes, self.earlier.scores, self.earlier.boxes)]
        kinds, fates = _kinds(before, here)
        lost, moved = np.flatnonzero(fates == _VANISHED), np.flatnonzero(fates == _MOVED)
        counted = np.concatenate([kinds, fates[lost]])
        classes, scores, boxes = (
            np.concatenate([now, then[lost], then[moved], low])
            for now, then, low in zip(here, before, below, strict=True)
        )
        for number, kind in zip(classes[: len(counted)].tolist(), counted.tolist(), strict=True):
            self.by_class[number][kind] += 1
        others = [np.full(len(moved), _BEFORE), np.full(len(below[0]), _BELOW)]
        return ImageChanges(classes, scores, boxes, np.concatenate([counted, *others]))


def _kinds(before: list[npt.NDArray[Any]], here: list[npt.NDArray[Any]]) -> tuple[Counts, Counts]:
    """Match boxes of one class, the largest overlap first.

    Args:
        before: classes, scores and boxes of the earlier row.
        here: those of the later row.

    Returns:
        The change of each later box, and of each earlier one: `_VANISHED`, or that of the later box that matches it.
    """
    kinds = np.full(len(here[0]), _APPEARED)
    fates = np.full(len(before[0]), _VANISHED)
    overlaps = box_iou(before[2], here[2])
    overlaps[before[0][:, None] != here[0][None]] = 0
    enough = np.flatnonzero(overlaps >= FOUND_IOU)
    for index in enough[np.argsort(-overlaps.ravel()[enough], kind="stable")].tolist():
        one, other = divmod(index, len(kinds))
        if fates[one] == _VANISHED and kinds[other] == _APPEARED:
            fates[one] = kinds[other] = _SAME if overlaps[one, other] >= SAME_IOU else _MOVED
    return kinds, fates


def _example(example: Example, changes: ImageChanges) -> Example:
    boxes, more = changes.drawn()
    return replace(example, boxes=boxes, more=more)


def _origins(rows: Rows, *, not_of: str | None = None) -> set[Origin]:
    columns = zip(rows.words("model"), rows.words("settings"), rows.words("run_id"), strict=True)
    return {(model, settings) for model, settings, run_id in columns if run_id != not_of}


def _keys(rows: Rows) -> npt.NDArray[np.uint64]:
    return np.fromiter((_hash(uri) for uri in rows.words("uri")), np.uint64, len(rows))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
