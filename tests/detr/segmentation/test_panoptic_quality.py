"""Panoptic quality, by hand; tests/pipelines/test_panoptic.py compares it with hotcoco's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from detr.segmentation.panoptic_quality import PanopticQuality, Quality, TrueSegment

if TYPE_CHECKING:
    from numpy.typing import NDArray


def row(*lengths: tuple[int, int]) -> NDArray[np.int64]:
    """Return an image of one row of 20 pixels: (segment, number of pixels) from the left, the rest void."""
    values = [segment for segment, length in lengths for _ in range(length)]
    return np.array([values + [0] * (20 - len(values))])


def things(**categories: int) -> list[TrueSegment]:
    return [TrueSegment(int(name[1:]), category, is_crowd=False) for name, category in categories.items()]


def test_a_match_counts_its_overlap_and_what_has_none_counts_half() -> None:
    quality = PanopticQuality()
    # 1 and 5 share 8 of 10 pixels; 2 and 6 share 2 of 5 (void does not count), which is no match
    quality.add(row((1, 10), (2, 5)), things(s1=17, s2=17), row((5, 8), (0, 5), (6, 4)), {5: 17, 6: 17})

    assert quality.of([17]) == Quality(pytest.approx(0.8 / 2), 0.8, 0.5, 1)


def test_another_category_does_not_match_and_means_are_over_categories_that_occur() -> None:
    quality = PanopticQuality()
    quality.add(row((1, 10), (2, 10)), things(s1=17, s2=18), row((5, 10), (6, 10)), {5: 17, 6: 19})

    assert quality.of([17]) == Quality(1.0, 1.0, 1.0, 1)
    assert quality.of([17, 18, 19, 20]) == Quality(pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    assert quality.of([20]) == Quality(0.0, 0.0, 0.0, 0)


def test_void_and_crowds_are_not_counted_as_wrong() -> None:
    quality = PanopticQuality()
    crowd = TrueSegment(2, 17, is_crowd=True)
    # 5 covers segment 1 and void beside it: exact. 6 lies in the crowd, 7 in void.
    quality.add(
        row((1, 6), (0, 4), (2, 6)), [*things(s1=17), crowd], row((5, 10), (6, 6), (7, 4)), {5: 17, 6: 17, 7: 17}
    )

    assert quality.of([17]) == Quality(1.0, 1.0, 1.0, 1)


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in size: \(1, 20\) and \(20, 1\)"):
        PanopticQuality().add(row(), [], row().T, {})
    with pytest.raises(ValueError, match="the found map has pixels of segment 5, which is not listed"):
        PanopticQuality().add(row(), [], row((5, 1)), {})
