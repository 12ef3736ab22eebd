"""Panoptic quality (Kirillov et al. 2019), as COCO's `panopticapi` computes it."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

VOID = 0
"""The id of pixels without a segment."""


@dataclass(frozen=True, slots=True)
class TrueSegment:
    """A segment of the truth. Crowds are regions of many objects: detections in them do not count as wrong."""

    id: int
    category_id: int
    is_crowd: bool


@dataclass(slots=True)
class _OfCategory:
    overlap: float = 0.0  # sum of the IoU of matches
    matched: int = 0
    unmatched_found: int = 0
    unmatched_true: int = 0


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over categories that occur, in 0..1: `pq` = `sq` (IoU of what matched) times `rq` (F1 of matching)."""

    pq: float
    sq: float
    rq: float
    categories: int


@dataclass(slots=True)
class PanopticQuality:
    """Counter of the segments of images; `of` returns the figures. Not thread-safe."""

    _counts: dict[int, _OfCategory] = field(default_factory=lambda: defaultdict(_OfCategory))

    def add(
        self,
        true_ids: NDArray[np.integer],
        true_segments: Iterable[TrueSegment],
        found_ids: NDArray[np.integer],
        found_segments: Mapping[int, int],
    ) -> None:
        """Count one image.

        Args:
            true_ids: `(height, width)`, the true segment of each pixel, or `VOID`.
            true_segments: the segments of the image.
            found_ids: `(height, width)`, what was found.
            found_segments: the category of each found id.

        Raises:
            ValueError: the maps differ in size, or have ids without a segment.
        """
        true = {segment.id: segment for segment in true_segments}
        if true_ids.shape != found_ids.shape:
            raise ValueError(f"the maps of segments differ in size: {true_ids.shape} and {found_ids.shape}")
        pairs = true_ids.astype(np.int64).ravel() * 2**32 + found_ids.astype(np.int64).ravel()
        values, counts = np.unique(pairs, return_counts=True)
        shared = {
            (int(value) >> 32, int(value) & 0xFFFFFFFF): int(count) for value, count in zip(values, counts, strict=True)
        }
        true_areas: Counter[int] = Counter()
        found_areas: Counter[int] = Counter()
        for (one, other), area in shared.items():
            true_areas[one] += area
            found_areas[other] += area
        for kind, areas, known in (("true", true_areas, true.keys()), ("found", found_areas, found_segments.keys())):
            unknown = areas.keys() - known - {VOID}
            if unknown:
                raise ValueError(f"the {kind} map has pixels of segment {min(unknown)}, which is not listed")
        matched_true, matched_found = set(), set()
        for (one, other), area in shared.items():
            if one not in true or other not in found_segments or true[one].is_crowd:
                continue
            if true[one].category_id != found_segments[other]:
                continue
            union = true_areas[one] + found_areas[other] - area - shared.get((VOID, other), 0)
            if area / union > 0.5:  # ensures that a segment has at most one match
                count = self._counts[true[one].category_id]
                count.matched += 1
                count.overlap += area / union
                matched_true.add(one)
                matched_found.add(other)
        for segment in true.values():
            if segment.id not in matched_true and not segment.is_crowd:
                self._counts[segment.category_id].unmatched_true += 1
        # the last of several crowds of one category counts, as in panopticapi
        crowds = {segment.category_id: segment.id for segment in true.values() if segment.is_crowd}
        for other, category in found_segments.items():
            if other in matched_found:
                continue
            ignored = shared.get((VOID, other), 0)
            if category in crowds:
                ignored += shared.get((crowds[category], other), 0)
            if found_areas[other] and ignored / found_areas[other] > 0.5:
                continue
            self._counts[category].unmatched_found += 1

    def of(self, categories: Collection[int]) -> Quality:
        """Return the figures of some categories; those without segments do not count."""
        pq, sq, rq = [], [], []
        for category in categories:
            count = self._counts.get(category, _OfCategory())
            whole = count.matched + 0.5 * count.unmatched_found + 0.5 * count.unmatched_true
            if not whole:
                continue
            pq.append(count.overlap / whole)
            sq.append(count.overlap / count.matched if count.matched else 0.0)
            rq.append(count.matched / whole)
        if not pq:
            return Quality(0.0, 0.0, 0.0, 0)
        return Quality(sum(pq) / len(pq), sum(sq) / len(sq), sum(rq) / len(rq), len(pq))
