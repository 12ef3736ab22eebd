"""What a table or a results file is worth, to the last digit, and what is said beside the figures."""

import contextlib
import copy
import gzip
import io
import json
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr.evaluation.evaluators import EVALUATORS, Evaluator
from pipelines.evaluation.annotations import read_annotations
from pipelines.evaluation.evaluate import Evaluation, ThresholdCost, evaluate_results, evaluate_table
from pipelines.evaluation.table_results import RowChoice
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

GOLDEN = Path(__file__).parents[2] / "golden"

Found = tuple[int, float, list[float]]  # category id, score, box as corners

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NAMES = {3: "cat", 7: "dog"}
CAT_BOX, DOG_BOX = [10.0, 10.0, 50.0, 50.0], [0.0, 0.0, 200.0, 100.0]
CAT: Found = (3, 0.9, CAT_BOX)
DOG: Found = (7, 0.8, DOG_BOX)


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    """A cat in a.jpg, a dog in b.jpg."""
    return write_annotations(tmp_path / "instances.json", {"a.jpg": (3, CAT_BOX), "b.jpg": (7, DOG_BOX)})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table"


def write_annotations(path: Path, boxes: Mapping[str, tuple[int, list[float]]]) -> str:
    truth = {
        "images": [
            {"id": number, "file_name": name, "height": 240, "width": 320} for number, name in enumerate(boxes, start=1)
        ],
        "annotations": [
            {
                "id": number, "image_id": number, "category_id": category, "iscrowd": 0,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": (box[2] - box[0]) * (box[3] - box[1]),
            }
            for number, (category, box) in enumerate(boxes.values(), start=1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }  # fmt: skip
    path.write_text(json.dumps(truth))
    return str(path)


def labelled(uri: str, *found: Found, height: int = 240, width: int = 320) -> Row:
    detected = Detected(
        [one[0] for one in found], [NAMES.get(one[0], "undeclared") for one in found],
        [one[1] for one in found], [one[2] for one in found],
    )  # fmt: skip
    return Row(uri, height=height, width=width, detections=detected)


def failed(uri: str, kind: str = "truncated") -> Row:
    return Row(uri, error_kind=kind, error="it ends too early")


def publish(
    table: Path, rows: Sequence[Row], *, run_id: str = "run-1", file: int = 0, threshold: float = 0.0, hours: int = 0
) -> None:
    origin = Origin("pets@0123456789ab", threshold, run_id, file, NOON + timedelta(hours=hours))
    path = table / "data" / run_id / f"{file:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(rows_to_table(rows, origin=origin)))


def evaluated(table: Path, annotations: str, **options: Any) -> Evaluation:
    return evaluate_table(str(table), annotations, **options)


def ap(evaluation: Evaluation) -> float:
    return round(evaluation.average_precision.AP, 9)  # pycocotools says 0.9999999999999998 for "all"


def test_a_table_that_says_the_truth_has_ap_1(table: Path, annotations: str) -> None:
    publish(table, [labelled("s3://lake/2026/a.jpg", CAT), labelled("s3://lake/2026/b.jpg", DOG)])

    evaluation = evaluated(table, annotations)

    assert ap(evaluation) == 1.0
    assert (evaluation.images, evaluation.evaluated, evaluation.detections) == (2, 2, 2)
    assert (evaluation.missing, evaluation.errors, evaluation.other_size) == ((), (), ())
    assert (evaluation.unannotated, evaluation.threshold) == (0, 0.0)
    assert evaluation.models == ("pets@0123456789ab",)


def test_boxes_are_turned_from_corners_into_coco_s_form(table: Path, annotations: str) -> None:
    shifted: Found = (3, 0.9, [10.0, 10.0, 50.0, 38.8])  # IoU 0.72 with the truth
    publish(table, [labelled("a.jpg", shifted), labelled("b.jpg", DOG)])

    cat, _ = evaluated(table, annotations).average_precision.classes
    assert round(cat.AP, 9) == 0.5


def test_rows_of_all_files_and_runs_count_together(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)], file=0)
    publish(table, [], file=1)
    publish(table, [labelled("b.jpg", DOG)], run_id="run-2", hours=1)

    assert ap(evaluated(table, annotations)) == 1.0


@pytest.mark.parametrize("newer_run", ["run-0", "run-2"])
def test_the_latest_row_of_an_image_counts(table: Path, annotations: str, newer_run: str) -> None:
    publish(table, [labelled("a.jpg", DOG), labelled("b.jpg", DOG)], run_id="run-1")
    publish(table, [labelled("a.jpg", CAT)], run_id=newer_run, hours=1)

    assert ap(evaluated(table, annotations)) == 1.0


def test_an_error_that_passes_hides_no_row_of_before_and_one_that_stays_does(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT), labelled("b.jpg", DOG)], run_id="run-1")
    publish(table, [failed("a.jpg", "fetch_failed"), failed("b.jpg")], run_id="run-2", hours=1)

    evaluation = evaluated(table, annotations)

    assert (evaluation.errors, evaluation.evaluated) == (("b.jpg",), 1)


