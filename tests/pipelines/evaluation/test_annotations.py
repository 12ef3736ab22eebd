"""A COCO json: what is refused of one, and when two are the same truth."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluation.annotations import read_annotations, truth_sha256
from pipelines.stopped import RunStopped

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
    assert {name: image["id"] for name, image in everything.by_file_name().items()} == {"a.jpg": 1, "b.jpg": 2}
    with pytest.raises(ValueError, match=r"no annotated image is 640 x 480 \(height x width\).*240 x 320 \(1\)"):
        read_annotations(str(file), picture_size=(640, 480))


def test_two_images_of_one_file_name_are_refused(file: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["images"][1]["file_name"] = "train/a.jpg"
    file.write_text(json.dumps(truth))

    with pytest.raises(RunStopped, match=r"the images 'val/a\.jpg' and 'train/a\.jpg' have the same file name"):
        read_annotations(str(file)).by_file_name()


@pytest.mark.parametrize(("part", "name"), [("images", "id 1"), ("categories", "id 3")])
def test_ids_that_are_given_twice_are_refused(file: Path, part: str, name: str) -> None:
    truth = copy.deepcopy(TRUTH)
    truth[part][1]["id"] = truth[part][0]["id"]
    file.write_text(json.dumps(truth))

    with pytest.raises(RunStopped, match=f"2 {part} have the {name}"):
        read_annotations(str(file))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "this is not JSON"),
        ("[]", "there are no images"),
        ('{"images": [{"id": 1}]}', r"images\[0\] has no usable file_name and no usable height"),
        ('{"images": [{"id": "1", "file_name": "a.jpg", "height": 2, "width": 3}]}', r"images\[0\] has no usable id"),
        (
            '{"images": [{"id": 9223372036854775808, "file_name": "a.jpg", "height": 2, "width": 3}]}',
            r"images\[0\] has no usable id",
        ),
        ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}]}', "there are no annotations"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}], '
            '"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3]}]}',
            r"annotations\[0\] has no usable bbox",
        ),
    ],
)
def test_annotations_of_another_format_stop_with_a_sentence(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)

    with pytest.raises(RunStopped, match=rf"annotations .*instances\.json: {sentence}"):
        read_annotations(str(file))


def test_annotations_that_are_not_there_stop_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"cannot read the annotations: .*nowhere\.json"):
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
