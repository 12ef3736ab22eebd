"""Other kinds of store, through fsspec: its own store in memory stands for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest
import requests

from pipelines.lake.listing import list_objects
from pipelines.store import (
    AlreadyExists,
    Denied,
    Misconfigured,
    NotFound,
    ObjectTooLarge,
    Store,
    StoreDown,
    StoreError,
    StoreOptions,
    Stores,
    Throttled,
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


def test_a_folder_is_not_a_file(store: Store) -> None:
    with pytest.raises(NotFound, match="memory://lake/photos/a is not a file: name files, or the folder"):
        store.head("a")


def test_a_folder_is_listed_with_or_without_its_slash(store: Store) -> None:
    store.put("set.jpg/1.jpg", b"1")

    for source in ("memory://lake/photos/set.jpg", "memory://lake/photos/set.jpg/"):
        assert [item.uri for item in list_objects([source])] == ["memory://lake/photos/set.jpg/1.jpg"]


class _ResponseError(OSError):
    """An error like those of requests and huggingface_hub."""

    def __init__(self, status: int) -> None:
        super().__init__("refused")
        self.response = requests.Response()
        self.response.status_code = status


@pytest.mark.parametrize("is_cause", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Misconfigured), (403, Denied), (404, NotFound), (429, Throttled), (500, StoreDown), (503, Throttled)],
)
def test_the_status_of_a_response_decides_what_an_error_is(
    status: int, kind: type[StoreError], is_cause: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        if is_cause:
            raise OSError("wrapped") from _ResponseError(status)
        raise _ResponseError(status)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(kind, match=rf"memory://lake/photos/a0 cannot be read: .*\({status}\)"):
        store.get("a0")


def test_create_refuses_what_exists(store: Store) -> None:
    with pytest.raises(AlreadyExists):
        store.put("a0", b"other", create=True)

    assert store.get("a0").data == b"a0"
    assert probe(store).swap is None


def test_an_unknown_kind_of_store_is_reported_at_opening() -> None:
    with pytest.raises(Misconfigured, match="carrier-pigeon:// is not a known kind of store"):
        open_store("carrier-pigeon://coop/x.jpg")


@pytest.mark.parametrize("uri", ["ftp:///a.jpg", "github://a.jpg"])
def test_an_address_that_is_not_complete_is_reported_at_opening(uri: str) -> None:
    with pytest.raises(Misconfigured, match="is not a complete address of a"):
        open_store(uri, StoreOptions(retry_seconds=0.0))


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(Misconfigured, match=r"gs:// needs another package.*gcsfs"):
        open_store("gs://bucket", StoreOptions(via="fsspec"))
