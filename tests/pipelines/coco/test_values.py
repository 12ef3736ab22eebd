"""Values of a COCO json as exporters write them: numbers as text, ids as text, crowds in many spellings."""

from __future__ import annotations

import math

import pytest

from pipelines.coco.values import (
    annotation_problem,
    area,
    box,
    has_numbers_as_text,
    id_hash,
    id_key,
    is_crowd,
    number,
    picture_size,
    whole,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5), (5.0, 5), (-5, -5), (5.5, None), (True, None), ("5", 5), (" 5 ", 5), ("5.0", 5), ("-5.", -5),
     ("5.5", None), ("five", None), ("", None), (None, None), (2**63, None), (float("inf"), None), (float("nan"), None),
     ("1_0", None), ("\u0665", 5), ([5], None), ("9" * 5_000, None)],
)  # fmt: skip
def test_whole_numbers(value: object, expected: int | None) -> None:
    assert whole(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5.0), ("5.5", 5.5), ("1e3", 1000.0), (".5", 0.5), ("nan", None), ("inf", None), ("5,5", None), (True, None),
     ({}, None), ("", None), (10**400, None)],
)  # fmt: skip
def test_numbers(value: object, expected: float | None) -> None:
    assert number(value) == expected


def test_a_box_is_a_list_of_four_numbers() -> None:
    assert box([1, 2.5, -3, 0]) == [1.0, 2.5, -3.0, 0.0]
    assert box(["1", "2.5", 3, "4e0"]) == [1.0, 2.5, 3.0, 4.0]
    assert box("[40, 50.5, 60, 60]") == [40.0, 50.5, 60.0, 60.0]  # of a table that was written as json
    wrong = (
        None,
        [1, 2, 3],
        [1, 2, 3, "x"],
        "1234",
        [1, 2, 3, 4, 5],
        {"x": 1, "y": 2, "width": 3, "height": 4},
        "[1, 2",
    )
    assert [box(value) for value in wrong] == [None] * 7


@pytest.mark.parametrize("value", [0, 0.0, False, None, "", "0", "0.0", "false", "False", " no ", [], "None"])
def test_an_annotation_is_not_of_a_crowd(value: object) -> None:
    assert not is_crowd({"iscrowd": value})
    assert not is_crowd({})


@pytest.mark.parametrize("value", [1, 1.0, True, 2, -1, "1", "true", "yes", "1.0", [0], "crowd"])
def test_an_annotation_is_of_a_crowd(value: object) -> None:
    assert is_crowd({"iscrowd": value})


def test_an_area_that_is_not_a_number_is_none() -> None:
    assert [area({"area": value}) for value in (None, "x", [], float("nan"), float("inf"), 1e301)] == [None] * 6
    assert (area({"area": "12.5"}), area({"area": 3}), area({})) == (12.5, 3.0, None)


def test_the_size_of_a_picture_may_be_text_or_missing() -> None:
    assert picture_size({"height": "240", "width": 320.0}) == (240, 320)
    assert [picture_size(image) for image in ({}, {"height": None, "width": 3}, {"height": 0, "width": 0})] == [
        None
    ] * 3
    with pytest.raises(ValueError, match=r"^width$"):
        picture_size({"height": 240, "width": "wide"})


def test_ids_are_one_if_they_are_the_same_number() -> None:
    assert [id_key(value) for value in (5, 5.0, "5", "5.0", "a3f1-cam", 2**70, True, None, "", 5.5)] == [
        5, 5, 5, 5, "a3f1-cam", 2**70, None, None, None, None,
    ]  # fmt: skip
    assert (id_hash(5), id_hash(-(2**63 - 1))) == (5, -(2**63 - 1))
    assert (id_hash("a3f1-cam"), id_hash(2**70)) == (-9028417145870059019, -2233372781799371153)


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([1, 2, 3, 4], None),
        (["1", "2", "3", "4"], None),
        ([1, 2, 0, 4], "boxes_without_area"),
        ([1, 2, -3, 4], "boxes_without_area"),
        ([1, 2, 3], "boxes_missing"),
        (None, "boxes_missing"),
        ([1, 2, math.nan, 4], "boxes_not_finite"),
        ([1, 2, 1e301, 4], "boxes_not_finite"),
    ],
)
def test_what_is_wrong_with_a_box(bbox: object, problem: str | None) -> None:
    assert annotation_problem({"bbox": bbox}) == problem


def test_numbers_that_are_written_as_text_are_noticed() -> None:
    plain = {"category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "id": "box1"}
    as_text = ({"category_id": "1"}, {"bbox": ["1", 2, 3, 4]}, {"area": "12"}, {"bbox": "[1, 2, 3, 4]"})

    assert not has_numbers_as_text(plain)
    assert not has_numbers_as_text({**plain, "category_id": "cat", "bbox": "x"})
    assert all(has_numbers_as_text({**plain, **change}) for change in as_text)
