import math

import pytest

from pipelines.benchmarks.figures import Spread, fixed_and_marginal, is_shown, ratios, spread


def test_a_spread_is_the_median_with_smallest_and_largest_value() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_values_and_values_that_are_not_finite_have_no_spread(values: list[float]) -> None:
    with pytest.raises(ValueError, match="median"):
        spread(values)


def test_ratios_compare_measurements_of_the_same_round_only() -> None:
    # round 1 was slow for both: 6 / 3 is a ratio, 6 / 1 would not be; round 2 has no baseline
    assert ratios({0: 2.0, 1: 6.0, 2: 9.0}, {0: 1.0, 1: 3.0}) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [(Spread(1.2, 1.1, 1.3), True), (Spread(0.8, 0.7, 0.9), True), (Spread(1.2, 0.99, 1.3), False)],
)
def test_a_difference_is_shown_when_all_rounds_agree_about_who_is_faster(ratio: Spread, *, shown: bool) -> None:
    assert is_shown(ratio) is shown


def test_fixed_and_marginal_cost_are_the_line_through_two_sizes() -> None:
    assert fixed_and_marginal([(4, 18.0), (16, 42.0)]) == pytest.approx((10.0, 2.0))


def test_more_than_two_points_are_fitted_by_least_squares() -> None:
    # by hand: the line through (0, 1), (1, 2), (2, 6) is 0.5 + 2.5 x
    assert fixed_and_marginal([(0, 1.0), (1, 2.0), (2, 6.0)]) == pytest.approx((0.5, 2.5))


def test_one_size_alone_tells_no_fixed_cost() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        fixed_and_marginal([(4, 18.0), (4, 19.0)])