def test_one_run_can_be_chosen(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT), labelled("b.jpg", DOG)], run_id="run-1")
    publish(table, [labelled("a.jpg"), labelled("b.jpg")], run_id="run-2", hours=1)

    assert ap(evaluated(table, annotations)) == 0.0
    assert ap(evaluated(table, annotations, choice=RowChoice(run_id="run-1"))) == 1.0


def test_missing_images_and_errors_are_named_and_count_as_missed(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(
        tmp_path / "four.json", dict.fromkeys(("a.jpg", "b.jpg", "c.jpg", "d.jpg"), (3, CAT_BOX))
    )
    publish(table, [labelled("x/a.jpg", CAT), failed("x/c.jpg"), labelled("x/b.jpg"), labelled("x/other.jpg", DOG)])

    evaluation = evaluated(table, annotations)

    assert (evaluation.missing, evaluation.errors) == (("d.jpg",), ("c.jpg",))
    assert (evaluation.images, evaluation.evaluated, evaluation.unannotated) == (4, 2, 1)
    assert evaluation.average_precision.AR100 == 0.25


def test_a_threshold_is_reported_and_refused_where_it_is_not_allowed(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)], file=0)
    publish(table, [labelled("b.jpg", DOG)], file=1, threshold=0.05)

    assert evaluated(table, annotations, allow_thresholded=True).threshold == pytest.approx(0.05)
    with pytest.raises(ValueError, match=r"threshold 0\.05: .* Label into another table with --threshold 0"):
        evaluated(table, annotations)


def test_what_a_threshold_costs_is_reported_as_far_as_it_can_be_known(table: Path, annotations: str) -> None:
    unsure: Found = (7, 0.25, DOG_BOX)
    crowd: list[Found] = [(3, 0.9, CAT_BOX)] * 100
    publish(table, [labelled("a.jpg", *crowd), labelled("b.jpg", unsure)], threshold=0.125)

    evaluation = evaluated(table, annotations, allow_thresholded=True)

    assert ap(evaluation) == 1.0
    # b.jpg has fewer than 100; its dog of score 0.25 is at twice the threshold, so it stays
    assert evaluation.threshold_cost == ThresholdCost(0.125, 1, 0.25, evaluation.average_precision.AP)
    publish(table, [labelled("a.jpg", CAT), labelled("b.jpg", unsure)], threshold=0.2, run_id="run-2", hours=1)
    cost = evaluated(table, annotations, allow_thresholded=True).threshold_cost
    assert cost is not None
    assert (round(cost.AP_doubled, 9), cost.short_images) == (0.5, 2)


def test_a_threshold_of_more_than_half_is_doubled_to_1(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT), labelled("b.jpg", DOG)], threshold=0.75)

    cost = evaluated(table, annotations, allow_thresholded=True).threshold_cost

    assert cost == ThresholdCost(0.75, 2, 1.0, 0.0)


def test_images_of_one_size_can_be_measured_alone(table: Path, annotations: str) -> None:
    truth = json.loads(Path(annotations).read_text())
    truth["images"][1].update(height=480, width=640)
    Path(annotations).write_text(json.dumps(truth))
    publish(table, [labelled("a.jpg", CAT), labelled("b.jpg", CAT, height=480, width=640), labelled("c.jpg")])

    small = evaluated(table, annotations, picture_size=(240, 320))
    large = evaluated(table, annotations, picture_size=(480, 640))

    assert (ap(small), small.images, small.detections, small.unannotated) == (1.0, 1, 1, 1)
    assert (ap(large), large.images) == (0.0, 1)
    with pytest.raises(ValueError, match=r"no annotated image is 640 x 480 \(height x width\).*240 x 320 \(1\)"):
        evaluated(table, annotations, picture_size=(640, 480))


def test_shuffled_rows_in_several_files_give_what_pycocotools_gives_by_hand(table: Path, tmp_path: Path) -> None:
    truth, rows = many_images()
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps(truth))
    draw = random.Random(3)  # noqa: S311 - the same in every run
    draw.shuffle(rows)
    for file in range(4):
        publish(table, rows[file::4], file=file, run_id=f"run-{file % 2}")

    evaluation = evaluated(table, str(annotations))

    expected = by_hand(truth, rows)
    assert list(evaluation.average_precision.numbers().values()) == expected
    assert 0.1 < expected[0] < 0.9


