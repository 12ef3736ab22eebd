"""Google's and Azure's stores, as far as they go without an account."""

from __future__ import annotations

import pytest
from obstore.store import MemoryStore

from pipelines.store import Misconfigured, NotFound, StoreOptions, open_store
from pipelines.store.native import NativeStore

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
        ("s3:///lake", "a bucket is missing"),
    ],
)
def test_what_is_missing_is_told_at_opening(uri: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(Misconfigured, match=words):
        open_store(uri, ANONYMOUS)


def test_a_name_that_the_only_client_cannot_take_is_not_found() -> None:
    store = NativeStore(MemoryStore(), "gs://bucket", "", slow=None, retry_seconds=0.0)

    with pytest.raises(NotFound, match=r"gs://bucket/a//b.*--via fsspec"):
        store.get("a//b")
