import contextlib
import copy
import io
import random
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr.evaluation.average_precision import NUMBERS, RECALLS, ClassPrecision, average_precision

Json = dict[str, Any]


def annotation(image_id: int, category_id: int, bbox: list[float], **others: object) -> Json:
    area = bbox[2] * bbox[3]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area, "iscrowd": 0, **others}


def truth_of(*annotations: Json, images: int = 2) -> Json:
    return {
        "images": [{"id": number} for number in range(1, images + 1)],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def row(image_id: int, category_id: int, bbox: list[float], score: float) -> Json:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


CAT = annotation(1, 3, [10, 10, 40, 40])  # medium: 1,600 pixels
DOG = annotation(2, 7, [0, 0, 200, 100])  # large


def rounded(*figures: float) -> list[float]:
    return [round(figure, 9) for figure in figures]  # pycocotools says 0.9999999999999998 for "all"


def crowded_truth_and_rows() -> tuple[Json, list[Json]]:
    """Boxes of all sizes, crowds, equal scores, rows of a category that is not declared: 20 images."""
    draw = random.Random(5)  # noqa: S311 - the same in every run
    annotations, rows = [], []
    for image_id in range(1, 21):
        for _ in range(draw.randint(0, 8)):
            box = [draw.uniform(0, 300), draw.uniform(0, 300), draw.uniform(5, 200), draw.uniform(5, 200)]
            category = draw.choice([3, 7])
            annotations.append(annotation(image_id, category, box, iscrowd=int(draw.random() < 0.1)))
            for _ in range(draw.randint(0, 3)):
                moved = [side + draw.gauss(0, 6) for side in box]
                rows.append(row(image_id, draw.choice([category, category, 3, 7, 90]), moved, draw.randint(1, 9) / 9))
    return truth_of(*annotations, images=20), rows


def by_hand(truth: Json, rows: list[Json], *, use_categories: bool = True) -> list[float]:
    """What COCO's own demonstration does."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(rows)), "bbox")
        evaluation.params.useCats = int(use_categories)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def test_the_figures_are_those_of_pycocotools_by_hand_to_the_last_digit() -> None:
    truth, rows = crowded_truth_and_rows()

    measured = average_precision(truth, rows)

    assert list(measured.numbers().values()) == by_hand(truth, rows)
    assert measured.class_agnostic == by_hand(truth, rows, use_categories=False)[0]
    assert 0.1 < measured.AP < 0.9


def test_the_twelve_have_the_names_of_coco_in_its_order() -> None:
    measured = average_precision(truth_of(CAT), [row(1, 3, [10, 10, 40, 40], 0.9)])

    assert tuple(measured.numbers()) == NUMBERS
    assert measured.numbers() == pytest.approx({
        "AP": 1.0, "AP50": 1.0, "AP75": 1.0, "APs": -1.0, "APm": 1.0, "APl": -1.0,
        "AR1": 1.0, "AR10": 1.0, "AR100": 1.0, "ARs": -1.0, "ARm": 1.0, "ARl": -1.0,
    })  # fmt: skip


def test_a_box_that_overlaps_by_0_72_counts_at_five_of_ten_thresholds() -> None:
    # 36 of 50 columns are shared: IoU 0.72 reaches .50, .55, .60, .65 and .70
    measured = average_precision(truth_of(CAT), [row(1, 3, [10, 10, 40, 28.8], 0.9)])

    assert rounded(measured.AP, measured.AP50, measured.AP75) == [0.5, 1.0, 0.0]


def test_each_class_has_its_ap_and_the_number_of_its_annotations_without_crowds() -> None:
    crowd = annotation(1, 7, [300, 300, 50, 50], iscrowd=1)

    measured = average_precision(truth_of(CAT, DOG, crowd), [row(1, 3, [10, 10, 40, 40], 0.9)])

    assert [(one.category_id, one.name, one.annotations) for one in measured.classes] == [(3, "cat", 1), (7, "dog", 1)]
    assert [one.AP for one in measured.classes] == pytest.approx([1.0, 0.0])
    assert rounded(measured.AP) == [0.5]


def test_the_ap_of_all_is_the_mean_of_the_classes() -> None:
    measured = average_precision(*crowded_truth_and_rows())

    cat, dog = measured.classes
    assert rounded(measured.AP) == rounded((cat.AP + dog.AP) / 2)


def test_a_thing_found_under_the_wrong_name_counts_for_the_class_agnostic_figure_only() -> None:
    measured = average_precision(truth_of(CAT), [row(1, 7, [10, 10, 40, 40], 0.9)])

    assert rounded(measured.AP, measured.class_agnostic) == [0.0, 1.0]


def test_the_figures_are_the_means_of_their_curves() -> None:
    measured = average_precision(*crowded_truth_and_rows())

    for name in ("AP", "AP50", "AP75"):
        curve = getattr(measured.curves, name)
        assert sum(curve) / len(RECALLS) == pytest.approx(getattr(measured, name), rel=1e-12)
        assert list(curve) == sorted(curve, reverse=True)  # interpolated precision never rises


def test_a_curve_is_the_precision_at_each_recall_and_without_classes_that_have_no_truth() -> None:
    truth = truth_of(CAT, annotation(2, 3, [10, 10, 40, 40]))  # no dog
    wrong = row(2, 3, [300, 300, 40, 40], 0.8)
    rows = [row(1, 3, [10, 10, 40, 40], 0.9), wrong, row(2, 3, [10, 10, 40, 40], 0.7)]

    curve = average_precision(truth, rows).curves.AP50

    assert len(curve) == len(RECALLS) == 101
    assert curve == pytest.approx([1.0] * 51 + [2 / 3] * 50)  # up to recall 0.5 the first alone, then two of three
    assert average_precision(truth, []).curves.AP50 == (0.0,) * 101


def test_leaving_out_low_scores_never_raises_ap() -> None:
    truth, rows = crowded_truth_and_rows()

    figures = [
        average_precision(truth, [one for one in rows if one["score"] >= least / 9]).AP for least in range(1, 11)
    ]

    assert figures == sorted(figures, reverse=True)
    assert figures[0] > figures[4] > figures[-1] == 0.0


def test_nothing_found_is_ap_0() -> None:
    measured = average_precision(truth_of(CAT, DOG), [])

    assert (measured.AP, measured.AR100, measured.class_agnostic) == (0.0, 0.0, 0.0)
    assert measured.classes == (ClassPrecision(3, "cat", 0.0, 1), ClassPrecision(7, "dog", 0.0, 1))


def test_a_truth_without_boxes_has_no_figures() -> None:
    measured = average_precision(truth_of(), [row(1, 3, [10, 10, 40, 40], 0.9)])

    assert set(measured.numbers().values()) == {-1.0}
    assert set(measured.curves.AP) == {-1.0}


def test_an_image_without_rows_is_missed_and_not_left_out() -> None:
    other = annotation(2, 3, [10, 10, 40, 40])

    measured = average_precision(truth_of(CAT, other), [row(1, 3, [10, 10, 40, 40], 0.9)])

    assert measured.AR100 == 0.5


def test_chosen_images_are_measured_alone() -> None:
    truth, rows = crowded_truth_and_rows()
    few = {5, 6, 7}
    truth_of_few = {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in few],
        "annotations": [one for one in truth["annotations"] if one["image_id"] in few],
    }

    measured = average_precision(truth, rows, image_ids=few)

    assert measured == average_precision(truth_of_few, [one for one in rows if one["image_id"] in few])
    assert measured != average_precision(truth, rows)


def test_the_order_of_images_does_not_matter() -> None:
    truth, rows = crowded_truth_and_rows()
    backwards = sorted(rows, key=lambda one: -one["image_id"])  # rows of one image keep their order

    assert average_precision(truth, backwards) == average_precision(truth, rows)


def test_an_annotation_of_id_0_and_two_of_one_id_are_all_found() -> None:
    truth = truth_of(CAT, DOG, annotation(2, 3, [10, 10, 40, 40]))
    for one, number in zip(truth["annotations"], (0, 4, 4), strict=True):
        one["id"] = number

    measured = average_precision(truth, [row(one["image_id"], one["category_id"], one["bbox"], 0.9)
                                         for one in truth["annotations"]])  # fmt: skip

    assert rounded(measured.AP, measured.AR100) == [1.0, 1.0]


def test_annotations_may_lack_area_and_iscrowd() -> None:
    truth = truth_of({"image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]})

    measured = average_precision(truth, [row(1, 3, [10, 10, 40, 40], 0.9)])

    assert rounded(measured.AP, measured.APm) == [1.0, 1.0]


def test_nothing_is_printed_and_nothing_given_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    truth, rows = crowded_truth_and_rows()
    before = copy.deepcopy((truth, rows))

    average_precision(truth, rows)

    assert capsys.readouterr() == ("", "")
    assert (truth, rows) == before


def test_rows_of_an_unknown_image_are_refused() -> None:
    with pytest.raises(ValueError, match="there are results for image 9, which is not in the annotations"):
        average_precision(truth_of(CAT), [row(9, 3, [10, 10, 40, 40], 0.9)])


def test_no_image_to_measure_on_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no image, or no category"):
        average_precision(truth_of(CAT), [], image_ids=[])
