"""Drawn pictures of fixed cameras, labelled by the model in the package: stones are marked, what moves is not."""

from __future__ import annotations

import numpy as np
import pytest

from detr import Detector
from pipelines.clock import SystemClock
from pipelines.exports.config import QueryConfig
from pipelines.exports.query import query_table
from pipelines.marks.marks import accept_marks
from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.finding import find_places
from pipelines.report.overlaps import box_iou
from pipelines.store import open_store
from pipelines.table.schema import Detected, Row
from scripts.fixed_camera import HEIGHT, WIDTH, draw_camera
from tests.pipelines.repeats.fixed_camera import publish

pytestmark = pytest.mark.slow

PICTURES = 16  # the first night; four more are labelled after the marks were accepted
LATER = 4
FOUND_IOU = 0.5


def overlaps(box: list[float], others: list[list[float]]) -> float:
    return float(box_iou(np.array([box]), np.array(others)).max())


def test_stones_are_marked_and_what_moves_is_not(tmp_path) -> None:
    table = str(tmp_path / "table")
    pictures, stones, moving = draw_camera(1, PICTURES + LATER)
    places = [box for _, box in stones]
    rows = [
        Row(
            f"s3://lake/camera/{number:02}.jpg", "e", 7, WIDTH, HEIGHT,
            detections=Detected(found.category_ids, tuple(found.labels), found.scores, found.boxes_xyxy),
        )
        for number, found in enumerate(Detector("scenes", threshold=0.3)(pictures))
    ]  # fmt: skip
    publish(table, rows[:PICTURES])

    found = find_places(RepeatsConfig(table=table), with_pictures=False)

    assert sorted(place.mark.label for place in found.places) == sorted(label for label, _ in stones)
    for place in found.places:
        box = [side * size for side, size in zip(place.mark.box, (WIDTH, HEIGHT) * 2, strict=True)]
        assert overlaps(box, places) >= FOUND_IOU

    accept_marks(open_store(table), [place.mark for place in found.places], SystemClock())
    publish(table, rows[PICTURES:], "run-2")
    sql = "SELECT uri, label, xmin, ymin, xmax, ymax, repeat IS NOT NULL FROM detections"
    boxes = [
        (int(uri[-6:-4]), [float(side) for side in sides], is_repeat == "true")
        for uri, _, *sides, is_repeat in query_table(QueryConfig(table, sql)).rows
    ]
    of_stones = [is_repeat for _, box, is_repeat in boxes if overlaps(box, places) >= FOUND_IOU]
    of_animals = [is_repeat for number, box, is_repeat in boxes if overlaps(box, moving[number]) >= FOUND_IOU]
    assert sum(of_stones) >= len(places) * (PICTURES + LATER) - 2
    assert len(of_animals) >= PICTURES
    assert not any(of_animals)
    later = [is_repeat for number, box, is_repeat in boxes if number >= PICTURES and overlaps(box, places) >= FOUND_IOU]
    assert sum(later) >= len(places) * LATER - 1
