"""Writing an object once, whoever else tries and whichever answers get lost."""

from __future__ import annotations

from typing import Final

from pipelines.store import AlreadyExists, Store, StoreError

ATTEMPTS: Final = 3  # each with the client's own patience inside


def put_once(store: Store, key: str, data: bytes) -> bytes:
    """Create the object unless it is there, and return what it holds now: `data`, or what somebody created before.

    An answer that was lost says nothing about the write, so it is sent again and then may meet itself: the bytes are
    equal then, and whose write came first cannot be told and does not matter.

    Raises:
        StoreError: the store refused, or gave no answer to any attempt; the object may exist or not.
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
