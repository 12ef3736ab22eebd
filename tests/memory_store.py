"""A store in memory, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from pipelines.store.interface import (
    AlreadyExists,
    Blob,
    Changed,
    NotFound,
    Store,
    StoreEntry,
    refuse_changed,
    refuse_larger,
)


def memory_store(uri: str = "memory://store") -> Store:
    """Return an empty store that exists while it is referenced."""
    return MemoryStore(uri)


class MemoryStore:
    """A dictionary with the behaviour of a store: conditions are checked, every write creates a new etag."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._objects: dict[str, Blob] = {}
        self._modified: dict[str, float] = {}  # time of the last write
        self._writes = 0
        self._lock = threading.Lock()

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the objects at the start of the listing."""
        with self._lock:
            found = sorted(
                (key, len(blob.data), blob.etag, self._modified[key])
                for key, blob in self._objects.items()
                if key.startswith(prefix) and key > (after or "")
            )
        for key, size, etag, modified in found:
            yield StoreEntry(key, size, etag, modified=modified)

    def head(self, key: str) -> StoreEntry:
        """Return the entry of a key, as a listing has it."""
        blob = self.get(key)
        return StoreEntry(key, len(blob.data), blob.etag, modified=self._modified.get(key))

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the object."""
        with self._lock:
            blob = self._objects.get(key)
        if blob is None:
            raise NotFound(f"{self.uri}/{key}: no such object")
        refuse_larger(f"{self.uri}/{key}", len(blob.data), most_bytes)
        return blob

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, fewer only if the object ends before."""
        blob = self.get(key)
        refuse_changed(f"{self.uri}/{key}", blob.etag, if_match)
        return blob.data[start : start + length]

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write the object."""
        assert not (create and if_match is not None), "nothing can be both absent and of a known etag"
        with self._lock:
            existing = self._objects.get(key)
            if create and existing is not None:
                raise AlreadyExists(f"{self.uri}/{key} exists already")
            if if_match is not None and (existing is None or existing.etag != if_match):
                raise Changed(f"{self.uri}/{key} is not the object with etag {if_match} any more")
            self._writes += 1
            etag = f"{self._writes:x}"
            self._objects[key] = Blob(bytes(data), etag)
            self._modified[key] = time.time()
            return etag

    def delete(self, key: str) -> None:
        """Delete the object. Succeeds if it does not exist."""
        with self._lock:
            self._objects.pop(key, None)
