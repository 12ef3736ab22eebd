"""A COCO results json, row by row."""

import json
from pathlib import Path
from typing import Any

import pytest

from detr.evaluation.coco_results import ResultColumns
from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation.results_file import read_results

ROW: dict[str, Any] = {"image_id": 4, "category_id": 18, "bbox": [258.15, 41, 348.26, 0], "score": 0.236}


def read(tmp_path: Path, *rows: object) -> ResultColumns:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(list(rows)))
    return read_results(str(path), {4: 4, 5: 5})


def test_rows_come_as_they_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    second = {**ROW, "image_id": 5, "score": 1}

    found = read(tmp_path, second, {**ROW, "segmentation": [], "id": 7, "category_id": -3}, ROW)

    assert found.image_ids.tolist() == [5, 4, 4]
    assert found.category_ids.tolist() == [18, -3, 18]
    assert found.boxes_xywh.tolist() == [[258.15, 41.0, 348.26, 0.0]] * 3
    assert found.scores.tolist() == [1.0, 0.236, 0.236]
    assert len(read(tmp_path)) == 0


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([4, 18], "is not an object"),
        ({"image_id": 4, "score": 1.0, "bbox": [1, 2, 3, 4]}, "has no category_id"),
        ({"image_id": 4, "category_id": 1, "score": 1.0, "segmentation": []}, "has no bbox: results of masks"),
        ({**ROW, "image_id": None}, "has the image_id None, which is not a valid id"),
        ({**ROW, "category_id": 1.5}, r"has the category_id 1\.5, which is not an integer of 64 bits"),
        ({**ROW, "category_id": True}, "has the category_id True, which is not an integer of 64 bits"),
        ({**ROW, "category_id": 2**63}, "has the category_id 9223372036854775808, which is not an integer of 64 bits"),
        ({**ROW, "bbox": "1234"}, "has the bbox '1234', which is not x, y, width, height"),
        ({**ROW, "bbox": [1, 2, 3, True]}, r"has the bbox .*True\], which is not x, y, width, height"),
        ({**ROW, "bbox": [1, 2, 3, 10**400]}, r"has the bbox .*, which is not x, y, width, height"),
        ({**ROW, "bbox": [1, 2, 3]}, r"has the bbox \[1, 2, 3\], which is not x, y, width, height"),
        ({**ROW, "bbox": [1, 2, 3, float("nan")]}, r"has the bbox .*nan\], which is not x, y, width, height"),
        ({**ROW, "bbox": [90, 90, -10, 10]}, r"has the bbox \[90, 90, -10, 10\], whose width or height is negative"),
        ({**ROW, "score": float("nan")}, "has the score nan, which is not a number"),
        ({**ROW, "score": -(10**400)}, "has the score -1000.*, which is not a number"),
        ({**ROW, "score": None}, "has the score None, which is not a number"),
        ({**ROW, "image_id": 6}, "is of image 6, which is not in the annotations"),
    ],
)
def test_an_invalid_row_is_named_with_its_number(tmp_path: Path, row: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"results .*row 1 {sentence}"):
        read(tmp_path, ROW, row)


@pytest.mark.parametrize(
    ("text", "sentence"), [("[{", "this is not JSON"), ('{"annotations": []}', "this is not a list of rows")]
)
def test_another_format_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "detections.json"
    path.write_text(text)

    with pytest.raises(RayDetrError, match=rf"results .*detections\.json: {sentence}"):
        read_results(str(path), [4])


def test_a_file_that_is_not_there_stops_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RayDetrError, match=r"cannot read the results: .*nowhere\.json"):
        read_results(str(tmp_path / "nowhere.json"), [4])


def test_ids_and_numbers_are_read_as_those_of_annotations_are(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    odd = [
        {"image_id": 4.0, "category_id": "18", "bbox": ["1", 2, 3, 4.5], "score": "0.5"},
        {"image_id": "a3f1-cam", "category_id": 18.0, "bbox": "[1, 2, 3, 4]", "score": 1},
    ]
    path.write_bytes(json.dumps(odd).encode("utf-16"))

    rows = read_results(str(path), {4: 4, "a3f1-cam": 2})

    assert (rows.image_ids.tolist(), rows.category_ids.tolist(), rows.scores.tolist()) == ([4, 2], [18, 18], [0.5, 1])
    assert rows.boxes_xywh.tolist() == [[1, 2, 3, 4.5], [1, 2, 3, 4]]
