from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from detr.boxes import area, cxcywh_to_xyxy, generalized_iou, iou, xyxy_to_cxcywh

GOLDEN = Path(__file__).parents[1] / "golden" / "boxes.safetensors"  # made by the original's box_ops

SIDES = st.floats(0.125, 1, width=32)
PLACES = st.floats(-2, 2, width=32)


def test_conversions_are_those_of_the_original() -> None:
    golden = load_file(GOLDEN)

    torch.testing.assert_close(cxcywh_to_xyxy(golden["cxcywh"]), golden["xyxy"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(xyxy_to_cxcywh(golden["xyxy"]), golden["cxcywh_back"], rtol=1e-6, atol=1e-6)


def test_overlaps_are_those_of_the_original_and_not_a_number_between_points() -> None:
    golden = load_file(GOLDEN)

    pairs = golden["boxes1"][:, None], golden["boxes2"][None]
    overlap, union = iou(*pairs)
    generalized = generalized_iou(*pairs)

    assert torch.isnan(overlap).sum() == 2  # a point beside itself and beside another
    for ours, theirs in ((overlap, "iou"), (union, "union"), (generalized, "giou")):
        torch.testing.assert_close(ours, golden[theirs], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_centre_and_size_are_in_this_order_width_before_height() -> None:
    box = torch.tensor([10.0, 20.0, 4.0, 6.0])

    corners = cxcywh_to_xyxy(box)

    assert corners.tolist() == [8, 17, 12, 23]
    assert xyxy_to_cxcywh(corners).tolist() == [10, 20, 4, 6]
    assert area(corners) == 24


def test_generalised_iou_of_boxes_apart_is_minus_the_empty_share_of_the_box_around_both() -> None:
    left, right = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]])

    assert generalized_iou(left, right).item() == pytest.approx(-0.5)  # 2 of 4 are in neither
    assert generalized_iou(left, left).item() == 1


@given(x=PLACES, y=PLACES, width=SIDES, height=SIDES)
def test_there_and_back_is_the_same_box(x: float, y: float, width: float, height: float) -> None:
    box = torch.tensor([x, y, width, height])

    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(box)), box, rtol=0, atol=1e-6)
