"""What every store promises: one contract, run on each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.store import (
    AlreadyExists,
    Changed,
    Misconfigured,
    NotFound,
    ObjectTooLarge,
    Store,
    StoreEntry,
    probe,
)

# Byte order puts "-" before "/" before "0", capitals before small letters, "é" before the emoji
KEYS = ["A", "a-b", "a/c/d.jpg", "a/c0", "a0", "b/.hidden/x", "b/_x", "b/Ünïcode 50%+&?#~.jpg", "é", "\uffee", "😀"]


def fill(store: Store, keys: list[str]) -> None:
    for key in keys:
        store.put(key, key.encode())


def keys_of(entries: Iterator[StoreEntry]) -> list[str]:
    return [entry.key for entry in entries]


def test_what_was_put_is_got_whole(store: Store) -> None:
    etag = store.put("a/b.bin", b"\x00\xff" * 70_000)

    blob = store.get("a/b.bin")

    assert blob.data == b"\x00\xff" * 70_000
    assert blob.etag == etag
    assert etag
    assert '"' not in etag


def test_an_object_of_more_bytes_than_are_asked_for_is_refused_and_the_store_goes_on(store: Store) -> None:
    store.put("a.jpg", b"12345")

    for _ in range(12):  # more than s3fs has connections
        with pytest.raises(ObjectTooLarge, match=r"a\.jpg has 5 bytes, more than 4; it was not read\."):
            store.get("a.jpg", most_bytes=4)
    assert store.get("a.jpg", most_bytes=5).data == b"12345"


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty.jpg", b"")

    assert store.get("empty.jpg").data == b""
    assert [(entry.key, entry.size) for entry in store.list()] == [("empty.jpg", 0)]


def test_a_second_put_replaces(store: Store) -> None:
    store.put("k", b"first")
    store.put("k", b"second!")

    assert store.get("k").data == b"second!"
    assert keys_of(store.list()) == ["k"]


def test_listing_is_in_byte_order_at_every_depth(store: Store) -> None:
    fill(store, KEYS[::-1])

    assert keys_of(store.list()) == KEYS


def test_listing_tells_sizes_and_the_etags_that_reading_tells(store: Store) -> None:
    store.put("a/b", b"12345")

    (entry,) = store.list()

    assert entry == StoreEntry("a/b", 5, store.get("a/b").etag)
    assert store.head("a/b") == entry


def test_listing_and_head_tell_when_an_object_was_written(store: Store) -> None:
    before = time.time()
    store.put("a/b", b"12345")
    after = time.time()

    (entry,) = store.list()

    # S3 tells whole seconds; a file system's clock may lag by a tick
    assert entry.modified is not None
    assert before - 1.1 <= entry.modified <= after + 0.1
    assert store.head("a/b").modified == pytest.approx(entry.modified, abs=1)


def test_an_empty_store_lists_nothing(store: Store) -> None:
    assert keys_of(store.list()) == []
    assert keys_of(store.list("no/such/folder/")) == []


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("a", ["a-b", "a/c/d.jpg", "a/c0", "a0"]),
        ("a/", ["a/c/d.jpg", "a/c0"]),
        ("a/c", ["a/c/d.jpg", "a/c0"]),
        ("a/c/d.jpg", ["a/c/d.jpg"]),
        ("a0", ["a0"]),
        ("b/.", ["b/.hidden/x"]),
        ("c", []),
        ("\uffee", ["\uffee"]),
    ],
)
def test_a_prefix_is_any_beginning_of_a_key(store: Store, prefix: str, expected: list[str]) -> None:
    fill(store, KEYS)

    assert keys_of(store.list(prefix)) == expected


def test_listing_goes_on_after_any_key_there_or_not(store: Store) -> None:
    fill(store, KEYS)

    for index, key in enumerate(KEYS):
        assert keys_of(store.list(after=key)) == KEYS[index + 1 :]
    assert keys_of(store.list(after="a/c/")) == KEYS[2:]
    assert keys_of(store.list("a/", after="a/c/d.jpg")) == ["a/c0"]
    assert keys_of(store.list("a/", after="b")) == []


def test_get_range_gives_what_is_there_of_the_range(store: Store) -> None:
    store.put("k", b"0123456789")

    assert store.get_range("k", 2, 3) == b"234"
    assert store.get_range("k", 8, 100) == b"89"
    assert store.get_range("k", 10, 5) == b""
    assert store.get_range("k", 3, 0) == b""


def test_a_range_of_another_version_is_refused_where_etags_are_known(store: Store) -> None:
    store.put("k", b"first")
    first = store.head("k").etag
    assert store.get_range("k", 1, 3, if_match=first) == b"irs"
    assert store.get_range("k", 9, 3, if_match=first) == b""

    store.put("k", b"second!")  # another size: local files of one size and time are one version

    if first is not None:
        with pytest.raises(Changed, match="k has changed: its etag is"):
            store.get_range("k", 1, 3, if_match=first)


def test_a_missing_object_is_not_found_by_its_whole_name(store: Store) -> None:
    for ask in (store.get, store.head, lambda key: store.get_range(key, 0, 5)):
        with pytest.raises(NotFound, match=r"no/such.jpg") as raised:
            ask("no/such.jpg")
        assert store.uri.removeprefix("file://") in str(raised.value)


def test_deleting_is_done_once_or_twice(store: Store) -> None:
    fill(store, ["a/b", "a/c"])

    store.delete("a/b")
    store.delete("a/b")

    assert keys_of(store.list()) == ["a/c"]


def test_create_refuses_what_exists_and_leaves_it(store: Store) -> None:
    store.put("k", b"first", create=True)

    with pytest.raises(AlreadyExists, match="k"):
        store.put("k", b"second", create=True)

    assert store.get("k").data == b"first"


def test_of_many_creators_one_wins_and_its_object_is_whole(store: Store) -> None:
    bodies = [bytes([number]) * 100_000 for number in range(8)]
    outcomes: dict[int, bool] = {}
    start = threading.Barrier(len(bodies))

    def create(number: int) -> None:
        start.wait()
        try:
            store.put("k", bodies[number], create=True)
        except AlreadyExists:
            outcomes[number] = False
        else:
            outcomes[number] = True

    threads = [threading.Thread(target=create, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (winner,) = [number for number, won in outcomes.items() if won]
    assert len(outcomes) == len(bodies)
    assert store.get("k").data == bodies[winner]


def test_the_probe_finds_what_the_store_can_do_and_leaves_nothing(store: Store) -> None:
    capabilities = probe(store)

    assert capabilities.create_only
    assert (capabilities.swap is None) == store.uri.startswith("file:")
    assert keys_of(store.list()) == []


def test_swap_replaces_only_the_object_with_that_etag(store: Store) -> None:
    first = store.put("k", b"first")
    if store.uri.startswith("file:"):
        with pytest.raises(Misconfigured, match="lock file"):
            store.put("k", b"second", if_match=first)
        return

    second = store.put("k", b"second", if_match=first)
    with pytest.raises(Changed):
        store.put("k", b"third", if_match=first)
    with pytest.raises(Changed):
        store.put("other", b"third", if_match=first)

    assert store.get("k").data == b"second"
    assert store.get("k").etag == second


def test_many_threads_read_and_write_one_store(store: Store) -> None:
    def work(number: int) -> None:
        for step in range(5):
            store.put(f"{number}/{step}", bytes([number, step]))
            assert store.get(f"{number}/{step}").data == bytes([number, step])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(keys_of(store.list())) == 40
