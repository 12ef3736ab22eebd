"""Fewer requests for a store that pushes back, and more again for one that does not; no clock has a part in it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.labelling.adaptive_limit import AdaptiveLimit
from pipelines.store import Denied, NotFound, StoreDown, StoreError, Throttled


def fail(limit: AdaptiveLimit, failure: StoreError) -> None:
    limit.fail(failure, limit.cuts)


def succeed(limit: AdaptiveLimit, times: int) -> None:
    for _ in range(times):
        limit.succeed()


def test_it_begins_with_the_most() -> None:
    assert AdaptiveLimit(32).limit == 32


@pytest.mark.parametrize("failure", [Throttled("slow down"), StoreDown("no answer")])
def test_a_store_that_pushes_back_is_given_half_and_never_nothing(failure: StoreError) -> None:
    limit, seen = AdaptiveLimit(32), []

    for _ in range(7):
        fail(limit, failure)
        seen.append(limit.limit)

    assert seen == [16, 8, 4, 2, 1, 1, 1]


@pytest.mark.parametrize("failure", [NotFound("gone"), Denied("refused")])
def test_an_error_of_one_object_does_not_reduce_the_limit(failure: StoreError) -> None:
    limit = AdaptiveLimit(32)

    fail(limit, failure)

    assert limit.limit == 32


def test_fifty_successes_raise_it_by_one_up_to_the_most() -> None:
    limit = AdaptiveLimit(4)
    fail(limit, Throttled("slow down"))

    succeed(limit, 49)
    assert limit.limit == 2
    succeed(limit, 1)
    assert limit.limit == 3
    succeed(limit, 1_000)
    assert limit.limit == 4


def test_a_cut_takes_what_was_gathered_towards_a_rise() -> None:
    limit = AdaptiveLimit(8)
    fail(limit, Throttled("slow down"))
    succeed(limit, 49)
    fail(limit, Throttled("slow down"))

    succeed(limit, 49)

    assert limit.limit == 2


def test_attempts_that_fail_together_halve_it_once() -> None:
    limit, together = AdaptiveLimit(32), threading.Barrier(8)

    def attempt(_: int) -> None:
        cuts = limit.cuts
        together.wait(timeout=30)
        limit.fail(Throttled("slow down"), cuts)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(attempt, range(8)))

    assert limit.limit == 16


def test_no_more_turns_are_taken_at_once_than_it_says() -> None:
    limit = AdaptiveLimit(4)
    fail(limit, Throttled("slow down"))
    lock, now, most = threading.Lock(), 0, 0
    both = threading.Barrier(2)  # two must be there at once, or the test hangs up

    def work(_: int) -> None:
        nonlocal now, most
        with limit.turn():
            with lock:
                now += 1
                most = max(most, now)
            both.wait(timeout=30)
            with lock:
                now -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(16)))

    assert most == 2


def test_a_turn_ends_with_an_error_too() -> None:
    limit = AdaptiveLimit(1)
    with pytest.raises(NotFound), limit.turn():
        raise NotFound("gone")

    with limit.turn():  # it would wait for ever
        pass


def test_a_least_that_is_the_most_holds_it_still() -> None:
    limit = AdaptiveLimit(8, least=8)

    fail(limit, Throttled("slow down"))

    assert limit.limit == 8
