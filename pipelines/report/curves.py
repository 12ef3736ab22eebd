"""Line charts of a report as values for the template: points, ticks, and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

LEFT, RIGHT, TOP, BOTTOM = 46, 342, 8, 170  # the drawn area in a view box of 360 x 200
MOST_POINTS: Final = 300
MARKED_POINTS: Final = 40  # up to this many points are marked
MOST_NUMBERS: Final = 25  # rows of the table below a chart

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart: curves by name over one axis.

    Attributes:
        id: unique on the page.
        title: above it.
        x: label of the horizontal axis.
        curves: points (x, y) by name, at most three curves; y is NaN if there is no value.
        is_log: whether the vertical axis is logarithmic; values of 0 are then left out.
        is_share: whether values are shares, shown in percent.
        marks: x of vertical lines at restarts of the workers.
    """

    id: str
    title: str
    x: str
    curves: Sequence[tuple[str, Points]]
    is_log: bool = False
    is_share: bool = False
    marks: Sequence[float] = ()


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: means of consecutive ones, ignoring NaN unless all are NaN."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    parts = [points[place : place + size] for place in range(0, len(points), size)]
    return [(part[-1][0], _mean([y for _, y in part if math.isfinite(y)])) for part in parts]


def ticks(highest: float, most: int = 5, *, is_whole: bool = False) -> list[float]:
    """Return round numbers from 0 to at least `highest`, in equal steps of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * most >= highest * (1 - 1e-9))
    if is_whole:
        step = max(1.0, step)
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]


def drawing(chart: Chart) -> dict[str, Any] | None:
    """Return the values for the template; None if a chart has no value."""
    curves = [(name, [(x, y) for x, y in points if _is_shown(y, chart)]) for name, points in chart.curves]
    ys = [y for _, points in curves for _, y in points]
    if not ys:
        return None
    xs = [x for _, points in curves for x, _ in points]
    end = max(xs)
    x_ticks = [x for x in ticks(end, 4, is_whole=True) if x <= end]
    if chart.is_log:
        low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        levels = [float(power) for power in range(low, max(high, low + 1) + 1)]
    else:
        levels = ticks(max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        level = math.log10(y) if chart.is_log else y
        return _across(x, end), _up((level - levels[0]) / (levels[-1] - levels[0]))

    drawn: list[dict[str, Any]] = []
    for name, points in chart.curves:
        shown = [(x, y) for x, y in points if _is_shown(y, chart)]
        thin = [place(x, y) if _is_shown(y, chart) else None for x, y in thinned(points)]
        marks = [one for one in thin if one is not None] if len(thin) <= MARKED_POINTS else []
        drawn.append({"name": name, "path": _path(thin), "marks": marks, "words": _words(name, shown, chart)})
    names = [name for name, _ in chart.curves]
    return {
        "id": chart.id,
        "title": chart.title,
        "x": chart.x,
        "curves": drawn,
        "x_ticks": [(_across(x, end), f"{x:,.0f}") for x in x_ticks],
        "y_ticks": [
            (_up((level - levels[0]) / (levels[-1] - levels[0])), _shown(10**level if chart.is_log else level, chart))
            for level in levels
        ],
        "restarts": [_across(x, end) for x in chart.marks if x <= end],
        "columns": [chart.x, *names],
        "rows": _rows(chart),
        "sentence": f"{chart.title}. {' '.join(one['words'] for one in drawn)}",
    }


def _rows(chart: Chart) -> list[list[str]]:
    values: dict[float, dict[str, float]] = {}
    for name, points in chart.curves:
        for x, y in points:
            values.setdefault(x, {})[name] = y
    xs = sorted(values)
    if len(xs) > MOST_NUMBERS:  # evenly spread, the first and the last among them
        xs = [xs[round(place * (len(xs) - 1) / (MOST_NUMBERS - 1))] for place in range(MOST_NUMBERS)]
    return [[f"{x:,.0f}", *(_shown(values[x].get(name, math.nan), chart) for name, _ in chart.curves)] for x in xs]


def _words(name: str, points: Points, chart: Chart) -> str:
    if not points:
        return f"{name}: no value."
    (_, first), (_, last) = points[0], points[-1]
    (low_x, low), (high_x, high) = (choose(points, key=lambda point: point[1]) for choose in (min, max))
    return (
        f"{name}: first {_shown(first, chart)}, last {_shown(last, chart)}, lowest {_shown(low, chart)} at {chart.x} "
        f"{low_x:,.0f}, highest {_shown(high, chart)} at {chart.x} {high_x:,.0f}."
    )


def _shown(value: float, chart: Chart) -> str:
    if not math.isfinite(value):
        return "none"
    if chart.is_log or (not chart.is_share and 0 < abs(value) < 0.001):  # more digits do not fit beside the axis
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{100 * value:.3g} %" if chart.is_share else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _is_shown(y: float, chart: Chart) -> bool:
    return math.isfinite(y) and (y > 0 or not chart.is_log)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return an SVG path with gaps at missing values."""
    parts, pen = [], "M"
    for point in points:
        if point is not None:
            parts.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "M" if point is None else "L"
    return "".join(parts)


def _across(x: float, most: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * x / most, 1)


def _up(share: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
