"""COCO's json walked over: every entry found where it stands, what is no COCO json refused with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards.coco import NOWHERE, CocoText, image_key, name_hash, read_coco
from pipelines.stopped import RunStopped

CATEGORIES = [{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": -3, "name": "dog"}]


def image(image_id: int, **more: object) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "width": 64, "height": 48, **more}


def coco(images: list[Any], annotations: list[Any], **more: object) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": CATEGORIES, **more}


def read(content: object) -> CocoText:
    return read_coco(json.dumps(content).encode(), name="x.json")


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
            if (ids.index(entry["image_id"]) if entry["image_id"] in ids else NOWHERE) == position
        ]
        assert entries == expected


def test_ids_that_are_no_whole_numbers_are_of_no_image() -> None:
    annotations = [{"image_id": one} for one in (0, 0.0, False, "0", None, 0.5, 2**80, float("nan"))] + [{}]

    text = read(coco([image(0)], annotations))

    assert [place for place, _ in text.annotations_of(0)] == [0, 1]
    assert [place for place, _ in text.annotations_of(NOWHERE)] == [2, 3, 4, 5, 6, 7, 8]


def test_categories_have_their_own_ids_and_names() -> None:
    assert [(one.id, one.name) for one in read(coco([image(1)], [])).categories] == [(7, "cat"), (-3, "dog")]


def test_a_byte_order_mark_is_no_part_of_the_json() -> None:
    text = read_coco(b"\xef\xbb\xbf" + json.dumps(coco([image(1)], [])).encode(), name="x.json")

    assert text.image_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "this is no object"),
        (b"[]", "this is no object"),
        (b"\xff\xfe{", "not JSON in UTF-8"),
        (b"{", r"not JSON \(Expecting property name .*char 1\)"),
        (b'{"images": [{}', "no usable id"),
        (b'{"info": 1,}', "not JSON"),
        (b'{"info": 1} x', r"not JSON \(Extra data: .*char 12\)"),
        (b'{"info" 1}', "not JSON"),
        (b'{"info": 1 "a": 2}', "not JSON"),
        (b'{"info": 1, "info": 2}', "'info' is there twice"),
        (b'{"images": {}}', "images is no list"),
        (b'{"images": [1]}', r"images\[0\] is no object"),
        (b'{"annotations": [[]]}', r"annotations\[0\] is no object"),
        (b'{"annotations": [{},]}', "not JSON"),
        (b'{"annotations": []}', "there are no images"),
        (b'{"images": [], "annotations": [], "categories": []}', "there are no images"),
        (b"{}", "there are no images and no annotations"),
    ],
)
def test_what_is_no_coco_json_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(RunStopped, match=sentence):
        read_coco(data, name="x.json")


@pytest.mark.parametrize("field", ["id", "file_name", "width", "height"])
@pytest.mark.parametrize("value", [None, "", True, 1.5, [], 2**70])
def test_an_image_without_a_usable_field_is_named(field: str, value: object) -> None:
    with pytest.raises(RunStopped, match=rf"x.json: images\[1\] has no usable {field}\. Every"):
        read(coco([image(1), {**image(2), field: value}], []))


def test_an_image_without_any_field_is_told_all_of_them() -> None:
    with pytest.raises(RunStopped, match="no usable id and no usable file_name and no usable width and no usable heig"):
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
    with pytest.raises(RunStopped, match=sentence):
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
