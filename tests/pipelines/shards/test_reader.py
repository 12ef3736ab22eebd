"""The index of shards and their reader."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detr.classes import Category
from detr.images.decoding import UnsupportedImage, decode
from pipelines.errors import RayDetrError
from pipelines.shards.reader import (
    INDEX_KEY,
    SHARD_SCHEMA,
    Json,
    ShardFile,
    ShardIndex,
    ShardReader,
    TrainingImage,
    decode_training_image,
    read_index,
    write_index,
)
from pipelines.shards.rows import LEFT_OUT_KEY, LEFT_OUT_SCHEMA, RowsFile, coco_json, image_row
from pipelines.store import Store
from tests.detr.images.test_pillow import tiff
from tests.memory_store import MemoryStore, memory_store


def jpeg(height: int, width: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(sink, "JPEG")
    return sink.getvalue()


def image(image_id: int, height: int, width: int) -> Json:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width}


BOX = {"id": 4, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 1}
IMAGES = [image(70, 8, 12), image(60, 9, 13), image(50, 10, 14)]
ANNOTATIONS = [
    {**BOX, "image_id": 60},
    {**BOX, "image_id": 70, "segmentation": [[1, 2, 3, 4]]},
    {**BOX, "image_id": 60, "id": 5},
    {**BOX, "image_id": 99, "id": 6},
]


def row(position: int) -> Json:
    entry = IMAGES[position]
    own = [(place, one) for place, one in enumerate(ANNOTATIONS) if one["image_id"] == entry["id"]]
    return image_row(position, entry, own, data=jpeg(entry["height"], entry["width"]))


def put_file(store: Store, key: str, groups: list[list[Json]], file: RowsFile) -> ShardFile:
    sizes = [(one["height"], one["width"]) for group in groups for one in group]
    for group in groups:
        file.add(group)
    data, counts = file.finish({"sizes": json.dumps(sizes)})
    store.put(key, data)
    return ShardFile(key, sum(counts), "sha", len(data), counts)


@pytest.fixture
def store() -> Store:
    return memory_store()


@pytest.fixture
def index(store: Store) -> ShardIndex:
    """Two files: two row groups of one image, then one; an annotation of no image is left out."""
    homeless = image_row(None, {"id": 99}, [(3, ANNOTATIONS[3])], data=None, problem="no image")
    return ShardIndex(
        files=(
            put_file(store, "shard-00000.parquet", [[row(0)], [row(1)]], RowsFile(SHARD_SCHEMA)),
            put_file(store, "shard-00001.parquet", [[row(2)]], RowsFile(SHARD_SCHEMA)),
        ),
        categories=(Category(1, "cat"),),
        images=3,
        annotations=3,
        other={"info": {"year": 2017}, "categories": [{"id": 1, "name": "cat"}]},
        left_out=put_file(store, LEFT_OUT_KEY, [[homeless]], RowsFile(LEFT_OUT_SCHEMA)),
        report={"images": 3},
        examples={"crowds": ("one", "two")},
    )


def test_an_index_comes_back_as_it_was_written(store: Store, index: ShardIndex) -> None:
    write_index(store, index)
    write_index(store, index)

    assert read_index(store) == index


def test_a_second_index_is_refused(store: Store, index: ShardIndex) -> None:
    write_index(store, index)

    with pytest.raises(RayDetrError, match=r"index\.json exists already with other contents"):
        write_index(store, replace(index, images=4))


def test_a_place_without_index_has_no_shards(store: Store) -> None:
    with pytest.raises(RayDetrError, match=r"no training shards at memory://store: index\.json is missing"):
        read_index(store)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"version": 1, "files": []}', "damaged"),
        (b'{"version": 2}', "has version 2, and this release reads 1"),
    ],
)
def test_an_index_that_cannot_be_read_is_reported(store: Store, data: bytes, sentence: str) -> None:
    store.put(INDEX_KEY, data)

    with pytest.raises(RayDetrError, match=sentence):
        read_index(store)


def test_a_row_group_gives_its_images(store: Store, index: ShardIndex) -> None:
    (found,) = ShardReader(store, index).read_group(0, 1)

    assert found == TrainingImage(
        image_id=60,
        file_name="60.jpg",
        height=9,
        width=13,
        data=jpeg(9, 13),
        upright=False,
        annotations=(
            {"id": 4, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "iscrowd": 1},
            {"id": 5, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "iscrowd": 1},
        ),
    )
    assert decode_training_image(found).shape == (3, 9, 13)


def test_annotations_without_category_or_box_are_not_training_annotations(store: Store) -> None:
    odd: list[Json] = [
        {"image_id": 70, "category_id": 1, "bbox": [1, 2, 3]},
        {"image_id": 70, "category_id": "cat", "bbox": [1, 2, 3, 4]},
        {"image_id": 70, "category_id": 2, "bbox": [1, 2, 3, 4]},
    ]
    rows = [image_row(0, IMAGES[0], list(enumerate(odd)), data=b"")]
    index = ShardIndex((put_file(store, "shard-00000.parquet", [rows], RowsFile(SHARD_SCHEMA)),), (), 1, 3, {})

    (found,) = ShardReader(store, index).read_group(0, 0)

    assert found.annotations == ({"id": None, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0},)


def test_sizes_are_those_of_the_row_groups_in_order(store: Store, index: ShardIndex) -> None:
    assert ShardReader(store, index).read_sizes() == [[(8, 12)], [(9, 13)], [(10, 14)]]


class _CountingStore(MemoryStore):
    """Knows how many bytes each of its requests gave."""

    def __init__(self) -> None:
        super().__init__("memory://counted")
        self.lengths: list[int] = []

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        self.lengths.append(length)
        return super().get_range(key, start, length)


def test_a_row_group_is_one_request_and_a_footer_is_fetched_once() -> None:
    store = _CountingStore()
    big = {**row(0), "image": bytes(300_000)}
    groups = [[big], [big], [big]]
    index = ShardIndex((put_file(store, "shard-00000.parquet", groups, RowsFile(SHARD_SCHEMA)),), (), 3, 0, {})
    reader = ShardReader(store, index)
    reader.read_sizes()
    footer_requests = len(store.lengths)

    for group in (2, 0, 1):
        reader.read_group(0, group)

    assert footer_requests <= 2
    assert len(store.lengths) == footer_requests + 3
    assert all(300_000 < length < 310_000 for length in store.lengths[footer_requests:])


def test_many_threads_read_at_once(store: Store, index: ShardIndex) -> None:
    reader = ShardReader(store, index)
    places = [(0, 0), (0, 1), (1, 0)] * 40

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: reader.read_group(*place)[0].image_id, places))

    assert found == [70, 60, 50] * 40


def test_a_file_that_is_not_the_listed_one_is_refused(store: Store, index: ShardIndex) -> None:
    swapped = replace(index, files=(replace(index.files[0], row_groups=(2,)), index.files[1]))

    with pytest.raises(
        RayDetrError, match=r"shard-00000\.parquet does not match index\.json: it has 2 rows in 2 row gr"
    ):
        ShardReader(store, swapped).read_group(0, 0)


def test_damaged_bytes_are_reported_with_the_file(store: Store, index: ShardIndex) -> None:
    data = bytearray(store.get("shard-00001.parquet").data)
    data[data.index(b"\xff\xd8\xff") + 100] ^= 1  # in the photograph
    store.put("shard-00001.parquet", bytes(data))

    with pytest.raises(RayDetrError, match=r"memory://store/shard-00001\.parquet is damaged"):
        ShardReader(store, index).read_group(1, 0)


def test_a_damaged_picture_or_one_of_another_size_stops_the_training(store: Store, index: ShardIndex) -> None:
    (found,) = ShardReader(store, index).read_group(0, 0)

    with pytest.raises(RayDetrError, match=r"image 70 \(70\.jpg\) cannot be decoded: .*--no-decode-check"):
        decode_training_image(replace(found, data=found.data[:50]))
    with pytest.raises(
        RayDetrError, match=r"has 12 x 8 pixels \(width x height\), but its boxes were drawn for 12 x 9"
    ):
        decode_training_image(replace(found, height=9))


@pytest.mark.parametrize(("dtype", "shown"), [(np.uint16, 15), (np.int32, 16), (np.float32, 16)])
def test_a_nearly_black_picture_in_shards_of_earlier_versions_is_read(
    store: Store, index: ShardIndex, dtype: type[np.generic], shown: int
) -> None:
    (found,) = ShardReader(store, index).read_group(0, 0)
    dark = np.full((9, 12, 3) if dtype is np.uint16 else (9, 12), 4000, dtype)
    data = tiff(dark, photometric=2 if dtype is np.uint16 else 1, more={339: (3,)} if dtype is np.float32 else None)

    with pytest.raises(UnsupportedImage, match="nearly black"):
        decode(data)
    assert decode_training_image(replace(found, data=data, height=9, width=12)).unique().tolist() == [shown]


def test_the_json_comes_back(store: Store, index: ShardIndex) -> None:
    write_index(store, index)

    assert coco_json(store) == {**index.other, "images": IMAGES, "annotations": ANNOTATIONS}
