"""Other kinds of store, through fsspec: its own store in memory stands for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from pipelines.store import (
    AlreadyExists,
    Misconfigured,
    NotFound,
    ObjectTooLarge,
    Store,
    StoreOptions,
    Stores,
    open_store,
    probe,
)

KEYS = ["A", "a-b", "a/c/d.jpg", "a/c0", "a0", "b/.hidden/x", "é", "😀"]


@pytest.fixture
def store() -> Iterator[Store]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    store = open_store("memory://lake/photos", StoreOptions(retry_seconds=0.0))
    for key in KEYS:
        store.put(key, key.encode())
    yield store
    files.store.clear()


def test_files_are_listed_in_order_after_any_of_them(store: Store) -> None:
    assert [(entry.key, entry.size) for entry in store.list()] == [(key, len(key.encode())) for key in KEYS]
    for index, key in enumerate(KEYS):
        assert [entry.key for entry in store.list(after=key)] == KEYS[index + 1 :]
    assert [entry.key for entry in store.list("a/c")] == ["a/c/d.jpg", "a/c0"]
    assert list(store.list("none/")) == []


def test_files_are_read_whole_and_in_parts(store: Store) -> None:
    assert store.get("a/c/d.jpg").data == b"a/c/d.jpg"
    assert store.get_range("a/c/d.jpg", 2, 3) == b"c/d"
    assert store.head("a/c/d.jpg").size == 9
    assert Stores().get("memory://lake/photos/a0").data == b"a0"
    with pytest.raises(ObjectTooLarge, match="photos/a0 has 2 bytes, more than 1"):
        store.get("a0", most_bytes=1)


def test_what_is_missing_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="memory://lake/photos/nothing"):
        store.get("nothing")
    store.delete("nothing")


def test_create_refuses_what_exists(store: Store) -> None:
    with pytest.raises(AlreadyExists):
        store.put("a0", b"other", create=True)

    assert store.get("a0").data == b"a0"
    assert probe(store).swap is None


def test_an_unknown_kind_of_store_is_reported_at_opening() -> None:
    with pytest.raises(Misconfigured, match="carrier-pigeon:// is not a known kind of store"):
        open_store("carrier-pigeon://coop/x.jpg")


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(Misconfigured, match=r"gs:// needs another package.*gcsfs"):
        open_store("gs://bucket", StoreOptions(via="fsspec"))
