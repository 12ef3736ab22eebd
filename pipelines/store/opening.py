"""Opens the store of a URI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from pipelines.store.interface import KEYS_INSTEAD, Blob, Misconfigured, Store, StoreOptions
from pipelines.store.local import LocalStore
from pipelines.store.uris import LOCAL_ROOT, check_no_secret, scheme_of, split_uri

_S3 = ("s3", "s3a")
_CLOUD = ("gs", "gcs", "az", "azure", "abfs", "abfss")
_WEB = ("http", "https")


def open_store(uri: str, options: StoreOptions | None = None) -> Store:
    """Return the store of a URI: a bucket, a folder or a web server. Makes no request.

    Raises:
        Misconfigured: the kind of store is unknown, or there are no credentials.
    """
    root, key = split_uri(uri)
    folder = key.rstrip("/")
    _refuse_secret(uri)
    return _opener(root, options or StoreOptions())(f"{folder}/" if folder else "")


def open_unflushed(uri: str, options: StoreOptions | None = None) -> Store:
    """Return the store of a URI for very many files that can be made again: a folder does not wait for the disk."""
    root, key = split_uri(uri)
    return LocalStore(f"/{key}", flushes=False) if root == LOCAL_ROOT else open_store(uri, options)


def check_root(root: str) -> None:
    """Check that a root is one of a known kind of store and names a store. Needs no credentials and makes no request.

    Addresses of web servers are not checked: an invalid one is an error of its image.

    Raises:
        Misconfigured: it is not.
    """
    scheme = scheme_of(root)
    if root == LOCAL_ROOT or scheme in _WEB:
        return
    if scheme in _S3:
        from pipelines.store.buckets import check_bucket

        check_bucket(root)
    elif scheme in _CLOUD:
        from pipelines.store.buckets import check_container

        check_container(root)
    else:
        from pipelines.store.fsspec_store import check_file_system

        check_file_system(root)


class Stores:
    """The stores of many URIs, each opened once with its own connections. Can be used by several threads."""

    def __init__(self, options: StoreOptions | None = None) -> None:
        self._options = options or StoreOptions()
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}

    def get(self, uri: str, *, most_bytes: int | None = None) -> Blob:
        """Return the object at a URI.

        Raises:
            ObjectTooLarge: the object has more than `most_bytes`.
        """
        store, key = self.find(uri)
        return store.get(key, most_bytes=most_bytes)

    def find(self, uri: str) -> tuple[Store, str]:
        """Return the store of the whole bucket, disk or server of a URI, and the key in it."""
        root, key = split_uri(uri)
        with self._lock:
            store = self._stores.get(root)
            if store is None:
                _refuse_secret(uri)
                store = self._stores[root] = _opener(root, self._options)("")
        return store, key


def _opener(root: str, options: StoreOptions) -> Callable[[str], Store]:
    """Return a function that opens the store of a folder ("" or with a trailing slash) below a root.

    Clients are imported on demand: all of them take 0.4 s, which a local folder does not need.
    """
    scheme = scheme_of(root)
    if root == LOCAL_ROOT:
        return lambda folder: LocalStore("/" + folder)
    if scheme in _WEB:
        from pipelines.store.web import WebStore

        return partial(WebStore, root, retry_seconds=options.retry_seconds)
    if scheme in _S3:
        from pipelines.store.buckets import open_s3

        return open_s3(root, options)
    if scheme in _CLOUD and options.via == "auto":
        from pipelines.store.buckets import open_cloud

        return open_cloud(root, options)
    from pipelines.store.fsspec_store import FsspecStore

    return partial(FsspecStore, root, options=options)


def _refuse_secret(uri: str) -> None:
    """Refuse access keys in a bucket's address: clients do not read them there, and messages would show them."""
    if scheme_of(uri) not in (*_S3, *_CLOUD):
        return
    try:
        check_no_secret("store", uri.partition("?")[0], instead=KEYS_INSTEAD)  # object names after it may be unusual
    except ValueError as error:
        raise Misconfigured(str(error)) from error
