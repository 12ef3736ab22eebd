"""What the views of a picture find becomes what the picture has: each object once, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detr import seams
from detr.postprocess import Detections
from detr.seams import join_views
from detr.tiles import Tile, Tiling

LABELS = {1: "cat", 2: "dog"}
WHOLE, LEFT, RIGHT = Tile(0, 0, 180, 100), Tile(0, 0, 100, 100), Tile(80, 0, 180, 100)

Found = tuple[int, float, tuple[float, float, float, float]]


def detections(*found: Found) -> Detections:
    """Class, score and box of each, in pixels of a view."""
    return Detections(
        torch.tensor([one[0] for one in found], dtype=torch.int64),
        tuple(LABELS[one[0]] for one in found),
        torch.tensor([one[1] for one in found], dtype=torch.float32),
        torch.tensor([one[2] for one in found], dtype=torch.float32).reshape(-1, 4),
    )


def joined(whole: Sequence[Found] = (), left: Sequence[Found] = (), right: Sequence[Found] = ()) -> list[Found]:
    """What a picture of 180 x 100 has whose two tiles share 20 columns."""
    found = join_views([WHOLE, LEFT, RIGHT], [detections(*whole), detections(*left), detections(*right)])
    assert found.labels == tuple(LABELS[number] for number in found.category_ids.tolist())
    boxes = [(left, top, right, bottom) for left, top, right, bottom in found.boxes_xyxy.tolist()]
    return list(zip(found.category_ids.tolist(), [round(s, 3) for s in found.scores.tolist()], boxes, strict=True))


def test_boxes_of_tiles_are_moved_to_the_picture_and_the_best_comes_first() -> None:
    assert joined([(1, 0.5, (0, 0, 170, 90))], [(1, 0.25, (10, 20, 30, 40))], [(2, 0.75, (30, 5, 50, 15))]) == [
        (2, 0.75, (110, 5, 130, 15)),
        (1, 0.5, (0, 0, 170, 90)),
        (1, 0.25, (10, 20, 30, 40)),
    ]


def test_an_object_in_the_overlap_that_both_tiles_see_whole_is_counted_once() -> None:
    assert joined(left=[(1, 0.75, (82, 10, 97, 30))], right=[(1, 0.5, (3, 11, 18, 30))]) == [
        (1, 0.75, (82, 10, 97, 30))
    ]


def test_a_part_that_a_seam_cut_off_gives_way_to_the_whole_object_of_the_neighbour_though_its_score_is_higher() -> None:
    # columns 85 to 125: the left tile ends at 100
    assert joined(left=[(1, 0.75, (85, 10, 99.5, 30))], right=[(1, 0.5, (5, 10, 45, 30))]) == [
        (1, 0.5, (85, 10, 125, 30))
    ]


def test_both_parts_of_an_object_give_way_to_the_whole_picture_s() -> None:
    parts = {"left": [(1, 0.75, (40, 10, 100, 50))], "right": [(1, 0.875, (0, 10, 60, 50))]}

    assert joined([(1, 0.5, (40, 10, 140, 50))], **parts) == [(1, 0.5, (40, 10, 140, 50))]


def test_a_box_with_less_than_half_the_score_of_a_part_does_not_replace_it() -> None:
    part = (1, 0.75, (40.0, 10.0, 100.0, 50.0))

    assert joined([(1, 0.375, (40, 10, 170, 50))], left=[part]) == [(1, 0.375, (40, 10, 170, 50))]
    assert joined([(1, 0.374, (40, 10, 170, 50))], left=[part]) == [part, (1, 0.374, (40, 10, 170, 50))]


def test_a_lower_threshold_loses_no_detection_with_a_high_score() -> None:
    part, doubtful = (1, 0.9, (40.0, 10.0, 100.0, 50.0)), (1, 0.001, (0.0, 0.0, 180.0, 100.0))

    assert joined(left=[part]) == [part]
    assert joined([doubtful], left=[part])[0] == part


@pytest.mark.parametrize("score", [0.25, 0.5, 0.75])
def test_thresholds_of_half_a_score_or_less_give_the_same_detections_from_that_score(score: float) -> None:
    views = [Tile(0, 0, 300, 200), *Tiling(64, 64).tiles(200, 300)]
    generator = torch.Generator().manual_seed(0)
    drawn = [
        [
            (1, number, (round(left * 48), round(top * 48), round(left * 48) + 16, round(top * 48 + 4 + tall * 12)))
            for number, left, top, tall in torch.rand(12, 4, generator=generator).tolist()
        ]
        for _ in views[1:]
    ]

    def from_score(threshold: float) -> list[list[float]]:
        found = [detections(*(one for one in boxes if one[1] >= threshold)) for boxes in [[], *drawn]]
        kept = join_views(views, found)
        return kept.boxes_xyxy[kept.scores >= score].tolist()

    assert from_score(0) == from_score(score / 2)
    assert len(from_score(0)) > 20


def test_the_rule_can_be_changed() -> None:
    part, whole = (1, 0.5, (60.0, 10.0, 100.0, 50.0)), (1, 0.75, (40.0, 10.0, 140.0, 50.0))
    found = [detections(whole), detections(part), detections()]

    assert len(join_views([WHOLE, LEFT, RIGHT], found)) == 1
    assert len(join_views([WHOLE, LEFT, RIGHT], found, covered=2.0)) == 2
    assert len(join_views([WHOLE, LEFT, RIGHT], found, least_score=2.0)) == 2
    assert len(join_views([WHOLE, LEFT, RIGHT], found, covered=2.0, most_iou=0.25)) == 1


def test_parts_of_an_object_that_no_view_sees_whole_stay() -> None:
    assert len(joined(left=[(1, 0.75, (40, 10, 100, 50))], right=[(1, 0.875, (0, 10, 60, 50))])) == 2


def test_a_box_at_the_border_of_the_picture_is_not_cut() -> None:
    small = (1, 0.5, (0.0, 10.0, 10.0, 20.0))

    assert joined([(1, 0.75, (0, 0, 90, 90))], left=[small]) == [(1, 0.75, (0, 0, 90, 90)), small]


def test_a_small_object_before_a_large_one_of_its_class_stays_where_no_seam_cuts_it() -> None:
    small = (1, 0.5, (30.0, 30.0, 50.0, 50.0))

    assert joined([(1, 0.75, (0, 0, 90, 90))], left=[small]) == [(1, 0.75, (0, 0, 90, 90)), small]


def test_of_two_parts_that_cover_half_of_each_other_the_larger_stays() -> None:
    # columns 70 to 100 and 80 to 120
    assert joined(left=[(1, 0.75, (70, 10, 100, 50))], right=[(1, 0.5, (0, 10, 40, 50))]) == [
        (1, 0.5, (80, 10, 120, 50))
    ]


def test_two_cut_boxes_of_one_view_are_two_objects() -> None:
    assert len(joined(left=[(1, 0.75, (20, 0, 100, 90)), (1, 0.5, (80, 30, 100, 60))])) == 2


def test_a_part_of_another_class_stays() -> None:
    assert len(joined([(2, 0.75, (40, 10, 140, 50))], left=[(1, 0.5, (60, 10, 100, 50))])) == 2


def test_a_part_that_is_covered_by_less_than_half_stays() -> None:
    assert len(joined(left=[(1, 0.5, (60, 10, 100, 50))], right=[(1, 0.75, (1, 10, 60, 50))])) == 2


def test_of_two_boxes_of_one_class_that_overlap_by_more_than_half_the_better_is_kept() -> None:
    better, worse, other = (1, 0.75, (0.0, 0.0, 60.0, 60.0)), (1, 0.5, (0.0, 0.0, 60.0, 70.0)), (0.0, 0.0, 60.0, 60.0)

    assert joined([worse], [better]) == [better]
    assert joined([worse], [(2, 0.75, other)]) == [(2, 0.75, other), worse]


def test_nothing_in_any_view_is_nothing_in_the_picture() -> None:
    assert joined() == []


def test_pairs_are_compared_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = Tiling(64, 64).tiles(200, 300)
    boxes = torch.rand(len(tiles), 12, 2, generator=torch.Generator().manual_seed(0)) * 44
    found = [detections(*((1 + n % 2, 0.5 + n / 64, (x, y, x + 20, y + 20)) for n, (x, y) in enumerate(one.tolist())))
             for one in boxes]  # fmt: skip
    views, all_found = [Tile(0, 0, 300, 200), *tiles], [detections(), *found]
    at_once = join_views(views, all_found)

    monkeypatch.setattr(seams, "_BLOCK", 1)

    assert len(at_once) < 12 * len(tiles)
    assert torch.equal(join_views(views, all_found).boxes_xyxy, at_once.boxes_xyxy)


class Counted(TorchDispatchMode):
    """Counts the numbers that torch computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.numbers += result.numel() if isinstance(result, Tensor) else 0
        return result


