"""Rows of the shards: whatever COCO's json says comes back, and equal rows are equal bytes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards.reader import SHARD_SCHEMA
from pipelines.shards.rows import (
    LEFT_OUT_SCHEMA,
    RowsFile,
    coco_annotations,
    coco_image,
    image_row,
)

IMAGE = {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48, "license": 4}
ANNOTATION = {
    "id": 3,
    "image_id": 7,
    "category_id": 18,
    "bbox": [1.5, 2, 3, 4.25],
    "area": 12.75,
    "iscrowd": 0,
    "segmentation": [[1.5, 2, 4.5, 2, 4.5, 6.25]],
}
ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),  # halves of pairs, too, which json can hold
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["id", "category_id", "bbox", "area", "iscrowd", "segmentation", "position", "keypoints", "attributes", ""]
)


def stored(rows: list[dict[str, Any]], schema: pa.Schema = SHARD_SCHEMA) -> list[dict[str, Any]]:
    """The rows as they come back from a file."""
    file = RowsFile(schema)
    file.add(rows)
    found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(file.finish({})[0])).to_pylist()
    return found


def test_what_columns_hold() -> None:
    annotation = {**ANNOTATION, "keypoints": [1, 2]}

    (row,) = stored([image_row(5, IMAGE, [(9, annotation)], data=b"bytes", upright=True)])

    assert row == {
        "position": 5,
        "image_id": 7,
        "file_name": "a.jpg",
        "width": 64,
        "height": 48,
        "image": b"bytes",
        "upright": True,
        "annotations": [
            {
                "position": 9,
                "id": 3,
                "category_id": 18,
                "bbox": [1.5, 2.0, 3.0, 4.25],
                "area": 12.75,
                "iscrowd": False,
                "segmentation": "[[1.5,2,4.5,2,4.5,6.25]]",
                "other": '{"keypoints":[1,2]}',
            }
        ],
        "other": '{"license":4}',
    }


@settings(deadline=None)
@given(
    image=st.dictionaries(st.sampled_from(["license", "note", "image", "upright", "other", ""]), ANY_VALUE),
    annotations=st.lists(st.dictionaries(FIELDS, ANY_VALUE), max_size=3),
)
def test_an_image_and_its_annotations_come_back_whatever_their_fields_hold(
    image: dict[str, Any], annotations: list[dict[str, Any]]
) -> None:
    whole_image = {**image, "id": 7, "file_name": "ü.jpg", "width": 64, "height": 48.0}
    named = [{**annotation, "image_id": 7} for annotation in annotations]

    rows = [image_row(0, whole_image, list(enumerate(named)), data=b"")]
    (row,) = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA).to_pylist()

    assert coco_image(row) == whole_image
    assert list(coco_annotations(row)) == list(enumerate(named))


@pytest.mark.parametrize(
    "odd",
    [
        {"iscrowd": 2},
        {"iscrowd": None},
        {"iscrowd": True},
        {"area": None},
        {"area": 2**60 + 1},
        {"area": float("inf")},
        {"bbox": []},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, None]},
        {"bbox": [True, 2, 3, 4]},
        {"bbox": [1, 2, 3, 2**60 + 1]},
        {"category_id": 2**31},
        {"category_id": "18"},
        {"id": "3"},
        {"id": 2**63},
        {"segmentation": None},
        {"segmentation": {"counts": [1, 2], "size": [48, 64]}},
    ],
)
def test_odd_fields_come_back(odd: dict[str, Any]) -> None:
    annotation = {**ANNOTATION, **odd}

    (row,) = stored([image_row(0, IMAGE, [(0, annotation)], data=b"")])

    assert list(coco_annotations(row)) == [(0, annotation)]


def test_missing_fields_are_missing_again() -> None:
    (row,) = stored([image_row(0, IMAGE, [(0, {"image_id": 7})], data=b"")])

    assert list(coco_annotations(row)) == [(0, {"image_id": 7})]


def test_nan_in_a_box_comes_back_unchanged() -> None:
    (row,) = stored([image_row(0, IMAGE, [(0, {**ANNOTATION, "bbox": [0, 0, float("nan"), 1]})], data=b"")])

    ((_, found),) = coco_annotations(row)
    assert [str(side) for side in found["bbox"]] == ["0.0", "0.0", "nan", "1.0"]


def test_annotations_of_no_image_come_back_as_they_named_it() -> None:
    annotations: list[dict[str, Any]] = [{"image_id": "x", "id": 1}, {"id": 2}]

    (row,) = stored([image_row(None, {}, list(enumerate(annotations)), data=None, problem="no image")], LEFT_OUT_SCHEMA)

    assert list(coco_annotations(row)) == list(enumerate(annotations))
    assert row["problem"] == "no image"


def test_equal_rows_are_equal_bytes_and_photographs_are_not_compressed() -> None:
    photograph = b"\xff\xd8" + bytes(5000)

    def file() -> tuple[bytes, tuple[int, ...]]:
        rows = RowsFile(SHARD_SCHEMA)
        rows.add([image_row(0, IMAGE, [(0, ANNOTATION)], data=photograph), image_row(1, IMAGE, [], data=photograph)])
        rows.add([image_row(2, IMAGE, [(1, ANNOTATION)], data=photograph)])
        return rows.finish({"word": "x"})

    data, groups = file()

    assert file() == (data, groups)
    assert groups == (2, 1)
    assert data.count(photograph) == 3
    metadata = pq.read_metadata(pa.BufferReader(data)).metadata
    assert (metadata[b"ray_detr.schema_version"], metadata[b"ray_detr.word"]) == (b"1", b"x")
