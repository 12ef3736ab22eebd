"""A watchdog names the stage that does not move, and no other."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from pipelines import watchdog as module
from pipelines.watchdog import Watchdog, watching


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 26, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_stage_is_named_after_two_minutes_and_again_whenever_the_time_has_doubled() -> None:
    clock, told = Clock(), list[str]()
    watchdog = Watchdog(clock, told.append)
    with watchdog.stage("planning", detail=lambda: "s3://lake is being listed"):
        for _ in range(10 * 60 // 5):
            clock.sleep(5)
            watchdog.look()

    assert told == [
        "planning: no progress for 2 min; s3://lake is being listed",
        "planning: no progress for 4 min; s3://lake is being listed",
        "planning: no progress for 8 min; s3://lake is being listed",
    ]


def test_what_moves_is_not_named_and_what_is_over_neither() -> None:
    clock, told = Clock(), list[str]()
    watchdog = Watchdog(clock, told.append)
    with watchdog.stage("labelling"), watchdog.stage("planning") as moved:
        for _ in range(5):
            clock.sleep(60)
            moved()
            watchdog.look()
    clock.sleep(1000)
    watchdog.look()

    assert told == ["labelling: no progress for 2 min", "labelling: no progress for 4 min"]


def test_a_stage_that_moved_is_named_afresh_when_it_stands_still_again() -> None:
    clock, told = Clock(), list[str]()
    watchdog = Watchdog(clock, told.append)
    with watchdog.stage("publishing") as moved:
        clock.sleep(130)
        watchdog.look()
        moved()
        clock.sleep(119)
        watchdog.look()
        assert len(told) == 1
        clock.sleep(1)
        watchdog.look()

    assert told == ["publishing: no progress for 2 min"] * 2


def test_shards_that_take_five_minutes_are_given_fifteen() -> None:
    clock, told = Clock(), list[str]()
    watchdog = Watchdog(clock, told.append)
    with watchdog.stage("labelling") as moved:
        moved(300)
        clock.sleep(899)
        watchdog.look()
        assert told == []
        clock.sleep(1)
        watchdog.look()

    assert told == ["labelling: no progress for 15 min"]


def test_it_looks_by_itself_and_says_it_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.05)
    with watching() as watchdog, watchdog.stage("connecting to Ray"):
        for _ in range(500):
            if caplog.messages:
                break
            threading.Event().wait(0.01)

    assert caplog.messages[0].startswith("connecting to Ray: no progress for 0 min")
