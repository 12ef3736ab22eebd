"""Small training shards, for everything that reads them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence

import pytest
from PIL import Image

from detr.classes import Category
from pipelines.shards.reader import METADATA_PREFIX, SHARD_SCHEMA, SIZES_KEY, ShardFile, ShardIndex, write_index
from pipelines.shards.rows import RowsFile, image_row
from pipelines.store import open_store

ROW_GROUPS = ((4, 3), (5, 4, 1), (4,))  # images in each row group of three shards: 21
SIZES = ((48, 64), (64, 48), (40, 40))  # (height, width)


@pytest.fixture(scope="session")
def drawn_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of shards with 21 images of ids 100 to 120 and three sizes; image i has i % 3 boxes."""
    folder = str(tmp_path_factory.mktemp("drawn-shards"))
    write_drawn_shards(folder, ROW_GROUPS)
    return folder


def write_drawn_shards(folder: str, row_groups: Sequence[Sequence[int]]) -> None:
    store = open_store(folder)
    files, position, annotations = [], 0, 0
    for number, groups in enumerate(row_groups):
        file, sizes = RowsFile(SHARD_SCHEMA), []
        for count in groups:
            rows = []
            for image in range(position, position + count):
                height, width = SIZES[image % len(SIZES)]
                entry = {"id": 100 + image, "file_name": f"{image}.jpg", "height": height, "width": width}
                boxes = [
                    {"id": 10 * image + box, "image_id": 100 + image, "category_id": 7 + 2 * box,
                     "bbox": [4.0 + image, 8.0, 10.0, 16.0 - box], "area": 100.0, "iscrowd": 0}
                    for box in range(image % 3)
                ]  # fmt: skip
                rows.append(
                    image_row(image, entry, list(enumerate(boxes, annotations)), data=_jpeg(image, height, width))
                )
                sizes.append((height, width))
                annotations += len(boxes)
            file.add(rows)
            position += count
        data, counts = file.finish({SIZES_KEY.removeprefix(METADATA_PREFIX): json.dumps(sizes)})
        key = f"shard-{number:05d}.parquet"
        store.put(key, data)
        files.append(ShardFile(key, sum(groups), hashlib.sha256(data).hexdigest(), len(data), counts))
    categories = (Category(7, "seven"), Category(9, "nine"))
    write_index(store, ShardIndex(tuple(files), categories, images=position, annotations=annotations, other={}))


def _jpeg(image: int, height: int, width: int) -> bytes:
    picture = Image.new("RGB", (width, height), (10 * image, 255 - 10 * image, 128))
    picture.paste((255, 255, 0), (4 + image, 8, 14 + image, 24))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=95)
    return sink.getvalue()
