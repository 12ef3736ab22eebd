"""Stores that write over what was to be created only once: nothing that two could write at once may lie there."""

from __future__ import annotations

from pipelines.stopped import RunStopped
from pipelines.store import Capabilities, Store, StoreError, probe


def refuse_overwriting(store: Store, *, what: str, loss: str, folder: str = "_runs/") -> Capabilities:
    """Refuse a place that cannot be written, or whose store ignores that an object is to be created only.

    Returns what else the store can do.

    Args:
        store: where `what` is to lie.
        what: is to be kept there, such as "a table".
        loss: what could happen otherwise, such as "two runs could lose each other's rows".
        folder: under which the store is tried.

    Raises:
        RunStopped: with the reason.
    """
    try:
        capabilities = probe(store, folder)
    except StoreError as error:
        raise RunStopped(f"{store.uri} cannot store {what}, because it cannot be written: {error}") from error
    if not capabilities.create_only:
        raise RunStopped(
            f"{store.uri} cannot store {what}: its store overwrites an object that should be created only once, so "
            f"{loss}. Use a bucket without versioning, or another store."
        )
    return capabilities
