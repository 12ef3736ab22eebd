"""Reading COCO json: every entry is found at its position; other json is refused with the position of the error."""

from __future__ import annotations

import gzip
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.coco.text import NOWHERE, CocoText, image_key, name_hash, read_coco
from pipelines.errors import RayDetrError

CATEGORIES = [{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": -3, "name": "dog"}]


def image(image_id: int, **more: object) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "width": 64, "height": 48, **more}


def coco(images: list[Any], annotations: list[Any], **more: object) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": CATEGORIES, **more}


def read(content: object) -> CocoText:
    return read_coco(json.dumps(content).encode(), name="x.json")


def read_id(entry: dict[str, Any]) -> object:
    """The image of an annotation; decimal digits are a number, and so is anything that Python's int takes for them."""
    text = entry["image_id"]
    return (
        int(text)
        if isinstance(text, str) and re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", text.strip()) and "." not in text
        else text
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(-5, 5), min_size=1, max_size=6),
    named=st.lists(st.integers(-6, 6) | st.none() | st.text(max_size=2), max_size=12),
    extra=ANYTHING,
    indent=st.sampled_from([None, 0, 2]),
    annotations_first=st.booleans(),
)
def test_every_entry_is_found_with_its_image(
    ids: list[int], named: list[object], extra: object, indent: int | None, annotations_first: bool
) -> None:
    images = [image(image_id, note=extra) for image_id in ids]
    annotations = [{"image_id": image_id, "note": extra} for image_id in named]
    lists = {"images": images, "annotations": annotations}
    content = {
        "info": extra,
        **(dict(reversed(lists.items())) if annotations_first else lists),
        "categories": CATEGORIES,
    }

    text = read_coco(json.dumps(content, indent=indent, ensure_ascii=False).encode("utf-8", "replace"), name="x.json")

    plain = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
    assert text.other == {"info": plain["info"], "categories": CATEGORIES}
    assert [json.loads(text.image(position)) for position in range(len(ids))] == plain["images"]
    assert text.is_repeated.tolist() == [image_id in ids[:position] for position, image_id in enumerate(ids)]
    found = {
        position: [(place, json.loads(entry)) for place, entry in text.annotations_of(position)]
        for position in range(NOWHERE, len(ids))
    }
    for position, entries in found.items():
        expected = [
            (place, entry)
            for place, entry in enumerate(plain["annotations"])
            if (ids.index(read_id(entry)) if read_id(entry) in ids else NOWHERE) == position
        ]
        assert entries == expected


def test_ids_that_are_not_integers_match_no_image() -> None:
    annotations = [{"image_id": one} for one in (0, 0.0, False, "0", None, 0.5, 2**80, float("nan"))] + [{}]

    text = read(coco([image(0)], annotations))

    assert [place for place, _ in text.annotations_of(0)] == [0, 1, 3]
    assert [place for place, _ in text.annotations_of(NOWHERE)] == [2, 4, 5, 6, 7, 8]


def test_categories_have_their_own_ids_and_names() -> None:
    assert [(one.id, one.name) for one in read(coco([image(1)], [])).categories] == [(7, "cat"), (-3, "dog")]


def test_a_byte_order_mark_is_not_part_of_the_json() -> None:
    text = read_coco(b"\xef\xbb\xbf" + json.dumps(coco([image(1)], [])).encode(), name="x.json")

    assert text.image_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "this is not a JSON object"),
        (b"[]", "this is not a JSON object"),
        (b"\xff\xfe{", "not JSON in UTF-8"),
        (b"{", r"not JSON \(Expecting property name .*char 1\)"),
        (b'{"images": [{}', "no usable id"),
        (b'{"info": 1,}', "not JSON"),
        (b'{"info": 1} x', r"not JSON \(Extra data: .*char 12\)"),
        (b'{"info" 1}', "not JSON"),
        (b'{"info": 1 "a": 2}', "not JSON"),
        (b'{"info": 1, "info": 2}', "'info' appears twice"),
        (b'{"images": {}}', "images is not a list"),
        (b'{"images": [1]}', r"images\[0\] is not an object"),
        (b'{"annotations": [[]]}', r"annotations\[0\] is not an object"),
        (b'{"annotations": [{},]}', "not JSON"),
        (b'{"annotations": []}', "there are no images"),
        (b'{"images": [], "annotations": [], "categories": []}', "there are no images"),
        (b"{}", "there are no images and no annotations"),
    ],
)
def test_a_file_that_is_not_a_coco_json_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(RayDetrError, match=sentence):
        read_coco(data, name="x.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("id", value) for value in (None, "", True, 1.5, [])),
        *(("file_name", value) for value in (None, "", True, 1.5, [], 2**70)),
        *((side, value) for side in ("width", "height") for value in (True, 1.5, [], 2**70, -3, "wide")),
    ],
)
def test_an_image_without_a_usable_field_is_named(field: str, value: object) -> None:
    with pytest.raises(RayDetrError, match=rf"x.json: images\[1\] has no usable {field}\. Every"):
        read(coco([image(1), {**image(2), field: value}], []))


def test_an_image_without_any_field_is_told_what_it_needs() -> None:
    with pytest.raises(RayDetrError, match=r"images\[0\] has no usable id and no usable file_name\. Every image"):
        read(coco([{}], []))


