"""Create objects only once: put if absent, and a check that a store supports it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final, Literal

from pipelines.errors import RayDetrError
from pipelines.store.interface import AlreadyExists, Changed, Misconfigured, Store, StoreError

ATTEMPTS: Final = 3  # the client retries each of them, too


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capabilities of a store, as measured by `probe`.

    Attributes:
        create_only: A second create-only put is refused.
        swap: The form of etags for a conditional put, which is refused with a stale etag; None: the store does not
            support conditional puts.
    """

    create_only: bool
    swap: Literal["quoted", "bare"] | None


def put_if_absent(store: Store, key: str, data: bytes) -> bytes:
    """Create an object unless it exists; return its content: `data`, or what another writer created before.

    After a lost response it is unknown whether the write happened, so it is sent again. It may then find its own
    object: the bytes are equal, and the order of the two writes does not matter.

    Raises:
        StoreError: the store refused, or did not respond to any attempt; the object may exist or not.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            store.put(key, data, create=True)
        except AlreadyExists:
            return store.get(key).data
        except StoreError as error:
            if not error.is_transient or not left:
                raise
        else:
            return data
    raise AssertionError("the last attempt returns or raises")


def require_create_only(store: Store, *, what: str, loss: str, folder: str = "_runs/") -> Capabilities:
    """Check that a store can be written and refuses to overwrite an object that must be created only once.

    Args:
        store: The store for `what`.
        what: Description for the message, such as "a table".
        loss: What could happen otherwise, such as "two runs could lose each other's rows".
        folder: The folder for test objects.

    Returns:
        The other capabilities of the store.

    Raises:
        RayDetrError: the store is not writable, or overwrites objects.
    """
    try:
        capabilities = probe(store, folder)
    except StoreError as error:
        raise RayDetrError(f"{what} cannot be kept at {store.uri}: {error}") from error
    if not capabilities.create_only:
        raise RayDetrError(
            f"{what} cannot be kept at {store.uri}: its store overwrites an object that should be created only once, "
            f"so {loss}. Use a bucket without versioning, or another store."
        )
    return capabilities


def probe(store: Store, folder: str = "_runs/") -> Capabilities:
    """Test a store with five small requests on an object of a random name, which is deleted afterwards.

    This cannot be derived from the kind of store: a versioned bucket of Ceph 16 accepts every conditional put.

    Raises:
        StoreError: the store cannot be written.
    """
    key = f"{folder}probe-{secrets.token_hex(8)}"
    try:
        etag = store.put(key, b"1", create=True)
    except AlreadyExists:  # the name is unique: a response was lost, and the repeated put found the object of the first
        etag = None
    try:
        return Capabilities(create_only=_refuses_creating(store, key), swap=_swap(store, key, etag))
    finally:
        store.delete(key)


def _refuses_creating(store: Store, key: str) -> bool:
    try:
        store.put(key, b"1", create=True)
    except AlreadyExists:
        return True
    return False


def _swap(store: Store, key: str, etag: str | None) -> Literal["quoted", "bare"] | None:
    # if creating is not refused, the etag has changed, so it is read again
    etag = store.head(key).etag or etag
    if etag is None:
        return None
    try:
        store.put(key, b"2", if_match=etag)
    except Misconfigured:
        return None
    except Changed:
        if store.get(key).data != b"2":  # otherwise it found its own object, as above
            return None
    try:
        store.put(key, b"3", if_match=etag)
    except Changed:
        form: Literal["quoted", "bare"] = getattr(store, "etag_form", "quoted")
        return form
    return None
