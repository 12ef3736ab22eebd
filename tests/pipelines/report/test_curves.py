"""Line charts: round ticks, points where they belong, and the same in words."""

from __future__ import annotations

import math

import pytest

from pipelines.report.curves import Chart, drawing, thinned, ticks


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (0.42, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (16.5, [0, 5, 10, 15, 20]),
        (5, [0, 1, 2, 3, 4, 5]),
        (0, [0, 1]),
    ],
)
def test_ticks_are_round_and_reach_the_highest_value(highest: float, expected: list[float]) -> None:
    assert ticks(highest) == pytest.approx(expected)


def test_ticks_of_counts_are_whole() -> None:
    assert ticks(2, 4, is_whole=True) == [0, 1, 2]


def test_many_points_become_means_and_nan_does_not_hide_its_neighbours() -> None:
    points = [(1.0, 2.0), (2.0, 4.0), (3.0, math.nan), (4.0, 8.0), (5.0, math.nan), (6.0, math.nan)]

    found = thinned(points, 3)

    assert found[:2] == [(2.0, 3.0), (4.0, 8.0)]
    assert found[2][0] == 6.0
    assert math.isnan(found[2][1])
    assert thinned(points, 6) == points


def test_points_lie_between_the_axes() -> None:
    chart = Chart("loss", "Loss", "step", [("total", [(5, 4.0), (10, 2.0)])], marks=[5, 99])

    drawn = drawing(chart)

    assert drawn is not None
    # from left to right 46 to 342, from bottom to top 170 to 8
    assert drawn["curves"][0]["path"] == "M194 8L342 89"
    assert drawn["x_ticks"] == [(46, "0"), (194, "5"), (342, "10")]
    assert drawn["y_ticks"] == [(170, "0"), (129.5, "1"), (89, "2"), (48.5, "3"), (8, "4")]
    assert drawn["restarts"] == [194]
    assert drawn["rows"] == [["5", "4"], ["10", "2"]]
    assert drawn["sentence"] == ("Loss. total: first 4, last 2, lowest 2 at step 10, highest 4 at step 5.")


def test_a_curve_is_interrupted_where_a_value_is_missing() -> None:
    drawn = drawing(Chart("a", "A", "step", [("one", [(0, 1.0), (1, math.nan), (2, 1.0), (4, 1.0)])]))

    assert drawn is not None
    assert drawn["curves"][0]["path"] == "M46 8M194 8L342 8"
    assert drawn["rows"][1] == ["1", "none"]


def test_a_logarithmic_axis_has_powers_of_ten_and_leaves_out_zero() -> None:
    drawn = drawing(Chart("a", "A", "step", [("lr", [(1, 0.0), (2, 1e-4), (4, 1e-5)])], is_log=True))

    assert drawn is not None
    assert [words for _, words in drawn["y_ticks"]] == ["1e-5", "1e-4"]
    assert drawn["curves"][0]["path"] == "M194 8L342 170"


def test_small_values_have_labels_that_fit_beside_the_axis() -> None:
    drawn = drawing(Chart("a", "A", "epoch", [("AP", [(1, 0.000129)])]))

    assert drawn is not None
    assert [words for _, words in drawn["y_ticks"]] == ["0", "5e-5", "1e-4", "1.5e-4"]


def test_shares_are_in_percent() -> None:
    drawn = drawing(Chart("a", "A", "step", [("wait", [(1, 0.015)])], is_share=True))

    assert drawn is not None
    assert [words for _, words in drawn["y_ticks"]] == ["0 %", "0.5 %", "1 %", "1.5 %"]


def test_a_chart_without_values_is_not_drawn() -> None:
    assert drawing(Chart("a", "A", "step", [("one", [(1, math.nan)]), ("other", [])])) is None
