"""Which images go into which shard, and that a place belongs to one plan."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.coco.text import CocoText, read_coco
from pipelines.errors import RayDetrError
from pipelines.shards.plan import PLAN_KEY, Found, find_images, hold_plan, plan_shards
from pipelines.store import Store
from tests.memory_store import memory_store

PLAN: dict[str, Any] = {"version": 1, "images": "s3://b/images", "shard_megabytes": 256}


def coco_of(images: list[tuple[int, str]]) -> CocoText:
    entries = [{"id": one, "file_name": name, "width": 4, "height": 3} for one, name in images]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    return read_coco(json.dumps(content).encode(), name="x.json")


def folder_of(files: dict[str, int]) -> Store:
    store = memory_store()
    for name, size in files.items():
        store.put(name, b"x" * size)
    return store


def found_of(sizes: list[int]) -> Found:
    return Found(np.array(sizes, np.int64), "digest", 0, None)


def test_one_listing_gives_the_sizes_and_counts_what_the_json_does_not_name() -> None:
    coco = coco_of([(1, "b.jpg"), (2, "gone.jpg"), (3, "train/a.jpg"), (4, "./b.jpg")])

    found = find_images(folder_of({"b.jpg": 5, "train/a.jpg": 7, "readme.txt": 2, "zzz": 1}), coco)

    assert found.size_bytes.tolist() == [5, -1, 7, 5]
    assert (found.unlisted_count, found.unlisted_example) == (2, "readme.txt")


def test_an_image_that_is_spelled_otherwise_is_the_only_object_that_is_called_so() -> None:
    names = [
        "My%20Photo.JPG",
        "x\\b.jpg",
        "u\u0308.jpg",
        "/data/local-files/?d=d.jpg",
        "E.jpg",
        "e.JPG",
        "F.jpg",
        "../g.jpg",
    ]
    coco = coco_of(list(enumerate(names)))
    files = {
        "my photo.jpg": 1,
        "x/b.jpg": 2,
        "\u00fc.jpg": 3,
        "d.jpg": 4,
        "e.jpg": 5,
        "f.jpg": 6,
        "f.JPG": 7,
        "g.jpg": 8,
    }

    found = find_images(folder_of(files), coco)
    plan = plan_shards(coco, found, most_bytes=100)

    assert found.size_bytes.tolist() == [1, 2, 3, 4, -1, -1, -1, -1]
    assert found.respelled == plan.respelled == {0: "my photo.jpg", 1: "x/b.jpg", 2: "\u00fc.jpg", 3: "d.jpg"}
    assert found.unlisted_count == 4
    assert {position: kind for position, (kind, _) in plan.problems.items()} == {
        4: "missing", 5: "missing", 6: "missing", 7: "outside_folder",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "names", "found"),
    [
        ("s3://lake/images", ["C:\\me\\images\\a.jpg", "C:\\me\\images\\cam1\\b.jpg"], {0: "a.jpg", 1: "cam1/b.jpg"}),
        ("s3://lake/images", ["/home/me/images/cam1/b.jpg"], {0: "cam1/b.jpg"}),
        ("s3://lake/images", ["/home/images/images/a.jpg"], {0: "a.jpg"}),
        ("s3://lake/images", ["/data/val/a.jpg"], {}),
        ("s3://lake/images", ["s3://lake/images/a.jpg", "s3://lake/images/gone.jpg"], {0: "a.jpg"}),
        ("s3://lake/images", ["/data/local-files/?d=images/a.jpg"], {0: "a.jpg"}),
        ("s3://lake/images", ["lake/images/a.jpg", "lake/images/cam1/b.jpg"], {0: "a.jpg", 1: "cam1/b.jpg"}),
        ("s3://lake/images", ["val/a.jpg"], {}),  # another folder's picture
        ("s3://lake/images", ["../images/a.jpg"], {}),
        ("s3://lake/images", ["/images/a.jpg", "/other/a.jpg"], {}),
        ("s3://lake/images", ["/images/a.jpg", "/images/A.JPG"], {}),  # of two images, either may be meant
    ],
)
def test_if_no_name_is_listed_the_folders_that_all_begin_with_are_left_out(
    folder: str, names: list[str], found: dict[int, str]
) -> None:
    store = memory_store(folder)
    for key in ("a.jpg", "cam1/b.jpg"):
        store.put(key, b"x")

    listed = find_images(store, coco_of(list(enumerate(names))))

    assert listed.respelled == found
    assert [size != -1 for size in listed.size_bytes] == [position in found for position in range(len(names))]


def test_the_digest_knows_the_jsons_images_and_no_others() -> None:
    coco = coco_of([(1, "a.jpg"), (2, "b.jpg")])
    digests = [
        find_images(folder_of(files), coco).digest
        for files in (
            {"a.jpg": 1, "b.jpg": 2},
            {"a.jpg": 1, "b.jpg": 2, "c.jpg": 3},  # etags of the memory store are numbers of writes
            {"a.jpg": 1, "b.jpg": 3},
            {"a.jpg": 1},
        )
    ]

    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(-2, 100), min_size=1, max_size=40),
    most_bytes=st.integers(1, 300),
    most_images=st.integers(1, 9),
    max_images=st.none() | st.integers(1, 50),
)
def test_every_image_is_in_one_shard_in_order_or_has_a_problem(
    sizes: list[int], most_bytes: int, most_images: int, max_images: int | None
) -> None:
    coco = coco_of([(number, f"{number}.jpg") for number in range(len(sizes))])

    plan = plan_shards(coco, found_of(sizes), most_bytes=most_bytes, most_images=most_images, max_images=max_images)

    wanted = range(len(sizes))[:max_images]
    planned = [position for positions, _ in plan.shards for position in positions.tolist()]
    assert plan.images == len(wanted)
    assert planned == [position for position in wanted if sizes[position] != -1]
    assert sorted(plan.problems) == [position for position in wanted if sizes[position] == -1]
    for positions, size_bytes in plan.shards:
        assert size_bytes.tolist() == [max(sizes[position], 0) for position in positions.tolist()]
        assert 1 <= len(positions) <= most_images
        assert len(positions) == 1 or size_bytes.sum() <= most_bytes


def test_a_shard_is_filled_before_the_next_is_begun() -> None:
    coco = coco_of([(number, f"{number}.jpg") for number in range(6)])

    plan = plan_shards(coco, found_of([4, 4, 3, 1, 9, 2]), most_bytes=8)

    assert [positions.tolist() for positions, _ in plan.shards] == [[0, 1], [2, 3], [4], [5]]


def test_what_is_left_out_before_anything_is_read() -> None:
    coco = coco_of([(1, "a.jpg"), (1, "b.jpg"), (2, "gone.jpg"), (3, "../c.jpg")])

    problems = plan_shards(coco, found_of([5, 5, -1, -1]), most_bytes=100).problems

    assert problems == {
        1: ("repeated_id", "an earlier image has the same id, 1, and gets the annotations"),
        2: ("missing", "there is no 'gone.jpg' in the folder of images"),
        3: ("outside_folder", "the file name '../c.jpg' leads outside the folder of images"),
    }


def test_a_place_is_held_by_its_plan() -> None:
    out = memory_store()
    hold_plan(out, PLAN)
    out.put("shard-00000.parquet", b"x")

    hold_plan(out, PLAN)

    with pytest.raises(
        RayDetrError,
        match=r"contains shards of another configuration: shard megabytes 256, now 128\. Use the configuration",
    ):
        hold_plan(out, {**PLAN, "shard_megabytes": 128})


def test_a_place_with_strangers_is_refused() -> None:
    out = memory_store()
    out.put("notes.txt", b"x")

    with pytest.raises(RayDetrError, match=r"is not empty: it contains notes\.txt"):
        hold_plan(out, PLAN)
    assert [entry.key for entry in out.list()] == ["notes.txt"]


@pytest.mark.parametrize("data", [b"{", b"[1]", b"\xff"])
def test_a_damaged_plan_is_reported(data: bytes) -> None:
    out = memory_store()
    out.put(PLAN_KEY, data)

    with pytest.raises(RayDetrError, match=r"_plan\.json is damaged"):
        hold_plan(out, PLAN)
