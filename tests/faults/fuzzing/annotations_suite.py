"""A damaged COCO json, or results of one: read as far as shards and evaluation read it, or refused in a sentence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow as pa

from detr.evaluation.average_precision import average_precision
from pipelines.coco.text import read_coco
from pipelines.errors import RayDetrError
from pipelines.evaluation.annotations import read_annotations
from pipelines.evaluation.results_file import read_results
from pipelines.shards.checks import check_annotations
from pipelines.shards.left_out import write_left_out
from pipelines.shards.plan import find_images, plan_shards
from pipelines.shards.reader import SHARD_SCHEMA
from pipelines.shards.rows import coco_annotations, coco_image, image_row
from tests.faults.fuzzing.mutations import mutate, random_of
from tests.faults.fuzzing.structures import damage_json
from tests.memory_store import memory_store

COCO = json.dumps(
    {
        "info": {"year": 2026},
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 60, "license": 1} for number in range(4)
        ],
        "annotations": [
            {"id": number, "image_id": number % 4, "category_id": 1 + number % 2, "bbox": [1.5, 2, 10, 12.25],
             "area": 100.0, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6]]}
            for number in range(6)
        ],
        "categories": [{"id": 1, "name": "disc", "supercategory": "shape"}, {"id": 2, "name": "ring"}],
    }
).encode()  # fmt: skip
# as camera traps and exporters have it: ids as text, no sizes, numbers as text
ODD = json.dumps(
    {
        "images": [{"id": f"cam-{number}", "file_name": f"{number}.jpg"} for number in range(4)],
        "annotations": [
            {"id": f"box-{number}", "image_id": f"cam-{number % 4}", "category_id": str(1 + number % 2),
             "bbox": ["1.5", "2", "10", "12.25"], "area": None, "iscrowd": "0"}
            for number in range(6)
        ],
        "categories": [{"id": "0", "name": "shapes"}, {"id": "1", "name": "disc"}, {"id": 2.0, "name": "ring"}],
    }
).encode()  # fmt: skip
RESULTS = json.dumps(
    [{"image_id": number % 4, "category_id": 1, "bbox": [1, 2, 10, 12.5], "score": 0.5} for number in range(6)]
).encode()


class AnnotationsSuite:
    """Even cases are annotations, odd ones results."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._file = Path(tempfile.mkdtemp(prefix="fuzzed-annotations-")) / "damaged.json"

    def data(self, number: int) -> bytes:
        """Return the damaged json."""
        whole = RESULTS if number % 2 else ODD if number % 4 else COCO
        random = random_of(self._seed, number)
        if number < 0:
            return whole
        return damage_json(random, whole) if random.random() < 0.7 else mutate(random, whole, (COCO, ODD, RESULTS))

    def outcome(self, number: int) -> str:
        """Return which readers refuse it, or that none does."""
        data = self.data(number)
        self._file.write_bytes(data)
        uses = {"results": self._results} if number % 2 else {"evaluation": self._evaluation, "shards": self._shards}
        refused = []
        for name, use in uses.items():
            try:
                use()
            except RayDetrError as error:
                sentence = str(error)
                sentence.encode()
                assert "damaged.json" in sentence, sentence
                assert len(sentence) < 2000, sentence[:3000]
                refused.append(name)
        return f"refused by {' and '.join(refused)}" if refused else f"read by {' and '.join(uses)}"

    def _results(self) -> None:
        read_results(str(self._file), {number: number for number in range(4)})

    def _evaluation(self) -> None:
        read = read_annotations(str(self._file))
        read.by_file_name()
        average_precision(read.truth, [], image_ids=read.image_ids)

    def _shards(self) -> None:
        coco = read_coco(self._file.read_bytes(), name="damaged.json")
        folder = memory_store("memory://images")
        for number in range(3):
            folder.put(f"{number}.jpg", b"a picture")
        plan = plan_shards(coco, find_images(folder, coco), most_bytes=10)
        category_ids = {category.id for category in coco.categories}
        for positions, _ in plan.shards:
            for position in positions.tolist():
                image = json.loads(coco.image(position))
                annotations = [(place, json.loads(text)) for place, text in coco.annotations_of(position)]
                check_annotations((one for _, one in annotations), 40, 60, category_ids=category_ids)
                number = int(coco.image_ids[position])
                row = image_row(position, image, annotations, data=b"", image_id=number, size=(40, 60))
                back = pa.Table.from_pylist([row], schema=SHARD_SCHEMA).to_pylist()[0]
                assert _comparable(coco_image(back)) == _comparable(image)
                assert _comparable(dict(coco_annotations(back))) == _comparable(dict(annotations))
        write_left_out(memory_store("memory://shards"), coco, plan.problems)


SUITE = AnnotationsSuite


def _comparable(value: object) -> object:
    """Return the value with NaN, which is not equal to itself, as a word."""
    return json.loads(json.dumps(value), parse_constant=str)