def many_images() -> tuple[dict[str, Any], list[Row]]:
    """Thirty images in an order of their own, with equal scores, crowds and boxes that are not whole."""
    draw = random.Random(8)  # noqa: S311
    images, annotations, rows = [], [], []
    for image_id in draw.sample(range(1000), 30):
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 240, "width": 320})
        found: list[Found] = []
        for _ in range(draw.randint(0, 6)):
            x, y = draw.uniform(0, 200), draw.uniform(0, 150)
            width, height = draw.uniform(5, 120), draw.uniform(5, 90)
            category = draw.choice([3, 7])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(draw.random() < 0.1),
                }
            )
            for _ in range(draw.randint(0, 3)):
                box = [side + draw.gauss(0, 5) for side in (x, y, x + width, y + height)]
                found.append((draw.choice([category, category, 3, 7, 90]), draw.randint(1, 5) / 5, box))
        found.sort(key=lambda one: -one[1])
        rows.append(labelled(f"s3://lake/{image_id}.jpg", *found))
    return {
        "images": images, "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }, rows  # fmt: skip


def by_hand(truth: dict[str, Any], rows: Sequence[Row]) -> list[float]:
    """What COCO's own demonstration does, with the numbers as the table has them: four bytes each."""
    results = []
    for row in rows:
        assert row.detections is not None
        found = row.detections
        for category, score, box in zip(
            np.asarray(found.category_ids).tolist(),
            np.asarray(found.scores, np.float32).tolist(),
            np.asarray(found.boxes_xyxy, np.float32).tolist(),
            strict=True,
        ):
            results.append(
                {"image_id": int(row.uri[10:-4]), "category_id": category, "score": score,
                 "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_coco_api_s_own_check_gives_its_figures(tmp_path: Path, evaluator: Evaluator) -> None:
    """Annotations and results of cocodataset/cocoapi, which publishes three digits; the rest is pycocotools 2.0.11."""
    files = []
    for name in ("cocoapi_bbox_results.json", "cocoapi_instances.json"):
        (tmp_path / name).write_bytes(gzip.decompress((GOLDEN / f"{name}.gz").read_bytes()))
        files.append(str(tmp_path / name))

    evaluation = evaluate_results(*files, evaluator=evaluator)

    assert evaluation.average_precision.numbers() == {
        "AP": 0.5045806987249628, "AP50": 0.6969727247299577, "AP75": 0.5729816669904824,
        "APs": 0.5856257209410443, "APm": 0.5193996948036719, "APl": 0.5013978986347466,
        "AR1": 0.38681277964578054, "AR10": 0.5936795762842003, "AR100": 0.595352982877607,
        "ARs": 0.6398109626113442, "ARm": 0.5664205978994309, "ARl": 0.5642905982905982,
    }  # fmt: skip
    assert (evaluation.images, evaluation.evaluated, evaluation.detections) == (100, 99, 734)
    assert evaluation.missing == ("COCO_val2014_000000001063.jpg",)


def test_a_results_file_says_nothing_of_thresholds_and_models(tmp_path: Path, annotations: str) -> None:
    results = tmp_path / "results.json"
    rows = [
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 200, 100], "score": 0.8},
        {"image_id": 2, "category_id": 90, "bbox": [0, 0, 200, 100], "score": 0.9},
    ]
    results.write_text(json.dumps(rows))

    evaluation = evaluate_results(str(results), annotations)

    assert ap(evaluation) == 0.5
    assert (evaluation.missing, evaluation.detections, evaluation.undeclared) == (("a.jpg",), 2, 1)
    assert (evaluation.threshold, evaluation.models) == (None, ())
    assert evaluation.annotations_sha256 == read_annotations(annotations).sha256


def test_a_results_file_can_be_measured_on_images_of_one_size(tmp_path: Path, annotations: str) -> None:
    truth = json.loads(Path(annotations).read_text())
    truth["images"][1].update(height=480, width=640)
    Path(annotations).write_text(json.dumps(truth))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 2, "category_id": 7, "bbox": [0, 0, 200, 100], "score": 0.8}]))

    large = evaluate_results(str(results), annotations, picture_size=(480, 640))
    small = evaluate_results(str(results), annotations, picture_size=(240, 320))

    assert (ap(large), large.images, large.missing) == (1.0, 1, ())
    assert (ap(small), small.detections, small.missing) == (0.0, 0, ("a.jpg",))


def test_a_table_without_any_of_the_images_is_missing_all(table: Path, annotations: str) -> None:
    publish(table, [labelled("z.jpg", CAT)])

    evaluation = evaluated(table, annotations)

    assert evaluation.missing == ("a.jpg", "b.jpg")
    assert (ap(evaluation), evaluation.models) == (0.0, ())


def test_metrics_hold_the_numbers_by_their_names_and_the_counts(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)])

    metrics = json.loads(json.dumps(evaluated(table, annotations).as_json()))

    assert (metrics["AP"], metrics["APs"]) == (pytest.approx(0.5), -1.0)
    assert metrics["class_agnostic_AP"] == pytest.approx(51 / 101)  # 51 of the 101 recalls are reached
    assert metrics["classes"][1] == {"category_id": 7, "name": "dog", "AP": 0.0, "annotations": 1}
    assert (metrics["images"], metrics["evaluated"], metrics["missing"]) == (2, 1, ["b.jpg"])
