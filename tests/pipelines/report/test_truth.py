"""A report against annotations: AP, confusion, and which mistakes are shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.report import main
from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation.evaluate import evaluate_table
from pipelines.report.config import ReportConfig
from pipelines.report.report import write_report
from pipelines.report.truth import NOTHING, Mistakes
from pipelines.table.schema import Detected
from tests.pipelines.report.tables import picture, publish, row
from tests.pipelines.report.test_drift import FALSE, FOUND, MISSED, TRUTH, data_of

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


def test_rows_of_two_models_are_refused_with_the_option_of_this_command(
    annotated: tuple[str, str], tmp_path: Path
) -> None:
    found = Detected([DOG], ("dog",), [0.9], [[0, 0, 20, 20]])
    publish(annotated[0], [row(str(tmp_path / "images" / "a.png"), found)], "run-2", model="detr@2")

    with pytest.raises(
        UsageError, match=r"come from 2 models, .* Choose one run \(`evaluate --run-id`, `report --run`\)"
    ):
        write_report(ReportConfig(annotated[0], tmp_path / "r.html", annotations=annotated[1]))


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
    assert notes == [("b.png", "false at 0.5: dog 0.80"), ("a.png", "false at 0.5: dog 0.60")]
    assert [item["note"] for item in galleries["misses"]] == ["missed at 0.5: 1 dog", "missed at 0.5: 1 cat"]
    names = data["classes"]
    assert [[names[box[0]], *box[1:]] for box in galleries["misses"][0]["boxes"]] == [
        ["dog", 0.8, 50, 40, 70, 60, FALSE],
        ["dog", None, 0, 0, 30, 30, MISSED],
    ]
    assert [box[6] for box in galleries["misses"][1]["boxes"]] == [FOUND, FALSE, TRUTH, MISSED]


def test_a_missed_object_keeps_its_box_below_the_threshold_and_stays_a_miss(tmp_path: Path) -> None:
    one = picture(tmp_path / "images", "a.png")
    low = [[number, 0, number + 9, 9] for number in range(120)]
    found = Detected([DOG] * 122, ("dog",) * 122, [0.3, *[0.2] * 120, 0.04], [[0, 0, 20, 20], *low, [9, 9, 19, 19]])
    publish(str(tmp_path / "table"), [row(one, found)])
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": DOG, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0}
        ],
        "categories": [{"id": DOG, "name": "dog"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(coco))

    write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html", annotations=str(tmp_path / "truth.json")))

    galleries = {one["id"]: one["items"] for one in data_of((tmp_path / "r.html").read_text())["galleries"]}
    (item,) = galleries["misses"]
    assert item["note"] == "missed at 0.5: 1 dog"
    assert item["boxes"][0][1:] == [0.3, 0, 0, 20, 20, FOUND]
    assert len([box for box in item["boxes"] if box[1] is not None]) == 100
    assert item["more"] == [[4, 1], [20, 21]]
    assert "false-positives" not in galleries


def test_why_ap_is_not_that_of_all_images_is_on_the_page_and_printed(
    annotated: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table, annotations = annotated
    coco = json.loads(Path(annotations).read_text())
    coco["images"][0].update(width=160, height=120)  # annotated on a copy of twice the size
    coco["images"].append({"id": 3, "file_name": "c.png", "width": 80, "height": 60})
    coco["annotations"][1]["category_id"] = 99
    Path(annotations).write_text(json.dumps(coco))
    out = tmp_path / "r.html"

    main(["--table", table, "--annotations", annotations, "--out", str(out)])

    html, printed = out.read_text(), capfd.readouterr().out
    for sentence in (
        "1 image is not in the table: nothing counts as detected there (c.png)",
        "1 annotation has a category that the annotations do not declare: nothing counts as detected there",
        "1 image has another size than in the annotations (a.png)",
        "detections with a score below 0.05 were not kept: the AP is lower than the model's by an unknown amount",
    ):
        assert f"<li>{sentence}".replace("'", "&#39;") in html
        assert sentence in printed
    data = data_of(html)
    galleries = {one["id"]: one["items"] for one in data["galleries"]}
    shown = [data["pictures"][item["picture"]]["uri"] for item in galleries["false-positives"] + galleries["misses"]]
    assert [Path(uri).name for uri in shown] == ["b.png", "b.png"]  # annotations of a.png would be drawn too large
    assert "1 of the images are annotated at another size or rotation" in html


def test_an_undefined_ap_is_shown_as_none(
    annotated: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    coco = json.loads(Path(annotated[1]).read_text())
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    Path(annotated[1]).write_text(json.dumps(coco))

    main(["--table", annotated[0], "--annotations", annotated[1], "--out", str(tmp_path / "r.html")])

    assert "AP: none\nAP is undefined: the images have no annotation" in capfd.readouterr().out
    assert "-1.000" not in (tmp_path / "r.html").read_text()


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


def test_an_object_is_missed_only_if_no_box_of_its_class_lies_on_it() -> None:
    mistakes, same = Mistakes(), np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float64)

    mistakes.add(1, (np.array([CAT, DOG]), same), (np.array([DOG]), same[:1], np.array([False])))

    assert dict(mistakes.confusion) == {(DOG, DOG): 1, (NOTHING, CAT): 1}
    assert (mistakes.false, mistakes.missed) == ({1: [0]}, {})


def test_only_a_crowd_of_its_class_excuses_a_box() -> None:
    mistakes, crowd = Mistakes(), np.array([[0, 0, 100, 100]], np.float64)
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [200, 0, 200, 10]], np.float64)  # the last has no area

    mistakes.add(1, (np.array([DOG, CAT, CAT]), boxes), (np.array([CAT]), crowd, np.array([True])))

    assert dict(mistakes.confusion) == {(NOTHING, DOG): 1, (NOTHING, CAT): 1}
    assert (mistakes.false, mistakes.missed) == ({1: [0, 2]}, {})
