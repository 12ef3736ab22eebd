"""Workers' results put together: the figures are the same however the images were dealt."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr.evaluation.average_precision import average_precision
from detr.evaluation.coco_results import ResultColumns, merge_results, result_rows

IMAGES = 12
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def test_corners_become_x_y_width_and_height() -> None:
    rows = result_rows(9, [3, 7], [0.5, 0.25], [[1.0, 2.0, 11.0, 22.5], [0.0, 0.0, 4.0, 5.0]])

    assert rows == [
        {"image_id": 9, "category_id": 3, "bbox": [1.0, 2.0, 10.0, 20.5], "score": 0.5},
        {"image_id": 9, "category_id": 7, "bbox": [0.0, 0.0, 4.0, 5.0], "score": 0.25},
    ]


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        result_rows(9, [3], [0.5, 0.25], [[1.0, 2.0, 11.0, 22.5]])


def test_rows_and_corners_become_the_same_columns() -> None:
    corners = np.array([[0.1, 2.0, 10.3, 22.5], [0.0, 0.0, 4.0, 5.0]], np.float32)
    scores = np.array([0.7, 0.25], np.float32)
    rows = result_rows(2**60 + 1, [3, -7], scores.tolist(), corners.tolist())

    of_rows = ResultColumns.of_rows(rows)
    of_corners = ResultColumns.of_corners(np.full(2, 2**60 + 1), [3, -7], scores, corners)

    for found in (of_rows, of_corners):
        assert found.image_ids.tolist() == [2**60 + 1, 2**60 + 1]
        assert found.category_ids.tolist() == [3, -7]
        assert found.scores.tolist() == [0.699999988079071, 0.25]
        # 10.3 - 0.1 of the numbers as four bytes hold them, computed in eight
        assert found.boxes_xywh.tolist() == [[0.10000000149011612, 2.0, 10.200000189244747, 20.5], [0.0, 0.0, 4.0, 5.0]]
        assert len(found) == 2
    assert corners[0, 2] == np.float32(10.3)  # what was given is not changed


def test_columns_are_put_together_and_chosen_from() -> None:
    first = ResultColumns.of_rows(result_rows(1, [3, 4], [0.5, 0.6], [[0, 0, 1, 1], [0, 0, 2, 2]]))
    second = ResultColumns.of_rows(result_rows(2, [5], [0.7], [[0, 0, 3, 3]]))

    both = ResultColumns.concatenate([second, ResultColumns.concatenate([]), first])

    assert both.category_ids.tolist() == [5, 3, 4]
    chosen = both.where(both.scores > 0.55)
    assert chosen.image_ids.tolist() == [2, 1]
    assert chosen.boxes_xywh.tolist() == [[0, 0, 3, 3], [0, 0, 2, 2]]


def test_columns_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the column boxes_xywh has the shape \(2, 3\) instead of \(2, 4\)"):
        ResultColumns(np.ones(2, np.int64), np.ones(2, np.int64), np.ones((2, 3)), np.ones(2))
    with pytest.raises(ValueError, match="a bbox must have four numbers"):
        ResultColumns.of_rows([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1.0}])


def drawn() -> tuple[dict[str, Any], dict[int, list[dict[str, Any]]]]:
    """Truth and results of twelve images, with equal scores across images, where order decides."""
    draw = random.Random(11)  # noqa: S311 - the same in every run
    annotations: list[dict[str, Any]] = []
    results: dict[int, list[dict[str, Any]]] = {}
    for image_id in range(1, IMAGES + 1):
        results[image_id] = []
        for _ in range(draw.randint(0, 5)):
            box = [draw.uniform(0, 300), draw.uniform(0, 300), draw.uniform(5, 200), draw.uniform(5, 200)]
            category = draw.choice([3, 7])
            annotations.append({"image_id": image_id, "category_id": category, "bbox": box})
            for _ in range(draw.randint(0, 3)):
                x, y, width, height = (side + draw.gauss(0, 6) for side in box)
                corners = [[x, y, x + width, y + height]]
                results[image_id] += result_rows(image_id, [draw.choice([3, 7])], [draw.randint(1, 3) / 3], corners)
    return {
        "images": [{"id": number} for number in range(1, IMAGES + 1)],
        "annotations": annotations,
        "categories": CATEGORIES,
    }, results


TRUTH, RESULTS = drawn()
ALONE = average_precision(TRUTH, [row for rows in RESULTS.values() for row in rows])


def test_the_order_of_images_would_matter_here() -> None:
    # else the property below could not fail: with the ids turned round, equal scores are taken in another order
    turned = {
        **TRUTH,
        "images": [{"id": -number} for number in range(1, IMAGES + 1)],
        "annotations": [{**one, "image_id": -one["image_id"]} for one in TRUTH["annotations"]],
    }
    rows = [{**row, "image_id": -row["image_id"]} for rows in RESULTS.values() for row in rows]

    assert average_precision(turned, rows).numbers() != ALONE.numbers()


@settings(max_examples=20, deadline=None)
@given(
    dealt=st.integers(min_value=1, max_value=7).flatmap(
        lambda workers: st.lists(
            st.lists(st.integers(min_value=0, max_value=workers - 1), min_size=1, max_size=3),
            min_size=IMAGES,
            max_size=IMAGES,
        )
    ),
    order=st.permutations(range(1, IMAGES + 1)),
)
def test_the_figures_do_not_depend_on_the_workers_that_the_images_were_dealt_to(
    dealt: list[list[int]], order: list[int]
) -> None:
    """Each image goes to one to three of up to seven workers, in any order."""
    parts: list[dict[int, list[dict[str, Any]]]] = [{} for _ in range(7)]
    for image_id in order:
        for worker in dealt[image_id - 1]:
            parts[worker][image_id] = RESULTS[image_id]

    merged = merge_results([ResultColumns.of_rows([row for rows in part.values() for row in rows]) for part in parts])

    assert rows_of(merged) == [row for image_id in sorted(RESULTS) for row in RESULTS[image_id]]
    assert average_precision(TRUTH, merged) == ALONE


def test_of_an_image_that_came_twice_the_first_counts() -> None:
    first, second = result_rows(1, [3], [0.5], [[0, 0, 1, 1]]), result_rows(1, [3], [0.6], [[0, 0, 1, 1]])

    assert rows_of(merge_results([ResultColumns.of_rows(rows) for rows in (first, second)])) == first
    assert len(merge_results([])) == 0


def rows_of(columns: ResultColumns) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox", "score")
    values = (columns.image_ids, columns.category_ids, columns.boxes_xywh, columns.scores)
    return [dict(zip(names, row, strict=True)) for row in zip(*(one.tolist() for one in values), strict=True)]
