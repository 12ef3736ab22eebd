"""Refuses stores that overwrite objects which must be created only once."""

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
        raise RunStopped(f"{what} cannot be kept at {store.uri}: {error}") from error
    if not capabilities.create_only:
        raise RunStopped(
            f"{what} cannot be kept at {store.uri}: its store overwrites an object that should be created only once, "
            f"so {loss}. Use a bucket without versioning, or another store."
        )
    return capabilities
