"""Find the detections that a mark covers, in Arrow and numpy; used by exports, reports, queries and finding.

A detection is covered if its image is in the mark's folder, its class is the mark's, and the IoU of both boxes, as
shares of their pictures, is at least the mark's. Pictures of one camera in another resolution are covered, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RayDetrError
from pipelines.marks.marks import Mark

MOST_PAIRS: Final = 1_000_000  # pairs of a box and a mark that are compared at a time

_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")
_MASKS: Final = "masks"  # a list as long as `detections`
_WEB_QUERY: Final = r"^(https?://[^?#]*)\?[^#]*"  # may contain slashes and signatures
_ABOVE_ALL: Final = r"^([A-Za-z][A-Za-z0-9+.\-]*:/{0,2})?$"  # a part of what precedes the topmost folder

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def folders_of(uris: pa.Array, levels: int) -> pa.Array:
    """Return the folder of each address, with a slash at its end: the address without its last 1 + `levels` parts.

    A bucket and a host are the topmost folders. An archive, `FILE#/`, is a folder in the folder of its file. Null if
    the address has too few folders.

    Args:
        uris: addresses, of which those in the web lose their query.
        levels: 0 for the folder of an image, 1 for its parent, and so on.
    """
    plain = pc.replace_substring_regex(uris.cast(pa.string()), _WEB_QUERY, r"\1")
    folders = pc.extract_regex(plain, rf"(?s)^(?P<folder>(?:.*/)?)(?:[^/]*/){{{levels}}}[^/]*$").field("folder")
    is_above_all = pc.match_substring_regex(folders, _ABOVE_ALL)
    return folders if levels == 0 else pc.if_else(is_above_all, None, folders)


@dataclass(frozen=True, slots=True)
class Boxes:
    """N detections of M images.

    Attributes:
        uris: M addresses.
        sizes: `(M, 2)`: width and height of the upright picture in pixels; nan where unknown.
        owners: `(N,)`: the image of each detection.
        labels: N class names.
        sides: `(N, 4)`: xmin, ymin, xmax, ymax in pixels.
    """

    uris: pa.Array
    sizes: Floats
    owners: Integers
    labels: pa.Array
    sides: npt.NDArray[Any]


class Matcher:
    """Finds the mark that covers a detection."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        """Index the marks."""
        self.marks = sorted(marks, key=lambda mark: (mark.levels, mark.folder, mark.label, mark.id))
        self.ids = pa.array([mark.id for mark in self.marks], pa.string())
        self._levels = [_OfLevels.of(self.marks, levels) for levels in sorted({mark.levels for mark in self.marks})]

    def __bool__(self) -> bool:
        """Return whether there are any marks."""
        return bool(self.marks)

    def match(self, boxes: Boxes) -> Integers:
        """Return the index in `marks` of the mark that covers each detection, `(N,)`; -1 if none does.

        Of several marks, the one with the highest IoU, then the first.
        """
        best = np.full(len(boxes.owners), -1, np.int64)
        highest = np.zeros(len(boxes.owners))
        for part in self._levels:
            where, numbers, overlaps = part.match(boxes)
            is_better = overlaps > highest[where]
            best[where[is_better]], highest[where[is_better]] = numbers[is_better], overlaps[is_better]
        return best

    def without_repeats(self, rows: pa.Table) -> tuple[pa.Table, Integers]:
        """Return rows of a detection table without covered detections and their masks.

        Args:
            rows: M rows with `uri`, `width`, `height` and `detections`.

        Returns:
            The rows, and the number of removed detections of each, `(M,)`.

        Raises:
            RayDetrError: a row's numbers of masks and detections differ.
        """
        lost = np.zeros(len(rows), np.int64)
        if not self or not len(rows):
            return rows, lost
        column = _one_array(rows["detections"])
        counts = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        found = column.flatten()
        box = found.field("box")
        boxes = Boxes(
            uris=_one_array(rows["uri"]),
            sizes=np.stack([_numbers(rows[name]) for name in ("width", "height")], axis=1),
            owners=np.repeat(np.arange(len(rows)), counts),
            labels=found.field("label"),
            sides=np.stack([box.field(side).to_numpy(zero_copy_only=False) for side in _SIDES], axis=1),
        )
        is_kept = self.match(boxes) < 0
        if is_kept.all():
            return rows, lost
        lost = np.bincount(boxes.owners[~is_kept], minlength=len(rows)).astype(np.int64)
        rows = _with(rows, "detections", _filtered(column, found, is_kept, counts - lost))
        if _MASKS in rows.column_names:
            # without those of errors: earlier releases kept the masks of images that changed during the run
            masks = pc.if_else(column.is_valid(), _one_array(rows[_MASKS]), pa.scalar(None, rows[_MASKS].type))
            has_masks = np.asarray(masks.is_valid())
            if (pc.list_value_length(masks).fill_null(0).to_numpy(zero_copy_only=False) != counts * has_masks).any():
                raise RayDetrError("a row has different numbers of masks and detections. Restore its file.")
            of_masks = is_kept[has_masks[boxes.owners]]
            rows = _with(rows, _MASKS, _filtered(masks, masks.flatten(), of_masks, (counts - lost) * has_masks))
        return rows, lost


@dataclass(frozen=True, slots=True)
class _OfLevels:
    """The K marks with one number of levels, sorted by folder and class.

    Attributes:
        levels: number of folders between their folder and an image.
        folders: the different folders, labels: the different classes.
        keys: `(K,)`: index of the folder times the number of classes, plus index of the class; ascending.
        numbers: `(K,)`: of all marks; boxes and least IoU `(K,)` of these.
    """

    levels: int
    folders: pa.Array
    labels: pa.Array
    keys: Integers
    numbers: Integers
    boxes: Corners
    least: Floats

    @classmethod
    def of(cls, marks: Sequence[Mark], levels: int) -> _OfLevels:
        chosen = [(number, mark) for number, mark in enumerate(marks) if mark.levels == levels]
        folders = {folder: place for place, folder in enumerate(sorted({mark.folder for _, mark in chosen}))}
        labels = {label: place for place, label in enumerate(sorted({mark.label for _, mark in chosen}))}
        keys = np.array([folders[mark.folder] * len(labels) + labels[mark.label] for _, mark in chosen], np.int64)
        order = np.argsort(keys, kind="stable")
        return cls(
            levels=levels,
            folders=pa.array(list(folders), pa.string()),
            labels=pa.array(list(labels), pa.string()),
            keys=keys[order],
            numbers=np.array([number for number, _ in chosen], np.int64)[order],
            boxes=Corners.of(np.array([mark.box for _, mark in chosen], np.float64)[order]),
            least=np.array([mark.iou for _, mark in chosen], np.float64)[order],
        )

    def match(self, boxes: Boxes) -> tuple[Integers, Integers, Floats]:
        """Return detections that are covered, the number of their mark, and the IoU with it."""
        uris = boxes.uris.dictionary_encode()
        places = pc.index_in(folders_of(uris.dictionary, self.levels), value_set=self.folders, skip_nulls=True)
        of_uris = places.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        folders = of_uris[uris.indices.to_numpy(zero_copy_only=False)][boxes.owners]
        labels = pc.index_in(boxes.labels, value_set=self.labels).fill_null(-1).to_numpy(zero_copy_only=False)
        keys = np.where((folders < 0) | (labels < 0), -1, folders * len(self.labels) + labels)
        first, stop = np.searchsorted(self.keys, keys, "left"), np.searchsorted(self.keys, keys, "right")
        where = np.flatnonzero(stop > first)
        counts = (stop - first)[where]
        found = [
            self._best(boxes, where[part], first[where[part]], counts[part]) for part in pieces(counts, MOST_PAIRS)
        ]
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        covered, marks, overlaps = (np.concatenate(column) for column in zip(*found, strict=True))
        return covered, marks, overlaps

    def _best(
        self, boxes: Boxes, where: Integers, first: Integers, counts: Integers
    ) -> tuple[Integers, Integers, Floats]:
        """Compare each of some detections with the marks `first` .. `first + counts` and keep the best."""
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        marks = np.arange(counts.sum()) - np.repeat(starts - first, counts)
        sizes = boxes.sizes[boxes.owners[where]]
        shares = boxes.sides[where].astype(np.float64) / np.tile(np.where(sizes > 0, sizes, np.nan), 2)
        overlaps = Corners.of(shares).iou(np.repeat(np.arange(len(where)), counts), marks, self.boxes)
        overlaps = np.where(overlaps >= self.least[marks], overlaps, 0.0)  # also for nan from an unknown size
        best = np.maximum.reduceat(overlaps, starts)
        pairs = np.where(overlaps == np.repeat(best, counts), np.arange(len(overlaps)), len(overlaps))
        chosen = np.minimum.reduceat(pairs, starts)[best > 0]
        return where[best > 0], self.numbers[marks[chosen]], best[best > 0]


@dataclass(frozen=True, slots=True)
class Corners:
    """N boxes as one array per side, which are several times as fast to compare as rows of four.

    Attributes:
        sides: xmin, ymin, xmax and ymax, `(N,)` each.
        areas: `(N,)`.
    """

    sides: tuple[Floats, Floats, Floats, Floats]
    areas: Floats

    @classmethod
    def of(cls, boxes: npt.NDArray[Any]) -> Corners:
        """Convert corners `(N, 4)`."""
        xmin, ymin, xmax, ymax = (np.ascontiguousarray(side, dtype=np.float64) for side in boxes.T)
        return cls((xmin, ymin, xmax, ymax), np.maximum(xmax - xmin, 0) * np.maximum(ymax - ymin, 0))

    def iou(self, one: Integers, other: Integers, others: Corners | None = None) -> Floats:
        """Return intersection over union of M pairs, `(M,)`; 0 if both boxes have no area.

        Args:
            one: indices of the first boxes, `(M,)`.
            other: indices of the second boxes, in `others` or in these boxes, `(M,)`.
            others: the boxes of `other`; None: these boxes.
        """
        others = others or self
        shared = self._shared(one, other, others, 0)
        shared *= self._shared(one, other, others, 1)
        union = self.areas[one] + others.areas[other]
        union -= shared
        return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)

    def _shared(self, one: Integers, other: Integers, others: Corners, low: int) -> Floats:
        """Return the shared width (low = 0) or height (1) of pairs."""
        high = low + 2
        shared: Floats = np.minimum(self.sides[high][one], others.sides[high][other])
        shared -= np.maximum(self.sides[low][one], others.sides[low][other])
        return np.maximum(shared, 0, out=shared)


def pieces(counts: Integers, most: int) -> list[slice]:
    """Return slices of detections with at most this many pairs each, or with a single detection."""
    pieces, start, total = [], 0, np.cumsum(counts)
    while start < len(counts):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + most, "right")))
        pieces.append(slice(start, stop))
        start = stop
    return pieces


def _filtered(column: pa.Array, values: pa.Array, is_kept: npt.NDArray[np.bool_], counts: Integers) -> pa.Array:
    """Return a list column with some of its values and new row lengths; nulls remain."""
    offsets = pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int32())
    return pa.ListArray.from_arrays(
        offsets,
        values.filter(pa.array(is_kept)),
        type=column.type,
        mask=column.is_null() if column.null_count else None,
    )


def _with(rows: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _numbers(column: pa.ChunkedArray) -> Floats:
    numbers: Floats = column.cast(pa.float64()).to_numpy()
    return numbers
