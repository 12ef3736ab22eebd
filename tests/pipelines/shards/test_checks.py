"""What is looked at before an image goes into a shard."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from detr.images.decoding import TooExtreme
from detr.training.augment import draw_augmentation, image_generator
from detr.training.augment_config import AugmentConfig
from pipelines.coco.text import USABLE
from pipelines.shards.checks import UNUSABLE, Picture, Problem, check_annotations, check_picture

TURNS = {1: "none", 2: "mirror", 3: "half", 4: "mirror", 5: "quarter", 6: "quarter", 7: "quarter", 8: "quarter"}


def jpeg(orientation: int = 1, size: tuple[int, int] = (64, 48)) -> bytes:
    """A file whose pixels are stored as (width, height), with an EXIF orientation."""
    exif = Image.Exif()
    exif[274] = orientation
    sink = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def check(data: bytes, height: int, width: int, **options: bool) -> Picture | Problem:
    return check_picture(data, (height, width), **{"ambiguous_upright": False, "check_decodes": True, **options})


@pytest.mark.parametrize(("orientation", "turn"), TURNS.items())
def test_a_picture_is_turned_only_where_the_json_has_the_turned_size(orientation: int, turn: str) -> None:
    data = jpeg(orientation)

    as_stored, turned = check(data, 48, 64), check(data, 64, 48)

    assert as_stored == Picture(upright=False, is_ambiguous=turn in ("mirror", "half"), height=48, width=64)
    if turn == "quarter":
        assert turned == Picture(upright=True, is_ambiguous=False, height=64, width=48)
    else:
        assert isinstance(turned, Problem)
        assert turned.kind == "other_size"


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turn_that_the_size_does_not_tell_is_made_when_it_is_asked_for(orientation: int) -> None:
    data = jpeg(orientation, (48, 48))

    assert check(data, 48, 48) == Picture(upright=False, is_ambiguous=True, height=48, width=48)
    turned = check(data, 48, 48, ambiguous_upright=True)
    assert turned == Picture(upright=True, is_ambiguous=True, height=48, width=48)


def test_asking_for_ambiguous_turns_changes_no_other() -> None:
    as_stored = Picture(upright=False, is_ambiguous=False, height=48, width=64)

    assert check(jpeg(6), 48, 64, ambiguous_upright=True) == as_stored
    assert check(jpeg(1), 48, 64, ambiguous_upright=True) == as_stored


@pytest.mark.parametrize(("upright", "size"), [(False, (48, 64)), (True, (64, 48))])
def test_a_size_that_the_json_does_not_tell_is_that_of_the_picture(upright: bool, size: tuple[int, int]) -> None:
    plain = check_picture(jpeg(1), None, ambiguous_upright=upright, check_decodes=True)
    turned = check_picture(jpeg(6), None, ambiguous_upright=upright, check_decodes=True)

    assert plain == Picture(upright=False, is_ambiguous=False, height=48, width=64)
    assert turned == Picture(upright=upright, is_ambiguous=True, height=size[0], width=size[1])


def test_another_size_names_both() -> None:
    problem = check(jpeg(), 47, 64)

    assert problem == Problem("other_size", "the json has 64 x 47 pixels (width x height), the image has 64 x 48")


def test_a_picture_that_ends_early_is_found_by_decoding_it() -> None:
    data = jpeg(size=(640, 480))[:-500]

    broken = check(data, 480, 640)

    assert isinstance(broken, Problem)
    assert broken.kind == "unreadable"
    assert broken.sentence.startswith("truncated: ")
    assert check(data, 480, 640, check_decodes=False) == Picture(False, False, height=480, width=640)


@pytest.mark.parametrize("check_decodes", [True, False])
def test_a_picture_that_training_cannot_resize_is_a_problem_of_its_own(check_decodes: bool) -> None:
    narrow = check(jpeg(size=(2666, 1)), 1, 2666, check_decodes=check_decodes)

    assert isinstance(narrow, Problem)
    assert narrow.kind == "too_extreme"
    assert narrow.sentence.startswith("2666 x 1 pixels (width x height) are too narrow")
    assert check(jpeg(size=(2665, 1)), 1, 2665, check_decodes=check_decodes) == Picture(
        False, False, height=1, width=2665
    )
    with pytest.raises(TooExtreme):  # training's own rule, at the same size
        draw_augmentation(1, 2666, image_generator(0, 0, 0), AugmentConfig())
    draw_augmentation(1, 2665, image_generator(0, 0, 0), AugmentConfig())


@pytest.mark.parametrize(("data", "kind"), [(b"", "empty"), (b"<html>", "not_an_image")])
def test_a_file_that_is_not_a_picture_is_found_by_its_header(data: bytes, kind: str) -> None:
    problem = check(data, 48, 64, check_decodes=False)

    assert isinstance(problem, Problem)
    assert (problem.kind, problem.sentence.partition(":")[0]) == ("unreadable", kind)


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"bbox": [0, 0, 64, 48]}, None),
        ({"bbox": [60, 40, 4.005, 8.005]}, None),  # rounded
        ({"bbox": [-1, 0, 10, 10]}, "boxes_over_the_edge"),
        ({"bbox": [0, -1, 10, 10]}, "boxes_over_the_edge"),
        ({"bbox": [60, 0, 5, 10]}, "boxes_over_the_edge"),
        ({"bbox": [0, 40, 5, 9]}, "boxes_over_the_edge"),
        ({"bbox": [64, 0, 5, 10]}, "boxes_outside"),
        ({"bbox": [0, 48, 5, 10]}, "boxes_outside"),
        ({"bbox": [-5, 0, 5, 10]}, "boxes_outside"),
        ({"bbox": [0, -10, 5, 10]}, "boxes_outside"),
        ({"bbox": [1, 1, 0, 10]}, "boxes_without_area"),
        ({"bbox": [1, 1, 10, -1]}, "boxes_without_area"),
        ({"bbox": [float("nan"), 1, 10, 10]}, "boxes_not_finite"),
        ({"bbox": [1, 1, float("inf"), 10]}, "boxes_not_finite"),
        ({"bbox": [1, 1, 10]}, "boxes_missing"),
        ({"bbox": None}, "boxes_missing"),
        ({"category_id": 2}, "undeclared_categories"),
        ({"category_id": "cat"}, "undeclared_categories"),
        ({"category_id": "1"}, "numbers_as_text"),
        ({"bbox": ["1", "1", "10", "10"]}, "numbers_as_text"),
        ({"category_id": True}, "undeclared_categories"),
        ({"category_id": None}, "undeclared_categories"),
        ({"iscrowd": 1}, "crowds"),
        ({"iscrowd": "1"}, "crowds"),
        ({"iscrowd": "0"}, None),
    ],
)
def test_what_is_found_in_an_annotation(fields: dict[str, Any], finding: str | None) -> None:
    annotation = {"id": 3, "category_id": 1, "bbox": [1, 1, 10, 10], **fields}

    counts, examples = check_annotations([annotation], 48, 64, category_ids={1})

    usable = {} if finding == "crowds" or finding in UNUSABLE else {USABLE: 1}
    assert +counts == {"annotations": 1, **({} if finding is None else {finding: 1}), **usable}
    assert set(examples) == {finding} - {None, "crowds"}
    assert all(example.startswith("annotation 3: ") for example in examples.values())


def test_an_annotation_can_have_several_faults_and_the_first_of_a_kind_is_the_example() -> None:
    bad = {"category_id": 9, "bbox": [0, 0, 0, 0]}

    counts, examples = check_annotations([{"id": 1, **bad}, {"id": 2, **bad}], 48, 64, category_ids={1})

    assert +counts == {"annotations": 2, "undeclared_categories": 2, "boxes_without_area": 2}
    assert examples == {
        "undeclared_categories": "annotation 1: 9",
        "boxes_without_area": "annotation 1: [0, 0, 0, 0]",
    }
