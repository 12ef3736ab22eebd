"""One small interface to every object store: the only place that knows obstore, fsspec and botocore."""

from pipelines.store.interface import (
    AlreadyExists,
    Archived,
    Blob,
    Changed,
    Denied,
    Entry,
    ListsAnywhere,
    ListsUnnameable,
    Misconfigured,
    NotFound,
    Store,
    StoreDown,
    StoreError,
    StoreOptions,
    Throttled,
    TooLarge,
    is_transient,
)
from pipelines.store.memory import memory_store
from pipelines.store.opening import Stores, open_store
from pipelines.store.probe import Capabilities, probe
from pipelines.store.uris import GIVES_ACCESS, check_no_secret, has_secret, join_uri, split_uri, without_secrets

__all__ = [
    "GIVES_ACCESS",
    "AlreadyExists",
    "Archived",
    "Blob",
    "Capabilities",
    "Changed",
    "Denied",
    "Entry",
    "ListsAnywhere",
    "ListsUnnameable",
    "Misconfigured",
    "NotFound",
    "Store",
    "StoreDown",
    "StoreError",
    "StoreOptions",
    "Stores",
    "Throttled",
    "TooLarge",
    "check_no_secret",
    "has_secret",
    "is_transient",
    "join_uri",
    "memory_store",
    "open_store",
    "probe",
    "split_uri",
    "without_secrets",
]