@pytest.mark.parametrize(
    ("categories", "sentence"),
    [
        (None, "there are no categories"),
        ([], "there are no categories"),
        ([3], r"categories\[0\] needs"),
        ([{"id": 2**31, "name": "cat"}], r"categories\[0\] needs"),
        ([{"id": 1}], r"categories\[0\] needs"),
        ([{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}], "the category id 1 is declared twice"),
    ],
)
def test_categories_that_cannot_be_trained_on_are_refused(categories: object, sentence: str) -> None:
    with pytest.raises(RayDetrError, match=sentence):
        read({"images": [image(1)], "annotations": [], "categories": categories})


@pytest.mark.parametrize(
    ("file_name", "key"),
    [
        ("a.jpg", "a.jpg"),
        ("./train/a.jpg", "train/a.jpg"),
        ("a..b.jpg", "a..b.jpg"),
        ("../a.jpg", None),
        ("train/../../a.jpg", None),
        ("/data/a.jpg", None),
        ("http://host/a.jpg", None),
    ],
)
def test_names_that_lead_out_of_the_folder_have_no_key(file_name: str, key: str | None) -> None:
    assert image_key(file_name) == key


def test_name_hashes_are_the_same_on_every_machine() -> None:
    assert name_hash("000000000030.jpg") == 3446139788446914822


COMMON = {"images": [image(1), image(2)], "categories": [{"id": 1, "name": "cat"}]}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_json_may_be_in_any_encoding_of_unicode_and_packed(encoding: str, is_packed: bool) -> None:
    data = json.dumps({**COMMON, "annotations": [BOX], "note": "ü"}, ensure_ascii=False).encode(encoding)

    text = read_coco(gzip.compress(data) if is_packed else data, name="x.json")

    assert (text.image_ids.tolist(), text.other["note"]) == ([1, 2], "ü")


def test_a_json_that_cannot_be_unpacked_is_refused() -> None:
    with pytest.raises(RayDetrError, match=r"annotations x\.json: this cannot be unpacked with gzip"):
        read_coco(gzip.compress(b"{}")[:-5], name="x.json")


@pytest.mark.parametrize(
    ("ids", "numbers"),
    [
        ([7, 5], [7, 5]),
        ([7.0, "5"], [7, 5]),
        (["a3f1-cam", "a3f2-cam"], [1, 2]),
        ([7, "a3f2-cam"], [1, 2]),
        ([2**64, 2**64 + 1], [1, 2]),
        (["9" * 30, 5], [1, 2]),
    ],
)
def test_images_are_numbered_where_an_id_is_not_a_64_bit_number(ids: list[object], numbers: list[int]) -> None:
    images = [{**image(1), "id": one} for one in ids]
    boxes = [{**BOX, "image_id": ids[1]}, {**BOX, "image_id": ids[0]}, {**BOX, "image_id": "none"}]

    text = read({**COMMON, "images": images, "annotations": boxes})

    assert text.image_ids.tolist() == numbers
    assert text.is_numbered == (numbers == [1, 2])
    assert [[place for place, _ in text.annotations_of(position)] for position in (NOWHERE, 0, 1)] == [[2], [1], [0]]


def test_what_is_wrong_with_annotations_is_counted_with_examples() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"category_id": "1", "bbox": ["1", "2", "3", "4"]}, {"category_id": 0}, {"category_id": "cat"},
        {"bbox": {"x": 1}}, {"bbox": [1, 2, 0, 4]}, {"iscrowd": "1"}, {"image_id": 9}, {"bbox": [1, 2, math.nan, 4]},
    ]  # fmt: skip
    text = read({**COMMON, "annotations": [{**BOX, "id": place, **change} for place, change in enumerate(changes)]})

    assert text.findings == {
        "annotations_of_no_image": 1,
        "boxes_missing": 1,
        "boxes_not_finite": 1,
        "boxes_without_area": 1,
        "crowds": 1,
        "undeclared_categories": 2,
        "usable_annotations": 2,
    }
    assert text.examples["undeclared_categories"] == ('annotation 3: category_id "cat"', "annotation 2: category_id 0")
    assert text.examples["annotations_of_no_image"] == ("annotation 7: image_id 9",)


@pytest.mark.parametrize(
    ("categories", "kept", "left_out"),
    [
        ([(0, "balloon"), (1, "balloon")], [1], ['category 0: "balloon", which no annotation uses']),
        ([(0, "balloons"), (1, "balloon")], [0, 1], []),
        ([(0, ""), (1, "balloon"), (2, "N/A"), (3, " ")], [1], ['category 0: "", which no annotation uses',
         'category 2: "N/A", which no annotation uses', 'category 3: " ", which no annotation uses']),
        ([(5, "cat"), (6, "cat"), (1, "dog")], [6, 1], ['category 5: "cat", which no annotation uses']),
        ([(5, "")], [5], []),
    ],
)  # fmt: skip
def test_a_class_that_nothing_has_and_no_name_tells_apart_is_left_out(
    categories: list[tuple[int, str]], kept: list[int], left_out: list[str]
) -> None:
    content = {**COMMON, "categories": [{"id": one, "name": name} for one, name in categories], "annotations": [BOX]}

    text = read(content)

    assert [category.id for category in text.categories] == kept
    assert list(text.examples.get("categories_left_out", ())) == left_out
    assert text.other["categories"] == content["categories"]  # from which the json is made again
