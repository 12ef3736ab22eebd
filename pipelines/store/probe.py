"""Checks what a store supports before a table is written to it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

from pipelines.store.interface import AlreadyExists, Changed, Misconfigured, Store


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store really honours.

    `create_only`: a second create-only put is refused. `swap`: a put with a stale etag is refused, and how the store
    wants etags written; None: it cannot replace conditionally.
    """

    create_only: bool
    swap: Literal["quoted", "bare"] | None


def probe(store: Store, folder: str = "_runs/") -> Capabilities:
    """Return what the store can do, by five small requests on an object of a random name, which is removed again.

    Nothing is assumed by the store's kind: a versioned bucket of Ceph 16 takes every conditional put, without a word.

    Raises:
        StoreError: it cannot be written at all.
    """
    key = f"{folder}probe-{secrets.token_hex(8)}"
    try:
        etag = store.put(key, b"1", create=True)
    except AlreadyExists:  # nobody else has this name: an answer was lost, and the put that was sent again met itself
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
    # where creating is not refused the etag is another one by now, so the object is asked
    etag = store.head(key).etag or etag
    if etag is None:
        return None
    try:
        store.put(key, b"2", if_match=etag)
    except Misconfigured:
        return None
    except Changed:
        if store.get(key).data != b"2":  # else it met itself, as above
            return None
    try:
        store.put(key, b"3", if_match=etag)
    except Changed:
        form: Literal["quoted", "bare"] = getattr(store, "etag_form", "quoted")
        return form
    return None
