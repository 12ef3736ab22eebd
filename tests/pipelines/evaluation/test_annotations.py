"""A COCO json: what is refused of one, and when two are the same truth."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.evaluation.annotations import read_annotations, truth_sha256

TRUTH: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "val/a.jpg", "height": 240, "width": 320},
        {"id": 2, "file_name": "val/b.jpg", "height": 480, "width": 640},
    ],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0},
        {"id": 6, "image_id": 2, "category_id": 3, "bbox": [0, 0, 20.5, 10], "area": 205, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(TRUTH))
    return path


def test_all_images_are_measured_on_or_those_of_one_size(file: Path) -> None:
    everything = read_annotations(str(file))

    assert (everything.truth, everything.image_ids) == (TRUTH, {1, 2})
    assert read_annotations(str(file), picture_size=(480, 640)).image_ids == {2}
    assert {name: image["id"] for name, image in everything.by_file_name().items()} == {"val/a.jpg": 1, "val/b.jpg": 2}
    with pytest.raises(ValueError, match=r"no annotated image is 640 x 480 \(height x width\).*240 x 320 \(1\)"):
        read_annotations(str(file), picture_size=(640, 480))


def test_two_images_of_one_file_name_are_refused(file: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["images"][1]["file_name"] = "val/a.jpg"
    file.write_text(json.dumps(truth))

    with pytest.raises(UsageError, match=r"two images have the file name 'val/a\.jpg'"):
        read_annotations(str(file)).by_file_name()


@pytest.mark.parametrize(
    ("part", "sentence"),
    [("images", "two images have the id 1"), ("categories", "the category id 3 is declared twice")],
)
def test_ids_that_are_given_twice_are_refused(file: Path, part: str, sentence: str) -> None:
    truth = copy.deepcopy(TRUTH)
    truth[part][1]["id"] = truth[part][0]["id"]
    file.write_text(json.dumps(truth))

    with pytest.raises(UsageError, match=sentence):
        read_annotations(str(file))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "this is not JSON"),
        ("[]", "this is not a JSON object"),
        ('{"images": [{"id": 1}]}', r"images\[0\] has no usable file_name"),
        ('{"images": [{"id": "", "file_name": "a.jpg", "height": 2, "width": 3}]}', r"images\[0\] has no usable id"),
        ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}]}', "there are no annotations"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
            "there are no annotations",
        ),
    ],
)
def test_annotations_of_another_format_stop_with_a_sentence(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)

    with pytest.raises(UsageError, match=rf"annotations .*instances\.json: {sentence}"):
        read_annotations(str(file))


def test_annotations_that_are_not_there_stop_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the annotations: .*nowhere\.json"):
        read_annotations(str(tmp_path / "nowhere.json"))


def test_the_same_truth_in_another_form_has_the_same_digest() -> None:
    other = copy.deepcopy(TRUTH)
    other["images"].reverse()
    other["annotations"].reverse()
    other["categories"].reverse()
    other["images"][0].update(file_name="elsewhere.jpg", license=3)
    other["annotations"][0].update(id=99, bbox=[0.0, 0.0, 20.5, 10.0], segmentation=[[0, 0, 1, 1, 2, 2]])
    for one in other["annotations"]:
        one["area"] = float(one["area"])
    del other["annotations"][1]["iscrowd"]

    assert truth_sha256(other, [2, 1]) == truth_sha256(TRUTH, [1, 2])


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("annotations", {"bbox": [10, 10, 40, 41]}),
        ("annotations", {"iscrowd": 1}),
        ("annotations", {"area": 1000}),
        ("annotations", {"category_id": 7}),
        ("categories", {"name": "tiger"}),
    ],
)
def test_another_truth_has_another_digest(part: str, change: dict[str, object]) -> None:
    other = copy.deepcopy(TRUTH)
    other[part][0].update(change)

    assert truth_sha256(other, [1, 2]) != truth_sha256(TRUTH, [1, 2])


def test_the_digest_is_of_the_images_that_are_measured_on() -> None:
    other = copy.deepcopy(TRUTH)
    other["annotations"][1]["bbox"] = [1, 1, 1, 1]

    assert truth_sha256(TRUTH, [1]) != truth_sha256(TRUTH, [1, 2])
    assert truth_sha256(other, [1]) == truth_sha256(TRUTH, [1])


def test_annotations_are_read_as_sharding_reads_them(file: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["images"][0].update(id="a3f1-cam")
    del truth["images"][1]["width"]
    truth["annotations"] = [
        {"id": "x", "image_id": "a3f1-cam", "category_id": "3", "bbox": ["1", 2, 3, 4], "area": None, "iscrowd": "1"},
        {"image_id": 2.0, "category_id": 3.0, "bbox": "[1, 2, 3, 4]", "area": "12.5", "iscrowd": None},
        {"image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"image_id": 2, "category_id": 3, "bbox": {"x": 1}},
        {"image_id": 2, "category_id": 0, "bbox": [1, 2, 3, 4]},
    ]
    file.write_bytes(gzip.compress(json.dumps(truth).encode("utf-16")))

    read = read_annotations(str(file))

    assert read.truth["images"] == [
        {"id": 1, "file_name": "val/a.jpg", "height": 240, "width": 320, "original_id": "a3f1-cam"},
        {"id": 2, "file_name": "val/b.jpg", "height": None, "width": None},
    ]
    assert read.truth["annotations"] == [
        {"id": "x", "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        {"image_id": 2, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12.5, "iscrowd": 0},
        {"image_id": 2, "category_id": 0, "bbox": [1, 2, 3, 4]},
    ]
    assert read.numbers == {"a3f1-cam": 1, 2: 2}
    assert read.findings == {
        "annotations_of_no_image": 1,
        "boxes_missing": 1,
        "crowds": 1,
        "undeclared_categories": 1,
        "usable_annotations": 1,
    }
    with pytest.raises(ValueError, match=r"no annotated image is 10 x 10 .* are 240 x 320 \(1\)\."):
        read_annotations(str(file), picture_size=(10, 10))
