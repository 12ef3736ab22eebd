"""A report against annotations: AP, confusion, and which mistakes are shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation.evaluate import evaluate_table
from pipelines.report.config import ReportConfig
from pipelines.report.report import write_report
from pipelines.report.truth import NOTHING, Mistakes
from pipelines.table.schema import Detected
from tests.pipelines.report.tables import picture, publish, row
from tests.pipelines.report.test_drift import FOUND, TRUTH, data_of

DOG, CAT = 18, 17


@pytest.fixture
def annotated(tmp_path: Path) -> tuple[str, str]:
    """In `a` a dog is found and a cat is taken for a dog; in `b` a dog is missed and another invented."""
    a, b = (picture(tmp_path / "images", f"{name}.png") for name in "ab")
    publish(
        str(tmp_path / "table"),
        [
            row(a, Detected([DOG, DOG], ("dog", "dog"), [0.9, 0.6], [[0, 0, 20, 20], [40, 0, 60, 20]])),
            row(b, Detected([DOG], ("dog",), [0.8], [[50, 40, 70, 60]])),
        ],
    )
    boxes = [(1, DOG, [0, 0, 20, 20]), (1, CAT, [40, 0, 20, 20]), (2, DOG, [0, 0, 30, 30])]
    coco = {
        "images": [
            {"id": number, "file_name": f"{name}.png", "width": 80, "height": 60}
            for number, name in ((1, "a"), (2, "b"))
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, (image, category, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": DOG, "name": "dog"}, {"id": CAT, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    return str(tmp_path / "table"), str(tmp_path / "instances.json")


def test_the_figures_are_of_rows_with_the_chosen_settings(annotated: tuple[str, str], tmp_path: Path) -> None:
    table, annotations = annotated
    a = str(tmp_path / "images" / "a.png")
    perfect = Detected([DOG, CAT], ("dog", "cat"), [0.9, 0.6], [[0, 0, 20, 20], [40, 0, 60, 20]])
    publish(table, [row(a, perfect)], "run-2", settings="tiles=800")

    def figures(settings: str | None) -> float | None:
        return write_report(ReportConfig(table, tmp_path / "r.html", settings=settings, annotations=annotations)).AP

    with pytest.raises(RayDetrError, match="several settings"):
        figures(None)
    # the cat's AP is 1; one dog of two has a row with these settings: 51 of 101 recalls have a precision of 1
    assert figures("tiles=800") == pytest.approx((1 + 51 / 101) / 2)


def test_the_figures_are_those_of_the_evaluation(annotated: tuple[str, str], tmp_path: Path) -> None:
    table, annotations = annotated

    summary = write_report(ReportConfig(table, tmp_path / "r.html", annotations=annotations))

    assert summary.AP == evaluate_table(table, annotations, allow_thresholded=True).average_precision.AP
    assert f"<dd>{summary.AP:.3f}</dd>" in (tmp_path / "r.html").read_text()


def test_classes_are_matched_as_the_evaluation_does(annotated: tuple[str, str], tmp_path: Path) -> None:
    table, annotations = annotated
    coco = json.loads(Path(annotations).read_text())
    moved = {DOG: 1, CAT: 2}
    coco["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": DOG, "name": "cow"}]
    for annotation in coco["annotations"]:
        annotation["category_id"] = moved[annotation["category_id"]]
    before = write_report(ReportConfig(table, tmp_path / "before.html", annotations=annotations)).AP
    Path(annotations).write_text(json.dumps(coco))

    with pytest.raises(UsageError, match="the class 'dog' has the number 18 in the table and 1 in the annotations"):
        write_report(ReportConfig(table, tmp_path / "r.html", annotations=annotations))
    by_name = ReportConfig(table, tmp_path / "r.html", annotations=annotations, match_classes="name")
    assert before == write_report(by_name).AP
    by_number = ReportConfig(table, tmp_path / "n.html", annotations=annotations, match_classes="number")
    assert write_report(by_number).AP == 0
    assert "18 is &#39;dog&#39; in the table and &#39;cow&#39; in the annotations" in (tmp_path / "n.html").read_text()


def test_the_classes_that_only_annotations_have_are_not_counted(annotated: tuple[str, str], tmp_path: Path) -> None:
    write_report(ReportConfig(annotated[0], tmp_path / "r.html", annotations=annotated[1]))

    assert "<dt>classes</dt><dd>1</dd>" in (tmp_path / "r.html").read_text()


def test_where_nothing_reaches_the_threshold_all_is_missed(annotated: tuple[str, str], tmp_path: Path) -> None:
    write_report(ReportConfig(annotated[0], tmp_path / "r.html", annotations=annotated[1], threshold=0.95))

    galleries = {one["id"]: one["items"] for one in data_of((tmp_path / "r.html").read_text())["galleries"]}
    assert len(galleries["misses"]) == 2
    assert "false-positives" not in galleries


def test_annotations_of_classes_that_are_not_declared_count_nowhere(annotated: tuple[str, str], tmp_path: Path) -> None:
    before = write_report(ReportConfig(annotated[0], tmp_path / "before.html", annotations=annotated[1])).AP
    coco = json.loads(Path(annotated[1]).read_text())
    coco["annotations"].append({**coco["annotations"][0], "id": 9, "category_id": 99})
    Path(annotated[1]).write_text(json.dumps(coco))

    assert before == write_report(ReportConfig(annotated[0], tmp_path / "r.html", annotations=annotated[1])).AP


def test_annotations_of_other_images_are_refused(annotated: tuple[str, str], tmp_path: Path) -> None:
    annotations = Path(annotated[1])
    annotations.write_text(annotations.read_text().replace(".png", ".jpg"))

    with pytest.raises(UsageError, match=r"none of the 2 annotated images, such as a\.jpg, is in the table"):
        write_report(ReportConfig(annotated[0], tmp_path / "r.html", annotations=str(annotations)))


def test_false_positives_and_misses_are_shown_beside_the_truth(annotated: tuple[str, str], tmp_path: Path) -> None:
    write_report(ReportConfig(annotated[0], tmp_path / "r.html", annotations=annotated[1]))

    data = data_of((tmp_path / "r.html").read_text())
    galleries = {one["id"]: one["items"] for one in data["galleries"]}
    notes = [
        (Path(data["pictures"][item["picture"]]["uri"]).name, item["note"]) for item in galleries["false-positives"]
    ]
    assert notes == [("b.png", "false: dog 0.80"), ("a.png", "false: dog 0.60")]
    assert [item["note"] for item in galleries["misses"]] == ["missed: 1 dog", "missed: 1 cat"]
    names = data["classes"]
    assert [[names[box[0]], *box[1:]] for box in galleries["misses"][0]["boxes"]] == [
        ["dog", 0.8, 50, 40, 70, 60, FOUND],
        ["dog", None, 0, 0, 30, 30, TRUTH],
    ]


def test_confusion_counts_what_was_annotated_and_what_was_found() -> None:
    mistakes = Mistakes()
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60], [81, 81, 89, 89]], np.float64)
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [70, 0, 79, 9], [80, 80, 99, 99]], np.float64)
    is_crowd = np.array([False, False, False, True])

    mistakes.add(7, (np.array([1, 1, 2, 1]), boxes), (np.array([1, 2, 1, 1]), truth, is_crowd))

    # the last box lies in a crowd: neither right nor wrong
    assert dict(mistakes.confusion) == {(1, 1): 1, (2, 1): 1, (NOTHING, 2): 1, (1, NOTHING): 1}
    assert mistakes.false == {7: [1, 2]}
    assert mistakes.missed == {7: [1, 2]}
