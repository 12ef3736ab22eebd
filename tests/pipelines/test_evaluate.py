import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate import Evaluation, evaluate_table
from pipelines.file_names import file_name
from pipelines.run import RunStopped
from pipelines.table import Detected, Origin, Row, encode, rows_to_table

Found = tuple[int, float, list[float]]  # category id, score, box as corners

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
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
        [one[0] for one in found], ["cat" if one[0] == 3 else "dog" for one in found],
        [one[1] for one in found], [one[2] for one in found],
    )  # fmt: skip
    return Row(uri, height=height, width=width, detections=detected)


def failed(uri: str, kind: str = "truncated") -> Row:
    return Row(uri, error_kind=kind, error="it ends too early")


def publish(
    table: Path, rows: Sequence[Row], *, run_id: str = "run-1", file: int = 0, threshold: float = 0.0, hours: int = 0,
    model: str = "pets@0123456789ab",
) -> None:  # fmt: skip
    origin = Origin(model, threshold, run_id, file, NOON + timedelta(hours=hours))
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


def test_one_run_can_be_chosen(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT), labelled("b.jpg", DOG)], run_id="run-1")
    publish(table, [labelled("a.jpg"), labelled("b.jpg")], run_id="run-2", hours=1)

    assert ap(evaluated(table, annotations)) == 0.0
    assert ap(evaluated(table, annotations, run_id="run-1")) == 1.0


def test_missing_images_and_errors_are_named_and_count_as_missed(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(
        tmp_path / "four.json", dict.fromkeys(("a.jpg", "b.jpg", "c.jpg", "d.jpg"), (3, CAT_BOX))
    )
    publish(table, [labelled("x/a.jpg", CAT), failed("x/c.jpg"), labelled("x/b.jpg"), labelled("x/other.jpg", DOG)])

    evaluation = evaluated(table, annotations)

    assert (evaluation.missing, evaluation.errors) == (("d.jpg",), ("c.jpg",))
    assert (evaluation.images, evaluation.evaluated, evaluation.unannotated) == (4, 2, 1)
    assert evaluation.average_precision.AR100 == 0.25


def test_annotations_may_name_folders(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "folders.json", {"val2017/a.jpg": (3, CAT_BOX)})
    publish(table, [labelled("https://host/bucket/a.jpg?signature=abc", CAT)])

    assert ap(evaluated(table, annotations)) == 1.0


def test_two_images_of_one_file_name_are_refused_with_both_addresses(table: Path, annotations: str) -> None:
    publish(table, [labelled("s3://lake/1/a.jpg", CAT), labelled("s3://lake/2/a.jpg", CAT)])

    with pytest.raises(
        RunStopped, match=r"two images of the file name 'a\.jpg'.* s3://lake/1/a\.jpg and s3://lake/2/a"
    ):
        evaluated(table, annotations)


def test_equal_names_do_not_matter_where_nothing_is_annotated(table: Path, annotations: str) -> None:
    rows = [labelled("1/a.jpg", CAT), labelled("1/b.jpg", DOG), labelled("1/c.jpg"), labelled("2/c.jpg")]
    publish(table, rows)

    evaluation = evaluated(table, annotations)

    assert (ap(evaluation), evaluation.unannotated) == (1.0, 2)


def test_two_annotated_images_of_one_file_name_are_refused(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "twice.json", {"1/a.jpg": (3, CAT_BOX), "2/a.jpg": (3, CAT_BOX)})
    publish(table, [labelled("a.jpg", CAT)])

    with pytest.raises(RunStopped, match=r"the images '1/a\.jpg' and '2/a\.jpg' have the same file name"):
        evaluated(table, annotations)


def test_a_threshold_is_told_and_refused_where_it_is_not_allowed(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)], file=0)
    publish(table, [labelled("b.jpg", DOG)], file=1, threshold=0.05)

    assert evaluated(table, annotations).threshold == pytest.approx(0.05)
    with pytest.raises(ValueError, match=r"the rows have threshold 0\.05: .* Label with --threshold 0"):
        evaluated(table, annotations, allow_thresholded=False)


def test_rows_of_two_models_are_refused(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)], model="one@111111111111")
    publish(table, [labelled("b.jpg", DOG)], model="two@222222222222", run_id="run-2")

    with pytest.raises(RunStopped, match="rows are of 2 models, one@111111111111, two@222222222222"):
        evaluated(table, annotations)
    assert evaluated(table, annotations, run_id="run-2").models == ("two@222222222222",)


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


def test_images_whose_annotations_have_another_size_are_named(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT, height=320, width=240), labelled("b.jpg", DOG)])

    assert evaluated(table, annotations).other_size == ("a.jpg",)


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


def test_a_table_that_is_not_there_and_a_run_that_it_does_not_have_stop_with_a_sentence(
    table: Path, annotations: str
) -> None:
    with pytest.raises(RunStopped, match=r"has no published rows\. Check the address"):
        evaluated(table, annotations)

    publish(table, [labelled("a.jpg", CAT)])
    with pytest.raises(RunStopped, match="has no published rows of run run-9"):
        evaluated(table, annotations, run_id="run-9")


def test_a_damaged_table_file_is_named(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)])
    (table / "data" / "run-1" / "00001.parquet").write_bytes(b"PAR1 no PAR1")

    with pytest.raises(RunStopped, match=r"data/run-1/00001\.parquet is damaged"):
        evaluated(table, annotations)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "this is not JSON"),
        ("[]", "there are no images"),
        ('{"images": [{"id": 1}]}', r"images\[0\] has no usable file_name and no usable height"),
        ('{"images": [{"id": "1", "file_name": "a.jpg", "height": 2, "width": 3}]}', r"images\[0\] has no usable id"),
        ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}]}', "there are no annotations"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}], '
            '"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3]}]}',
            r"annotations\[0\] has no usable bbox",
        ),
    ],
)
def test_annotations_of_another_format_stop_with_a_sentence(
    table: Path, annotations: str, text: str, sentence: str
) -> None:
    Path(annotations).write_text(text)
    publish(table, [labelled("a.jpg", CAT)])

    with pytest.raises(RunStopped, match=rf"annotations .*instances\.json: {sentence}"):
        evaluated(table, annotations)


def test_annotations_that_are_not_there_stop_with_a_sentence(table: Path, tmp_path: Path) -> None:
    publish(table, [labelled("a.jpg", CAT)])

    with pytest.raises(RunStopped, match=r"cannot read the annotations: .*nowhere\.json"):
        evaluated(table, str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://lake/2026/a b?.jpg", "a b?.jpg"),
        ("/photos/a%20b.jpg", "a%20b.jpg"),
        ("file:///photos/a.jpg", "a.jpg"),
        ("a.jpg", "a.jpg"),
        ("https://host/x/a%20b.jpg?key=1/2#top", "a b.jpg"),
        ("gs://bucket/a.tar#member.jpg", "a.tar#member.jpg"),
    ],
)
def test_the_file_name_is_the_last_part_of_an_address(uri: str, name: str) -> None:
    assert file_name(uri) == name
