"""The annotations of shards in an evaluation: those that `evaluate` reads, for the images of the shards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.coco.text import read_coco
from pipelines.evaluation.annotations import read_annotations, truth_sha256
from pipelines.shards.config import ShardConfig
from pipelines.shards.plan import ShardPlan
from pipelines.shards.reader import ShardReader, read_index
from pipelines.shards.sharding import WriteShards, _find_images, write_shards
from pipelines.shards.truth import shard_truth
from pipelines.shards.writer import ShardSpec, WrittenShard, shard_work, write_shard
from pipelines.store import Store, open_store


def written(folder: Path, document: dict[str, Any], **options: Any) -> Store:
    """Shards of a json, written in this process."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for image in document["images"]:
        Image.new("RGB", (16, 12)).save(pictures / image["file_name"])
    (folder / "truth.json").write_text(json.dumps(document))
    config = ShardConfig(str(folder / "truth.json"), str(pictures), str(folder / "out"), **options)
    coco = read_coco((folder / "truth.json").read_bytes(), name="truth.json")

    def write(*, spec: ShardSpec, plan: ShardPlan, there: set[str]) -> Iterator[WrittenShard]:
        for number in range(len(plan.shards)):
            yield write_shard(spec, shard_work(coco, plan, number))

    @contextmanager
    def writing() -> Iterator[WriteShards]:
        yield write

    write_shards(config, coco, _find_images(config, coco), writing, lambda _: None, began=time.monotonic())
    return open_store(config.out)


def document_of(*ids: object) -> dict[str, Any]:
    return {
        "categories": [{"id": 0, "name": "cells", "supercategory": "none"}, {"id": 1, "name": "cells"}],
        "images": [{"id": one, "file_name": f"{one}.png", "width": 16, "height": 12} for one in ids],
        "annotations": [
            {"id": number, "image_id": one, "category_id": 1, "bbox": [1, 2, 3, 4]} for number, one in enumerate(ids)
        ],
    }


def test_an_unused_root_category_is_left_out_as_in_evaluate(tmp_path: Path) -> None:
    store = written(tmp_path, document_of(7, 8))

    truth = shard_truth(store)

    assert [category["id"] for category in truth["categories"]] == [1]
    assert truth_sha256(truth, {7, 8}) == read_annotations(str(tmp_path / "truth.json")).sha256


@pytest.mark.parametrize(("most", "expected"), [(None, [1, 2, 3]), (2, [1, 2])])
def test_images_have_the_numbers_of_their_rows_also_if_text_ids_come_after_the_last(
    most: int | None, expected: list[int], tmp_path: Path
) -> None:
    store = written(tmp_path, document_of(101, 102, "extra"), max_images=most)

    truth = shard_truth(store)

    assert ShardReader(store, read_index(store)).read_image_ids() == [expected]
    assert [image["id"] for image in truth["images"]] == expected
    assert [one["image_id"] for one in truth["annotations"]] == expected
    assert [image["original_id"] for image in truth["images"]][:2] == [101, 102]
