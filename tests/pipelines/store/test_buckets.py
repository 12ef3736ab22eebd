"""Google's and Azure's stores, as far as they go without an account."""

from __future__ import annotations

import threading

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from pipelines.store import Misconfigured, NotFound, StoreDown, StoreOptions, open_store
from pipelines.store.interface import QUICK_BYTES, transfer_seconds
from pipelines.store.obstore_store import ObstoreStore

ANONYMOUS = StoreOptions(anonymous=True, retry_seconds=0.0)


@pytest.mark.parametrize(
    "uri", ["gs://bucket/lake", "gcs://bucket/lake", "abfss://container@account.dfs.core.windows.net/lake"]
)
def test_a_bucket_is_opened_under_its_own_name(uri: str) -> None:
    assert open_store(uri, ANONYMOUS).uri == uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("az://container/lake", "az://container cannot be opened: Account must be specified. Set AZURE_STORAGE_ACC"),
        ("s3:///lake", "the name of a bucket is missing"),
    ],
)
def test_what_is_missing_is_reported_at_opening(uri: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(Misconfigured, match=words):
        open_store(uri, ANONYMOUS)


def test_the_account_is_asked_for_only_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "s3cret!!")

    with pytest.raises(Misconfigured, match=r"^az://container cannot be opened: Invalid Access Key") as raised:
        open_store("az://container/lake", StoreOptions(retry_seconds=0.0))

    assert "AZURE_STORAGE_ACCOUNT_NAME" not in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_name_that_the_only_client_cannot_take_is_not_found() -> None:
    store = ObstoreStore(MemoryStore(), "gs://bucket", "", slow=None, retry_seconds=0.0)

    with pytest.raises(NotFound, match=r"gs://bucket/a//b.*--via fsspec"):
        store.get("a//b")


@pytest.mark.parametrize(("reads_once", "attempts"), [(True, 1), (False, 3)])
def test_a_store_whose_caller_retries_reads_an_object_once(
    reads_once: bool, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, tried = obstore.get, []

    def cut(bucket: MemoryStore, path: str) -> object:
        tried.append(path)
        if len(tried) < 3:
            raise GenericError("error decoding response body")
        return get(bucket, path)

    store = ObstoreStore(MemoryStore(), "gs://bucket", "", slow=None, retry_seconds=60.0, reads_once=reads_once)
    store.put("a", b"bytes")
    monkeypatch.setattr(obstore, "get", cut)
    if reads_once:
        with pytest.raises(StoreDown):
            store.get("a")
    else:
        assert store.get("a").data == b"bytes"
    assert tried == ["a"] * attempts


def test_large_transfers_have_time_for_their_size() -> None:
    sizes = [1, QUICK_BYTES, QUICK_BYTES + 1, 256 * 2**20, 500 * 10**6, 5 * 10**9]

    assert [transfer_seconds(size) for size in sizes] == [60, 60, 120, 480, 960, 7680]
    assert all(size / transfer_seconds(size) <= 10**6 for size in sizes)


def test_large_puts_go_through_a_client_of_more_patience_which_is_opened_once() -> None:
    opened: list[int] = []
    quick, patient = MemoryStore(), MemoryStore()

    def open_patient(seconds: int) -> MemoryStore:
        opened.append(seconds)
        return patient

    store = ObstoreStore(quick, "gs://bucket", "", slow=None, retry_seconds=0.0, patient=open_patient)
    large = bytes(QUICK_BYTES + 1)
    store.put("small", large[:QUICK_BYTES])
    store.put("large", large)
    store.put("created", large, create=True)

    assert opened == [120]
    assert [entry["path"] for page in quick.list() for entry in page] == ["small"]
    assert [entry["path"] for page in patient.list() for entry in page] == ["created", "large"]


def test_empty_entries_of_a_store_without_another_client_are_asked_about_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ObstoreStore(MemoryStore(), "gs://bucket", "", slow=None, retry_seconds=0.0)
    for number in range(60):
        store.put(f"{number:02}", b"")
    store.put("10.jpg", b"1")
    head, meet, asked = obstore.head, threading.Barrier(16), []

    def ask(bucket: MemoryStore, path: str) -> object:
        asked.append(path)
        if path < "16":
            meet.wait(10.0)  # breaks if fewer ask at once
        if path in ("03", "59"):
            raise FileNotFoundError(path)
        return head(bucket, path)

    monkeypatch.setattr(obstore, "head", ask)

    expected = [key for number in range(60) for key in (f"{number:02}", *["10.jpg"] * (number == 10))]
    assert [entry.key for entry in store.list()] == [key for key in expected if key not in ("03", "59")]
    assert sorted(asked) == [f"{number:02}" for number in range(60)]


def test_a_refusal_of_an_empty_entry_is_raised_where_the_listing_has_come_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ObstoreStore(MemoryStore(), "gs://bucket", "", slow=None, retry_seconds=0.0)
    for key in ("a", "b", "c"):
        store.put(key, b"")
    head = obstore.head

    def ask(bucket: MemoryStore, path: str) -> object:
        if path == "b":
            raise GenericError("error sending request")
        return head(bucket, path)

    monkeypatch.setattr(obstore, "head", ask)
    entries = store.list()

    assert next(entries).key == "a"
    with pytest.raises(StoreDown, match="gs://bucket/b"):
        next(entries)
