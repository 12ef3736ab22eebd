"""Both evaluators give the figures of pycocotools as COCO's demonstration uses it, to the last bit.

EVALUATION_SEED=17 python -m pytest tests/detr/evaluation/test_evaluators.py                 one data set again
EVALUATION_SEEDS=10000 python -m pytest -m long tests/detr/evaluation/test_evaluators.py     as many as that
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr.evaluation.average_precision import NUMBERS, average_precision
from detr.evaluation.coco_results import ResultColumns
from detr.evaluation.evaluators import EVALUATORS, Evaluator
from tests.detr.evaluation.random_data_sets import DataSet, Json, draw_data_set

ONE = os.environ.get("EVALUATION_SEED")
MANY = int(os.environ.get("EVALUATION_SEEDS", "10000"))


def seeds(count: int, at_once: int) -> list[range]:
    if ONE is not None:
        return [range(int(ONE), int(ONE) + 1)]
    return [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]


@pytest.mark.parametrize("some", seeds(200, 10), ids=lambda some: f"{some.start}-{some.stop - 1}")
def test_every_figure_is_that_of_pycocotools(some: range) -> None:
    for seed in some:
        data = draw_data_set(seed)
        expected = by_hand(data)
        for evaluator in EVALUATORS:
            assert measured(data, evaluator) == expected, again(seed)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("some", seeds(MANY, 500), ids=lambda some: f"{some.start}-{some.stop - 1}")
def test_every_figure_is_that_of_pycocotools_on_many_data_sets(some: range) -> None:
    for seed in some:
        data = draw_data_set(seed)

        assert measured(data, "ultrafast") == by_hand(data), again(seed)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
@pytest.mark.parametrize(
    ("annotated", "found"),
    [
        # areas and intersection overflow: the overlap is infinity by infinity
        ([[50, 166, 1e160, 1e160], [78, 44, 21, 1e5]], [78, 44, 1e160, 1e160]),
        # they are rounded to 0: the overlap is 0 by 0
        ([[0, 0, 1e-300, 1e-300], [0, 0, 10, 10]], [0, 0, 1e-300, 1e-300]),
    ],
)
def test_overlaps_that_are_not_numbers_count_as_in_pycocotools(
    annotated: list[list[float]], found: list[float]
) -> None:
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box, "area": 100.0} for box in annotated]
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": annotations}
    row = {"image_id": 1, "category_id": 1, "bbox": found, "score": 0.5}
    numbered = [{"id": number, **one} for number, one in enumerate(annotations, start=1)]
    data = DataSet({**truth, "annotations": numbered}, [row], [1])

    expected = by_hand(data)

    assert expected["AR1"] == 0.5
    assert measured(data, "ultrafast") == expected


def test_the_data_sets_are_not_trivial() -> None:
    # else the tests above could not fail
    found = [measured(draw_data_set(seed), "ultrafast") for seed in range(60)]

    for name in ("AP", "APs", "APm", "APl", "AR1", "class_agnostic"):
        assert len({figures[name] for figures in found if 0 < figures[name] < 1}) >= 10, name
    assert sum(figures["AP"] == -1 for figures in found) >= 2
    assert sum(figures["AP"] != figures["class_agnostic"] for figures in found) >= 20
    assert len({tuple(figures["AP50 over recall"]) for figures in found}) >= 20


def measured(data: DataSet, evaluator: Evaluator) -> Json:
    columns = ResultColumns.of_rows(data.rows)
    found = average_precision(data.truth, columns, image_ids=data.image_ids, evaluator=evaluator)
    return {
        **found.numbers(),
        "class_agnostic": found.class_agnostic,
        **{f"AP of {one.category_id}": one.AP for one in found.classes},
        **{f"{name} over recall": list(getattr(found.curves, name)) for name in ("AP", "AP50", "AP75")},
    }


def by_hand(data: DataSet) -> Json:
    """COCO's own demonstration on the data set as it is, without any of our preparation."""
    by_class, agnostic = demonstration(data, use_categories=True), demonstration(data, use_categories=False)
    precision = by_class.eval["precision"][:, :, :, 0, 2]
    counted = precision[:, :, precision[0, 0] > -1]
    curves = counted.mean(axis=2) if counted.size else np.full((10, 101), -1.0)
    return {
        **dict(zip(NUMBERS, by_class.stats.tolist(), strict=True)),
        "class_agnostic": agnostic.stats[0],
        **{
            f"AP of {category_id}": precision.mean(axis=(0, 1))[place]
            for place, category_id in enumerate(by_class.params.catIds)
        },
        "AP over recall": curves.mean(axis=0).tolist(),
        "AP50 over recall": curves[0].tolist(),
        "AP75 over recall": curves[5].tolist(),
    }


def demonstration(data: DataSet, *, use_categories: bool) -> Any:
    truth = copy.deepcopy(data.truth)
    for annotation in truth["annotations"]:
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
    with contextlib.redirect_stdout(io.StringIO()):
        expected, found = COCO(), COCO()
        expected.dataset = truth
        expected.createIndex()
        if data.rows:
            found = expected.loadRes(copy.deepcopy(data.rows))
        else:
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(expected, found, "bbox")
        evaluation.params.imgIds = data.image_ids
        evaluation.params.useCats = int(use_categories)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def again(seed: int) -> str:
    return f"seed {seed}. Again: EVALUATION_SEED={seed} python -m pytest tests/detr/evaluation/test_evaluators.py"