def test_boxes_of_different_classes_are_not_compared() -> None:
    views = [Tile(0, 0, 300, 200), *Tiling(64, 64).tiles(200, 300)]
    place = torch.rand(len(views), 20, 2, generator=torch.Generator().manual_seed(0)) * 44
    place[:, :, 0] = 0  # cut on the left
    boxes, scores = torch.cat((place, place + 20), dim=2), torch.linspace(1, 0, 20)

    def numbers(classes: int) -> int:
        found = [Detections(torch.arange(20) % classes, ("",) * 20, scores, one) for one in boxes]
        counted = Counted()
        with counted:
            join_views(views, found)
        return counted.numbers

    assert numbers(20) < numbers(1) / 5


@given(
    st.tuples(st.integers(70, 400), st.integers(70, 400)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.integers(5, 12), st.integers(5, 12)),
    st.sampled_from([0.2, 0.35, 0.5]),
)
def test_an_object_no_longer_than_the_overlap_is_counted_once_wherever_it_lies(
    picture: tuple[int, int], place: tuple[float, float], size: tuple[int, int], overlap: float
) -> None:
    height, width = picture
    left, top = round(place[0] * (width - size[0])), round(place[1] * (height - size[1]))
    box = (left, top, left + size[0], top + size[1])
    views = [Tile(0, 0, width, height), *Tiling(64, 64, overlap).tiles(height, width)]
    found = []
    for number, view in enumerate(views):
        seen = (max(box[0], view.left), max(box[1], view.top), min(box[2], view.right), min(box[3], view.bottom))
        is_seen = number > 0 and seen[0] < seen[2] and seen[1] < seen[3]  # too small to be found in the whole picture
        inside = (seen[0] - view.left, seen[1] - view.top, seen[2] - view.left, seen[3] - view.top)
        score = 0.5 + number * 37 % 64 / 128  # rises and falls from view to view
        found.append(detections((1, score, inside)) if is_seen else detections())

    (kept,) = join_views(views, found).boxes_xyxy.tolist()

    assert kept == list(box)
