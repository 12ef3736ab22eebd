"""Listing in many places at once gives what listing in one gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.lake import listing_ahead
from pipelines.lake.listing_ahead import list_ahead
from pipelines.store import Entry, Store, StoreDown, memory_store

DATED = [f"2026/{month:02d}/station-{number % 7}/DSC_{number:05d}.JPG" for month in (1, 2, 11) for number in range(900)]
FLAT = [f"IMG_{number:06d}.jpg" for number in range(3_000)]
LOPSIDED = [f"a/{number}" for number in range(2_500)] + ["b", "ü/1", "\U0001f600/x", "z/z/z/z/z/z/z/z/z/z/z/1"]
ALIKE = [f"{'deep/' * 20}{number:b}" for number in range(2_000)]


@pytest.fixture(autouse=True)
def small_pages() -> Iterator[None]:
    with (
        patch.object(listing_ahead, "_PAGE", 10),
        patch.object(listing_ahead, "_ALONE", 30),
        patch.object(listing_ahead, "_RANGE_KEYS", 40),
    ):
        yield


def bucket(keys: list[str]) -> Store:
    store = memory_store("s3://lake")
    for key in keys:
        store.put(key, b"1")
    return store


@pytest.mark.parametrize("keys", [DATED, FLAT, LOPSIDED, ALIKE, [], ["one"], FLAT[:30], FLAT[:31]])
def test_it_gives_every_key_once_and_in_order(keys: list[str]) -> None:
    store = bucket(keys)
    after = sorted(keys)[len(keys) // 3] if keys else None

    assert list(list_ahead(store.list, "", None)) == list(store.list())
    assert list(list_ahead(store.list, "", after)) == list(store.list(after=after))


@pytest.mark.parametrize("prefix", ["2026/", "2026/1", "2026/02/station-3/", "2026/02/station-3/DSC_0", "3"])
def test_it_gives_what_begins_with_a_prefix(prefix: str) -> None:
    store = bucket(DATED)

    assert list(list_ahead(store.list, prefix, None)) == list(store.list(prefix))


@settings(deadline=None, max_examples=60)
@given(
    keys=st.sets(st.text(st.sampled_from("/.-09Aaz~ü\U0001f600"), min_size=1, max_size=6), max_size=300),
    prefix=st.text(st.sampled_from("/.0aü"), max_size=2),
    after=st.none() | st.text(st.sampled_from("/09az~ü"), min_size=1, max_size=4),
    threads=st.integers(1, 5),
)
def test_any_keys_any_prefix_any_start(keys: set[str], prefix: str, after: str | None, threads: int) -> None:
    store = bucket(list(keys))

    assert list(list_ahead(store.list, prefix, after, threads=threads)) == list(store.list(prefix, after))


def test_many_requests_run_at_once() -> None:
    store, together = bucket(DATED), threading.Barrier(8, timeout=30)
    passed = threading.Event()

    def list_from(prefix: str, after: str | None) -> Iterator[Entry]:
        for number, entry in enumerate(store.list(prefix, after)):
            if after is not None and number == 0 and not passed.is_set():
                together.wait()  # in vain, unless eight listings have begun
                passed.set()
            yield entry

    assert len(list(list_ahead(list_from, "", None, threads=8 + 1))) == len(DATED)


def test_what_waits_for_a_slow_reader_is_bounded() -> None:
    store, count = bucket([f"{number:07d}" for number in range(20_000)]), [0]

    def list_from(prefix: str, after: str | None) -> Iterator[Entry]:
        for entry in store.list(prefix, after):
            count[0] += 1
            yield entry

    with patch.object(listing_ahead, "_RANGES", 6):
        listed = list_ahead(list_from, "", None, threads=4)
        read = [next(listed) for _ in range(200)]
        listed.close()  # type: ignore[attr-defined]

    assert len(read) == 200
    assert count[0] < 200 + 6 * (40 + 10) + 30 * 10  # ranges, and requests that met nothing new


def test_a_listing_that_fails_gives_all_before_it_first() -> None:
    store = bucket(DATED)
    keys = [entry.key for entry in store.list()]

    def list_from(prefix: str, after: str | None) -> Iterator[Entry]:
        for entry in store.list(prefix, after):
            if entry.key >= keys[1_234]:
                raise StoreDown("no answer")
            yield entry

    read: list[str] = []
    with pytest.raises(StoreDown):
        for entry in list_ahead(list_from, "", None):
            read.append(entry.key)  # noqa: PERF401 - what was read before the failure counts

    assert read == keys[: len(read)]
    assert len(read) > 1_234 - 2 * 10


def test_few_requests_are_in_vain() -> None:
    store, requests = bucket(DATED), [0]

    def list_from(prefix: str, after: str | None) -> Iterator[Entry]:
        requests[0] += 1
        for number, entry in enumerate(store.list(prefix, after), 1):
            yield entry
            requests[0] += number % 10 == 0

    list(list_ahead(list_from, "", None))

    assert requests[0] < 2 * len(DATED) / 10
