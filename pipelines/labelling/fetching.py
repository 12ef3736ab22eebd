"""The bytes of a shard's images, each fetched with patience; told apart is who fails: one object, or the store."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.clock import Clock
from pipelines.lake.listing import LakeObject
from pipelines.retry import retry
from pipelines.store import (
    Archived,
    Blob,
    Denied,
    Misconfigured,
    NotFound,
    StoreDown,
    StoreError,
    Stores,
    Throttled,
    is_passing,
)

FETCH_BUDGET_SECONDS = 120.0  # what an object may keep failing for
SILENT_SECONDS = 60.0  # without any image from a store that may be down as a whole
MOST_BYTES = 1024**3  # a larger object is no photograph, and would not fit beside its neighbours
LEAST_DENIED = 4  # when all of at least so many objects are denied, it is the credentials and not the objects

OBJECT_KINDS: Mapping[type[StoreError], str] = {NotFound: "missing", Denied: "denied", Archived: "archived"}
"""Failures of one object among healthy ones, and the error kind that its row gets."""


class LakeUnreadable(Exception):
    """The source of the images fails as a whole: no row can be blamed, the run stops and can be resumed."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One object of a shard with its bytes, or the reason why it has none."""

    item: LakeObject
    blob: Blob | None = None
    error_kind: str | None = None
    error: str | None = None


class Fetcher:
    """Reads images wherever they lie, for any number of threads."""

    def __init__(self, images: Stores, clock: Clock) -> None:
        self._images, self._clock = images, clock
        self._last_success = clock.monotonic()

    def fetch(self, item: LakeObject) -> Fetched:
        """Return the bytes of an object, or what is wrong with it among healthy ones.

        Raises:
            LakeUnreadable: its store fails as a whole.
        """
        if item.size is not None and item.size > MOST_BYTES:
            return Fetched(
                item, error_kind="too_large", error=f"{item.size:,} bytes, more than {MOST_BYTES:,}; not read"
            )
        try:
            blob = retry(
                lambda: self._images.get(item.uri),
                # a web server has had its own few tries: a list names thousands of them, and dead ones among them
                budget_seconds=0.0 if is_web(item) else FETCH_BUDGET_SECONDS,
                is_retryable=is_passing,
                clock=self._clock,
            )
        except (NotFound, Denied, Archived) as error:
            return Fetched(item, error_kind=OBJECT_KINDS[type(error)], error=str(error))
        except (Misconfigured, StoreDown, Throttled) as error:
            if is_web(item):  # one of many hosts, whose failure must not stop the others, now and at every resume
                return Fetched(item, error_kind="fetch_failed", error=str(error))
            if isinstance(error, Misconfigured):
                raise LakeUnreadable(str(error)) from error
            if self._clock.monotonic() - self._last_success > SILENT_SECONDS and not self._answers(item.uri):
                raise LakeUnreadable(str(error)) from error
            return Fetched(item, error_kind="fetch_failed", error=str(error))
        self._last_success = self._clock.monotonic()
        return Fetched(item, blob)

    def _answers(self, uri: str) -> bool:
        """Whether the store of an image answers at all, be it that it has no such object."""
        store, key = self._images.find(uri)
        try:
            store.head(f"{key}.{uuid.uuid4().hex}")
        except StoreError as error:
            return not error.is_passing
        return True


def refuse_all_denied(fetched: list[Fetched]) -> None:
    """Refuse a shard of which every object is denied: then it is the credentials, and not the objects.

    Raises:
        LakeUnreadable: with the first refusal.
    """
    refused = [one for one in fetched if one.error_kind == "denied" and not is_web(one.item)]
    if len(refused) == len(fetched) >= LEAST_DENIED:
        raise LakeUnreadable(f"all {len(fetched)} images of a shard are refused; the first: {refused[0].error}")


def is_web(item: LakeObject) -> bool:
    """Return whether an object lies on a web server, of which a list may name thousands."""
    return item.uri.startswith(("http://", "https://"))
