"""Limits on time and cost: when they are reached, what is counted, and the sentence that says so."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from pipelines import caps as module
from pipelines.caps import Caps, Meter, metering


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> datetime:
        return datetime(2026, 11, 28, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_the_time_of_the_call_is_limited() -> None:
    clock = Clock()
    meter = Meter(Caps(max_minutes=2), clock)
    clock.sleep(119)
    meter.look()
    assert (meter.reached.is_set(), meter.minutes_left) == (False, pytest.approx(1 / 60))

    clock.sleep(1)
    meter.look()

    assert meter.reached.is_set()
    assert meter.reason == "the limit of 2 minutes (--max-minutes) is reached"


def test_a_limit_that_was_lifted_is_not_reached_again() -> None:
    clock = Clock()
    meter = Meter(Caps(max_minutes=1), clock)
    clock.sleep(60)
    meter.look()
    assert meter.reason == "the limit of 1 minutes (--max-minutes) is reached"

    meter.reached.clear()
    meter.caps = Caps()
    meter.look()

    assert not meter.reached.is_set()


def test_the_cost_is_that_of_the_nodes_while_they_are_counted() -> None:
    clock = Clock()
    meter = Meter(Caps(max_cost=3, price_per_hour=2), clock)
    clock.sleep(3600)  # before the cluster is connected
    meter.count_nodes(lambda: 1)
    clock.sleep(1800)
    meter.count_nodes(lambda: 4)
    clock.sleep(600)
    meter.look()
    assert (meter.node_hours, meter.cost) == (pytest.approx(0.5 + 4 / 6), pytest.approx(2 * (0.5 + 4 / 6)))
    assert not meter.reached.is_set()

    clock.sleep(600)
    meter.look()

    assert meter.reached.is_set()
    assert meter.reason == "the cost limit of 3 (--max-cost) is reached, after 1.83 node hours at 2"
    meter.count_nodes(None)
    clock.sleep(3600)
    meter.look()
    assert meter.node_hours == pytest.approx(0.5 + 8 / 6)


def test_a_head_that_does_not_answer_leaves_the_number_of_nodes_as_it_was() -> None:
    clock, answers = Clock(), [3, None]
    meter = Meter(Caps(price_per_hour=1), clock)
    meter.count_nodes(lambda: answers.pop(0))
    for _ in range(2):
        clock.sleep(1800)
        meter.look()

    assert meter.node_hours == pytest.approx(3)


def test_callbacks_are_called_once() -> None:
    clock, called = Clock(), list[int]()
    meter = Meter(Caps(max_minutes=1), clock)
    meter.when_reached(lambda: called.append(1))
    for _ in range(3):
        clock.sleep(60)
        meter.look()

    assert called == [1]


def test_without_limits_nothing_is_reached_and_a_price_alone_limits_nothing() -> None:
    clock = Clock()
    for caps in (Caps(), Caps(price_per_hour=5)):
        meter = Meter(caps, clock)
        clock.sleep(1e9)
        meter.look()
        assert (caps.are_set, meter.reached.is_set(), meter.minutes_left) == (False, False, math.inf)
    assert Meter().cost is None


def test_a_running_meter_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    with metering(Caps(max_minutes=0.001)) as meter:
        assert meter.reached.wait(20)


@pytest.mark.parametrize(
    ("caps", "sentence"),
    [
        ({"max_minutes": 0}, "max minutes: 0 is not above 0"),
        ({"price_per_hour": -1}, "price per hour: -1 is not above 0"),
        ({"max_cost": math.inf, "price_per_hour": 1}, "max cost: inf is not above 0"),
        ({"max_cost": 5}, "max cost: give --price-per-hour, the price of one node for an hour, too."),
    ],
)
def test_limits_without_a_meaning_are_refused(caps: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Caps(**caps)
    assert str(refused.value) == sentence
