"""A collection of lists and annotations as people have them, where it is at hand; the other tests write theirs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.errors import BudgetExceeded, UsageError
from pipelines.evaluation.evaluate import evaluate_results, evaluate_table
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from pipelines.shards.config import ShardConfig
from pipelines.shards.reader import read_index
from pipelines.shards.rows import coco_json
from pipelines.shards.sharding import shard
from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "wild"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"no such inputs: put them into {FOLDER}")


@pytest.mark.parametrize(
    "name",
    ["60-csv-headerless/list.csv", "62-csv-spaces/list.csv", "64-tsv/list.tsv", "75-parquet-binary/list.parquet"],
)
def test_a_list_names_its_three_images(name: str) -> None:
    images = [item.uri for item in list_objects([str(FOLDER / name)]) if isinstance(item, LakeObject)]

    folder = (FOLDER / name).parent / "images"
    assert images == [f"file://{folder}/{one}.jpg" for one in "abc"]
    assert all(Path(uri.removeprefix("file://")).exists() for uri in images)


def sharded(name: str, out: Path) -> ShardConfig:
    return ShardConfig(str(FOLDER / name / "ann.json"), str(FOLDER / name / "images"), str(out / "shards"))


@pytest.mark.parametrize(
    ("name", "findings", "ap"),
    [
        ("01-string-image-ids", {"usable_annotations": 6}, 0.9),
        ("03-float-ids", {"usable_annotations": 6}, 0.9),
        ("05-string-category-ids", {"usable_annotations": 6}, 0.9),
        ("12-iscrowd-string1", {"usable_annotations": 4, "crowds": 2}, 0.9),
        ("36-empty-category-name", {"usable_annotations": 6}, 0.9),
        ("38-category-0-undeclared", {"usable_annotations": 3, "undeclared_categories": 3}, 0.0),
    ],
)
def test_results_are_measured_and_what_is_wrong_is_counted(name: str, findings: dict[str, int], ap: float) -> None:
    evaluation = evaluate_results(str(FOLDER / name / "results.json"), str(FOLDER / name / "ann.json"))

    assert evaluation.annotation_findings == findings
    assert pytest.approx(ap, abs=1e-9) == evaluation.average_precision.AP


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("01-string-image-ids", {"images_numbered": 3, "usable_annotations": 6}),
        ("03-float-ids", {"usable_annotations": 6}),
        ("05-string-category-ids", {"numbers_as_text": 6, "usable_annotations": 6}),
        ("12-iscrowd-string1", {"crowds": 2, "usable_annotations": 4}),
        ("52-roboflow-root-class", {"categories_left_out": 1, "usable_annotations": 6}),
    ],
)
def test_annotations_are_sharded_and_come_back(name: str, report: dict[str, int], tmp_path: Path) -> None:
    config = sharded(name, tmp_path)

    shard(config)

    store = open_store(config.out)
    assert read_index(store).report == {"annotations": 6, "duplicate_pictures": 2, "images": 3, **report}
    assert coco_json(store) == json.loads(Path(config.annotations).read_text())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("36-empty-category-name", r"the category 2 is called ''"),
        (
            "38-category-0-undeclared",
            r"3 of 6 annotations cannot be used for training.* undeclared categories 3, such as annot",
        ),
    ],
)
def test_annotations_that_cannot_be_trained_on_are_refused(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, BudgetExceeded), match=sentence):
        shard(sharded(name, tmp_path))


def test_images_of_one_name_on_two_memory_cards_are_distinguished(tmp_path: Path) -> None:
    folder = FOLDER / "51-same-name-in-subfolders"
    names = ["cam1/IMG_0001.jpg", "cam2/IMG_0001.jpg", "cam2/IMG_0002.jpg"]
    boxes = Detected([1, 2], ["square", "disc"], [0.9, 0.8], [(40, 50, 100, 110), (180, 90, 260, 160)])
    uris = [f"file://{folder}/images/{name}" for name in names] + ["file:///a/quite/other/IMG_0001.jpg"]
    rows = [Row(uri, height=240, width=320, detections=boxes) for uri in uris]
    origin = Origin("shapes@0123456789ab", 0.0, "run-1", 0, datetime(2026, 11, 28, tzinfo=UTC))
    data = encode(rows_to_table(rows, origin=origin), {"configuration": "{}"})
    (tmp_path / "data" / "run-1").mkdir(parents=True)
    (tmp_path / "data" / "run-1" / "00000.parquet").write_bytes(data)

    evaluation = evaluate_table(str(tmp_path), str(folder / "ann.json"))

    assert (evaluation.evaluated, evaluation.missing, evaluation.unannotated) == (3, (), 1)
    assert pytest.approx(1.0) == evaluation.average_precision.AP
