"""One small interface to every object store: the only place that knows obstore, fsspec and botocore."""

from pipelines.store.interface import (
    AlreadyExists,
    Archived,
    Blob,
    Changed,
    Denied,
    Entry,
    Misconfigured,
    NotFound,
    Store,
    StoreDown,
    StoreError,
    StoreOptions,
    Throttled,
    is_passing,
)
from pipelines.store.memory import memory_store
from pipelines.store.opening import Stores, open_store
from pipelines.store.probe import Capabilities, probe
from pipelines.store.uris import join_uri, split_uri, without_secrets

__all__ = [
    "AlreadyExists",
    "Archived",
    "Blob",
    "Capabilities",
    "Changed",
    "Denied",
    "Entry",
    "Misconfigured",
    "NotFound",
    "Store",
    "StoreDown",
    "StoreError",
    "StoreOptions",
    "Stores",
    "Throttled",
    "is_passing",
    "join_uri",
    "memory_store",
    "open_store",
    "probe",
    "split_uri",
    "without_secrets",
]
