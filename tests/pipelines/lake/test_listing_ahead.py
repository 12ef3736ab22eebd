"""Listing in many places at once gives what listing in one gives."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.lake import listing_ahead
from pipelines.lake.listing_ahead import list_ahead
from pipelines.store import ListsAnywhere, StoreDown, StoreEntry, open_store

if TYPE_CHECKING:
    from tests.conftest import S3Server

FOLDERS = 5

DATED = [f"2026/{month:02d}/station-{number % 7}/DSC_{number:05d}.JPG" for month in (1, 2, 11) for number in range(900)]
FLAT = [f"IMG_{number:06d}.jpg" for number in range(3_000)]
LOPSIDED = [f"a/{number}" for number in range(2_500)] + ["b", "ü/1", "\U0001f600/x", "z/z/z/z/z/z/z/z/z/z/z/1"]
SMALL_FOLDERS = [f"{number // 100}/{number % 100 // 3}/{number}" for number in range(3_000)]
ALIKE = [f"{'deep/' * 20}{number:b}" for number in range(2_000)]


@pytest.fixture(autouse=True)
def small_pages() -> Iterator[None]:
    with (
        patch.object(listing_ahead, "_PAGE", 10),
        patch.object(listing_ahead, "_ALONE", 30),
        patch.object(listing_ahead, "_RANGE_KEYS", 40),
        patch.object(listing_ahead, "_WAITING_KEYS", 400),
        patch.object(listing_ahead, "_PAGES_TO_HALVE", 5),
        patch.object(listing_ahead, "_SAMPLED", 2),
    ):
        yield


class Bucket:
    """Keys that are listed from anywhere, folders a few at a time; what was asked for is counted."""

    def __init__(self, keys: Iterable[str], *, broken_from: str | None = None) -> None:
        self.keys = sorted(keys)
        self.given = self.begun = 0
        self._broken_from = broken_from

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        self.begun += 1
        for key in self.keys:
            if key.startswith(prefix) and key > (after or ""):
                if self._broken_from is not None and key >= self._broken_from:
                    raise StoreDown("no answer")
                self.given += 1
                yield StoreEntry(key, 1, key)

    def folders(self, folder: str, after: str) -> tuple[Sequence[str], bool]:
        below = (key[len(folder) :] for key in self.keys if key.startswith(folder) and key > after)
        names = sorted({f"{folder}{key.partition('/')[0]}/" for key in below if "/" in key})
        found = [name for name in names if name > after and not after.startswith(name)]
        return found[:FOLDERS], len(found) <= FOLDERS


@pytest.mark.parametrize("keys", [DATED, FLAT, LOPSIDED, ALIKE, SMALL_FOLDERS, [], ["one"], FLAT[:30], FLAT[:31]])
def test_it_gives_every_key_once_and_in_order(keys: list[str]) -> None:
    bucket = Bucket(keys)
    after = sorted(keys)[len(keys) // 3] if keys else None

    assert list(list_ahead(bucket, "", None)) == list(bucket.list())
    assert list(list_ahead(bucket, "", after)) == list(bucket.list(after=after))


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_a_real_client_lists_in_many_places_at_once(moto: S3Server, via: Literal["auto", "fsspec"]) -> None:
    uri = moto.bucket()
    keys = [f"{number % 4}/{number % 3}/IMG {number:03d}.jpg" for number in range(150)] + ["1//x.jpg", "1/./y.jpg"]
    for key in keys:
        moto.client().put_object(Bucket=uri[5:], Key=f"lake/{key}", Body=b"1")
    store = open_store(f"{uri}/lake", moto.options(via=via))
    assert isinstance(store, ListsAnywhere)

    assert [entry.key for entry in list_ahead(store, "", None)] == sorted(keys)
    assert list(list_ahead(store, "", "1/")) == list(store.list(after="1/"))


@pytest.mark.parametrize("prefix", ["2026/", "2026/1", "2026/02/station-3/", "2026/02/station-3/DSC_0", "3"])
def test_it_gives_what_begins_with_a_prefix(prefix: str) -> None:
    bucket = Bucket(DATED)

    assert list(list_ahead(bucket, prefix, None)) == list(bucket.list(prefix))


@settings(deadline=None, max_examples=100)
@given(
    keys=st.sets(st.text(st.sampled_from("/.-09Aaz~ü\U0001f600"), min_size=1, max_size=6), max_size=300),
    prefix=st.text(st.sampled_from("/.0aü"), max_size=2),
    after=st.none() | st.text(st.sampled_from("/09az~ü"), min_size=1, max_size=4),
    threads=st.integers(1, 5),
)
def test_any_keys_any_prefix_any_start(keys: set[str], prefix: str, after: str | None, threads: int) -> None:
    bucket = Bucket(keys)

    assert list(list_ahead(bucket, prefix, after, threads=threads)) == list(bucket.list(prefix, after))


@pytest.mark.parametrize("keys", [DATED, FLAT])
def test_many_requests_run_at_once(keys: list[str]) -> None:
    together, passed = threading.Barrier(4, timeout=30), threading.Event()

    class Waiting(Bucket):
        def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
            for number, entry in enumerate(super().list(prefix, after)):
                if after is not None and number == 0 and not passed.is_set():
                    together.wait()  # in vain, unless four listings have begun
                    passed.set()
                yield entry

    assert len(list(list_ahead(Waiting(keys), "", None, threads=5))) == len(keys)


@pytest.mark.parametrize("keys", [DATED, FLAT])
def test_what_waits_for_a_slow_reader_is_bounded(keys: list[str]) -> None:
    bucket = Bucket(keys)

    with patch.object(listing_ahead, "_WAITING_KEYS", 100):
        listed = list_ahead(bucket, "", None, threads=4)
        read = [next(listed) for _ in range(200)]
        listed.close()  # type: ignore[attr-defined]

    assert len(read) == 200
    assert bucket.given < 200 + 100 + 4 * 10 + bucket.begun * 10  # what waits, is under way, and ran into its neighbour


def test_a_listing_that_fails_gives_all_before_it_first() -> None:
    keys = sorted(DATED)
    bucket = Bucket(keys, broken_from=keys[1_234])

    listed, read = list_ahead(bucket, "", None), list[str]()
    with pytest.raises(StoreDown):
        read.extend(entry.key for entry in listed)  # keeps what came before the failure

    assert read == keys[: len(read)]
    assert len(read) > 1_234 - 2 * 10


@pytest.mark.parametrize("keys", [DATED, FLAT, SMALL_FOLDERS])
def test_few_requests_are_in_vain(keys: list[str]) -> None:
    bucket = Bucket(keys)

    list(list_ahead(bucket, "", None))

    assert bucket.given / 10 + bucket.begun < 2.5 * len(keys) / 10  # more than there are: many pages are not full
