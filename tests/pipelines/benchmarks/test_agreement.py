from pathlib import Path

import numpy as np
import pytest

from pipelines.benchmarks.agreement import Found, compare, compare_common, read_found, save_found

BOXES = [[0.0, 0.0, 100.0, 100.0], [200.0, 50.0, 260.0, 110.0]]


def found(
    boxes: list[list[float]], *, classes: list[int] | None = None, scores: list[float] | None = None, images: int = 1
) -> Found:
    return Found(
        images=np.zeros(len(boxes), np.int64),
        classes=np.asarray(classes or [1] * len(boxes), np.int64),
        scores=np.asarray(scores or [0.9] * len(boxes), np.float32),
        boxes_xyxy=np.asarray(boxes, np.float32).reshape(-1, 4),
        sizes=np.asarray([[480, 640]] * images, np.int64),
    )


def test_equal_detections_match_in_both_directions_with_an_ap_of_one() -> None:
    same = compare(found(BOXES), found(BOXES))

    assert (same.boxes, same.matched, same.matched_back, same.max_px) == (2, 1.0, 1.0, 0.0)
    assert same.ap == pytest.approx(1.0)


def test_the_largest_deviation_is_in_pixels() -> None:
    moved = [[0.0, 0.0, 100.0, 103.0], BOXES[1]]

    assert compare(found(moved), found(BOXES)).max_px == pytest.approx(3.0)


def test_a_box_that_overlaps_too_little_or_has_another_class_has_no_partner() -> None:
    moved = [[0.0, 0.0, 100.0, 80.0], BOXES[1]]

    assert compare(found(moved), found(BOXES)).matched == 0.5
    assert compare(found(BOXES, classes=[1, 2]), found(BOXES)).matched == 0.5


def test_a_box_too_many_lowers_the_way_back_only() -> None:
    more = compare(found([*BOXES, [300.0, 300.0, 400.0, 400.0]]), found(BOXES))

    assert more.matched == 1.0
    assert more.matched_back == pytest.approx(2 / 3)


def test_scores_below_one_half_need_no_partner_and_may_be_one_from_two_fifths_on() -> None:
    faint = found(BOXES, scores=[0.9, 0.45])

    assert compare(found(BOXES), faint).boxes == 1
    assert compare(faint, found(BOXES)).matched == 1.0
    assert compare(found(BOXES, scores=[0.9, 0.35]), found(BOXES)).matched == 0.5


def test_nothing_found_agrees_with_nothing_found() -> None:
    nothing = compare(found([]), found([]))

    assert (nothing.boxes, nothing.matched, nothing.matched_back, nothing.ap) == (0, 1.0, 1.0, None)


def test_detections_of_other_images_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="2 images"):
        compare(found(BOXES, images=2), found(BOXES))


def test_detections_are_read_as_they_were_saved(tmp_path: Path) -> None:
    save_found(tmp_path / "a.npz", [([3], [0.5], [[1, 2, 3, 4]]), ([], [], [])], [(480, 640), (10, 20)])

    read = read_found(tmp_path / "a.npz")

    assert (read.images.tolist(), read.classes.tolist(), read.scores.tolist()) == ([0], [3], [0.5])
    assert read.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    assert read.sizes.tolist() == [[480, 640], [10, 20]]


def test_the_first_images_that_both_have_are_compared() -> None:
    two = found([*BOXES, BOXES[0]], images=2)
    two.images[2] = 1

    assert compare_common(found(BOXES), two).boxes == 2
    assert compare_common(two, found(BOXES)).matched_back == 1.0
    with pytest.raises(ValueError, match="1 images cannot be compared with 2"):
        compare(found(BOXES), two)
