import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from detr.training.targets import image_target

GOLDEN = Path(__file__).parents[2] / "golden" / "annotations.safetensors"  # made by the original's conversion


def annotation(bbox: list[float], **other: Any) -> dict[str, Any]:
    return {"bbox": bbox, "category_id": 7, "iscrowd": 0, **other}


@pytest.mark.parametrize(("case", "count"), [(0, 5), (1, 0), (2, 0)])
def test_targets_are_those_of_the_original_exactly(case: int, count: int) -> None:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(f"{case}/{name}") for name in ("labels", "boxes", "size")}
        info = json.loads(file.metadata()["info"])
    width, height = info["image_wh"]

    target = image_target(info[f"case{case}"], height, width, class_of={i: i for i in range(91)})

    assert len(target.labels) == count
    assert torch.equal(target.labels, tensors["labels"])
    assert torch.equal(target.boxes_xyxy, tensors["boxes"])
    assert [target.height, target.width] == tensors["size"].tolist()
    assert target.boxes_xyxy.shape == (count, 4)
    assert (target.labels.dtype, target.boxes_xyxy.dtype) == (torch.int64, torch.float32)


def test_boxes_are_cut_at_the_edges_of_the_image() -> None:
    target = image_target([annotation([-5, 10, 200, 20])], 25, 100, class_of={7: 0})

    assert target.boxes_xyxy.tolist() == [[0, 10, 100, 25]]


@pytest.mark.parametrize(
    "bbox",
    [
        [5, 5, 0, 3],
        [5, 5, 3, 0],
        [5, 5, -2, 3],
        [100, 5, 10, 3],  # it begins where the image ends
        [-10, 5, 10, 3],
        [5, 25, 10, 3],
        [math.nan, 5, 10, 3],
        [5, 5, math.nan, 3],
        [5, 5, 10, math.inf],
        [-math.inf, 5, 10, 3],
    ],
)
def test_a_box_without_area_inside_the_image_or_not_finite_is_not_a_target(bbox: list[float]) -> None:
    target = image_target([annotation(bbox), annotation([1, 2, 3, 4])], 25, 100, class_of={7: 0})

    assert target.boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    assert target.labels.tolist() == [0]


def test_crowds_and_undeclared_categories_are_not_targets() -> None:
    annotations = [
        annotation([1, 1, 2, 2], iscrowd=1),
        annotation([1, 1, 3, 3], category_id=8),
        annotation([1, 1, 4, 4], category_id=9000),
    ]

    target = image_target(annotations, 25, 100, class_of={7: 0, 9000: 1})

    assert target.labels.tolist() == [1]
    assert target.boxes_xyxy.tolist() == [[1, 1, 5, 5]]


def test_the_crowd_flag_may_be_missing() -> None:
    target = image_target([{"bbox": [1, 2, 3, 4], "category_id": 7}], 25, 100, class_of={7: 0})

    assert target.labels.tolist() == [0]


def test_a_bbox_that_has_not_four_numbers_is_refused_by_its_annotation() -> None:
    with pytest.raises(ValueError, match=r"annotation 31: bbox is \[1, 2, 3\], expected the four numbers"):
        image_target([annotation([1, 2, 3], id=31)], 25, 100, class_of={7: 0})


def test_normalised_boxes_are_shares_of_the_picture() -> None:
    target = image_target([annotation([10, 5, 20, 10])], 25, 100, class_of={7: 3}).normalised()

    assert target.labels.tolist() == [3]
    torch.testing.assert_close(target.boxes_cxcywh, torch.tensor([[0.2, 0.4, 0.2, 0.4]]))


def test_an_image_without_annotations_has_an_empty_target() -> None:
    target = image_target([], 25, 100, class_of={}).normalised()

    assert target.boxes_cxcywh.shape == (0, 4)
    assert target.labels.dtype == torch.int64


@settings(deadline=None)
@given(
    bboxes=st.lists(st.lists(st.floats(width=32) | st.integers(-300, 300), min_size=4, max_size=4), max_size=4),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
)
def test_what_is_kept_is_fit_for_training_whatever_was_annotated(
    bboxes: list[list[float]], height: int, width: int
) -> None:
    target = image_target([annotation(bbox) for bbox in bboxes], height, width, class_of={7: 0})

    x0, y0, x1, y1 = target.boxes_xyxy.unbind(-1)
    assert bool(((x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)).all())
    assert len(target.labels) == len(x0) <= len(bboxes)
    boxes = target.normalised().boxes_cxcywh
    assert bool(((boxes >= 0) & (boxes <= 1)).all())
