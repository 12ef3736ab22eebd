"""A lake that fails as told, and a clock that passes by sleeping only."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from pipelines.lake.lake_object import LakeObject
from pipelines.store import Blob, Store, StoreDown, StoreEntry, StoreError, Stores

NOW = datetime(2026, 11, 22, 18, 15, tzinfo=UTC)


class Lake(Stores):
    """One store in the place of all; an object may fail with an error, once for each in its list or always."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.uri = store, store.uri
        self.failures: dict[str, StoreError | list[StoreError]] = {}
        self.is_down = False
        self.fetched = 0
        self.ranges: list[tuple[int, int]] = []

    def find(self, uri: str) -> tuple[Store, str]:
        return self, uri.removeprefix(f"{self.store.uri}/")  # type: ignore[return-value]  # get and head are all

    def get(self, uri: str, *, most_bytes: int | None = None) -> Blob:
        key = self.find(uri)[1]
        self._fail(key)
        self.fetched += 1
        return self.store.get(key, most_bytes=most_bytes)

    def head(self, key: str) -> StoreEntry:
        self._fail(key)
        return self.store.head(key)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        self._fail(key)
        self.ranges.append((start, length))
        return self.store.get_range(key, start, length, if_match=if_match)

    def put(self, key: str, data: bytes) -> LakeObject:
        self.store.put(key, data)
        return LakeObject(f"{self.store.uri}/{key}", size=len(data))

    def _fail(self, key: str) -> None:
        failure = self.failures.get(key)
        if isinstance(failure, list):
            failure = failure.pop(0) if failure else None
        if failure is not None:
            raise failure
        if self.is_down:
            raise StoreDown("the lake does not answer")


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds
