"""Statistics of repeated measurements: medians with their range, ratios within a round, fixed and marginal cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of the values of all rounds, without discarding outliers."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the range of at least one value.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    if not values:
        raise ValueError("no values: a median needs at least one")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values that are not finite have no median: {list(values)}")
    return Spread(statistics.median(values), min(values), max(values))


def ratios(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Return `values[round] / baseline[round]` for every round that has both, in order of the rounds.

    A ratio compares two measurements of the same round, because the load of a shared machine changes between rounds.
    """
    return [values[number] / baseline[number] for number in sorted(values.keys() & baseline.keys())]


def is_shown(ratio: Spread) -> bool:
    """Return whether a difference is shown: the ratios of all rounds lie on the same side of 1."""
    return ratio.least > 1 or ratio.most < 1


def fixed_and_marginal(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit `cost = fixed + marginal * size` by least squares; return (fixed, marginal).

    Args:
        points: (size, cost) pairs with at least two different sizes.

    Raises:
        ValueError: all sizes are equal, so the two costs cannot be separated.
    """
    if len({size for size, _ in points}) < 2:
        raise ValueError("fixed and marginal cost need measurements of at least two sizes")
    mean_size = statistics.fmean(size for size, _ in points)
    mean_cost = statistics.fmean(cost for _, cost in points)
    covariance = sum((size - mean_size) * (cost - mean_cost) for size, cost in points)
    marginal = covariance / sum((size - mean_size) ** 2 for size, _ in points)
    return mean_cost - marginal * mean_size, marginal
