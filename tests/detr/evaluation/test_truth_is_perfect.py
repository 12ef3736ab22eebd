"""The truth as if it were a prediction: what targets, size rule, postprocessing and evaluator lose on the way."""

from typing import Any

import pytest
import torch

from detr.classes import SCENE_CATEGORIES
from detr.evaluation.average_precision import AveragePrecision, average_precision
from detr.images.decoding import resize_shape
from detr.model import DetrOutput
from detr.postprocess import postprocess
from detr.scenes.files import scene_annotations
from detr.scenes.scene import draw_scene
from detr.training.augment import Augmentation, Resize, augment_target
from detr.training.targets import ImageTarget, image_target

Json = dict[str, Any]

QUERIES = 100
SIZES = [(480, 640), (333, 500), (640, 427), (97, 211), (1000, 231), (64, 64), (431, 1999)]  # height, width


def drawn_truth() -> Json:
    """Scenes of odd sizes; crowds lie over their objects, and the last image has no annotation."""
    truth: Json = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": category.id, "name": category.name} for category in SCENE_CATEGORIES]
    for number, (height, width) in enumerate(SIZES * 2, start=1):
        truth["images"].append({"id": number * 17, "height": height, "width": width})
        found = list(scene_annotations(draw_scene(number, height, width), number * 17, len(truth["annotations"]) + 1))
        crowd = {**found[0], "id": len(truth["annotations"]) + len(found) + 1, "iscrowd": 1}
        crowd["bbox"] = [0, 0, width * 0.75, height * 0.75]
        truth["annotations"] += [*found, crowd]
    truth["images"].append({"id": 5, "height": 300, "width": 400})
    return truth


def crowded_truth(count: int) -> Json:
    """One image with `count` boxes of 80 categories, whose ids have gaps, overlapping their neighbours."""
    categories = [{"id": 3 * index + 2, "name": f"kind {index}"} for index in range(80)]
    annotations = [
        {
            "id": number + 1,
            "image_id": 9,
            "category_id": categories[number % 80]["id"],
            "bbox": [number % 13 * 37.3, number // 13 * 33.7, 41.9, 36.1],
            "area": 700.0,
            "iscrowd": 0,
        }
        for number in range(count)
    ]
    return {"images": [{"id": 9, "height": 427, "width": 640}], "annotations": annotations, "categories": categories}


def as_prediction(target: ImageTarget, class_count: int) -> DetrOutput:
    """A model that is sure of every target, in their order; the other queries are sure that there is nothing."""
    wanted = target.normalised()
    count = min(QUERIES, len(wanted.labels))
    logits = torch.zeros(1, QUERIES, class_count + 1)
    logits[0, range(count), wanted.labels[:count]] = 30
    logits[0, count:, class_count] = 30
    boxes = torch.full((1, QUERIES, 4), 0.5)
    boxes[0, :count] = wanted.boxes_cxcywh[:count]
    return DetrOutput(logits, boxes)


def measure_truth(truth: Json, *, turned_round: bool = False) -> AveragePrecision:
    """The AP of the truth after everything that evaluation does to targets and predictions."""
    ids = [category["id"] for category in truth["categories"]]
    class_of = {category_id: index for index, category_id in enumerate(ids)}
    rows = []
    for image in truth["images"]:
        height, width = image["height"], image["width"]
        annotations = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        shape = resize_shape(height, width)
        evaluation = Augmentation((Resize(*shape),), *shape, source_height=height, source_width=width)
        target = augment_target(image_target(annotations, height, width, class_of=class_of), evaluation)

        size = [width, height] if turned_round else [height, width]
        scores, classes, boxes = postprocess(as_prediction(target, len(ids)), torch.tensor([size]))

        for score, index, (x0, y0, x1, y1) in zip(
            scores[0].tolist(), classes[0].tolist(), boxes[0].tolist(), strict=True
        ):
            bbox = [x0, y0, x1 - x0, y1 - y0]
            rows.append({"image_id": image["id"], "category_id": ids[index], "bbox": bbox, "score": score})
    return average_precision(truth, rows)


def perfect(figure: float) -> bool:
    return abs(figure - 1) < 1e-12  # pycocotools divides by one object and 2e-16: it says 0.9999999999999998 for all


def test_the_truth_of_drawn_scenes_has_an_ap_of_one() -> None:
    measured = measure_truth(drawn_truth())

    assert perfect(measured.AP)
    assert perfect(measured.AP75)
    assert perfect(measured.AR100)
    assert perfect(measured.class_agnostic)
    assert all(perfect(item.AP) for item in measured.classes)
    assert {item.annotations > 0 for item in measured.classes} == {True}


@pytest.mark.parametrize("count", [81, 100])
def test_eighty_categories_and_as_many_objects_as_queries_have_an_ap_of_one(count: int) -> None:
    measured = measure_truth(crowded_truth(count))

    assert perfect(measured.AP)
    assert perfect(measured.AR100)
    assert len(measured.classes) == 80


def test_of_more_objects_than_queries_the_surplus_is_missed() -> None:
    measured = measure_truth(crowded_truth(120))

    # 20 of the 80 categories have two objects and lose one: recall 1 / 2, precision 1 at 51 of the 101 recalls
    lost = 20 * (1 - 51 / 101) / 80
    assert pytest.approx(1 - 20 * 0.5 / 80, abs=1e-9) == measured.AR100
    assert pytest.approx(1 - lost, abs=1e-9) == measured.AP


def test_height_and_width_exchanged_on_the_way_would_show() -> None:
    assert measure_truth(drawn_truth(), turned_round=True).AP < 0.5
