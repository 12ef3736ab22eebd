"""Truth and detections that a seed draws, with everything in which two evaluators could differ."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

Json = dict[str, Any]

AREA_EDGES = (0, 32**2, 32**2 - 1e-9, 32**2 + 1e-9, 96**2, 96**2 + 1e-9, 1e10, 1e10 + 1)  # of small, medium, large
SIDE_EDGES = (0, 1, 16, 32, 64, 96, 1e5)
UNDECLARED = 999_999


@dataclass(frozen=True, slots=True)
class DataSet:
    """A COCO json, rows as in a results file, and the images to measure on."""

    truth: Json
    rows: list[Json]
    image_ids: list[int]


def draw_data_set(seed: int) -> DataSet:
    """Return a small data set, always the same for a seed.

    Crowds, images without annotations or detections, equal scores, areas at COCO's limits and apart from their box,
    boxes without area, ids that are not contiguous, negative or above 2**53, undeclared categories, more than a hundred
    detections of a class, rows and annotations in any order, a choice of images.
    """
    draw = Random(seed)  # noqa: S311 - it is to be repeated
    images = _ids(draw, draw.choice((1, 1, 2, 3, 5, 8, 20)))
    categories = _ids(draw, draw.choice((1, 1, 2, 3, 5, 10, 80)))
    used = categories[: draw.randint(1, len(categories))]
    levels = draw.choice((1, 2, 3, 10, 10**6))  # few: many equal scores
    whole = draw.random() < 0.5  # whole pixels: many equal overlaps
    annotations: list[Json] = []
    rows: list[Json] = []

    def pixels(value: float) -> float:
        return float(round(value)) if whole else value

    def row(image_id: int, category_id: int, box: list[float]) -> Json:
        score = draw.randint(0, levels) / levels
        return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}

    def box() -> list[float]:
        corner = [pixels(draw.uniform(-5, 300)) for _ in range(2)]
        sides = [
            draw.choice(SIDE_EDGES) if draw.random() < 0.2 else pixels(draw.uniform(1, draw.choice((30, 90, 200))))
            for _ in range(2)
        ]
        return [*corner, *sides]

    for image_id in images:
        if draw.random() < 0.2:
            continue
        for _ in range(draw.choice((0, 1, 2, 5, 12))):
            category_id = UNDECLARED if draw.random() < 0.05 else draw.choice(used)
            annotation: dict[str, Any] = {"image_id": image_id, "category_id": category_id, "bbox": box()}
            if draw.random() < 0.9:
                width, height = annotation["bbox"][2:]
                annotation["area"] = draw.choice(AREA_EDGES) if draw.random() < 0.2 else width * height
            if draw.random() < 0.9:
                annotation["iscrowd"] = draw.choice((1, True, 1.0)) if draw.random() < 0.15 else 0
            annotations.append(annotation)
            for _ in range(draw.choice((0, 1, 1, 2, 3))):
                spread = draw.choice((0, 0, 1, 3, 10))
                x, y, width, height = (pixels(side + draw.gauss(0, spread)) for side in annotation["bbox"])
                named = category_id if draw.random() < 0.8 else draw.choice((*categories, UNDECLARED + 1))
                rows.append(row(image_id, named, [x, y, max(0, width), max(0, height)]))
        rows += [row(image_id, draw.choice(categories), box()) for _ in range(draw.choice((0, 0, 1, 3)))]
    if draw.random() < 0.05:
        image_id, category_id = draw.choice(images), draw.choice(used)
        rows += [row(image_id, category_id, box()) for _ in range(230)]
    draw.shuffle(rows)
    draw.shuffle(annotations)
    truth = {
        "images": [{"id": image_id} for image_id in images],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        "categories": [{"id": category_id, "name": f"class {category_id}"} for category_id in categories],
    }
    count = draw.randint(1, len(images)) if draw.random() < 0.3 else len(images)
    return DataSet(truth, rows, sorted(draw.sample(images, count)))


def _ids(draw: Random, count: int) -> list[int]:
    first = draw.choice((0, 1, 1, -500, 2**53))
    return [first + number for number in draw.sample(range(draw.choice((count, 1000))), count)]
