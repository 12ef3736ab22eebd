"""An fsspec file system over objects of a store, for DuckDB."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fsspec.spec import AbstractFileSystem

from pipelines.store.interface import Store, StoreError
from pipelines.store.object_file import ObjectFile

TABLE_PROTOCOL: Final = "raydetr"


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """Some objects of a store, of known sizes, as a read-only file system of the protocol `raydetr`.

    If the store refuses, the reader raises its own error; `failure` is the first error of the store. `sizes` has the
    keys in the given order.
    """

    protocol = TABLE_PROTOCOL
    cachable = False

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        """Set the store, and the size in bytes of each readable key."""
        super().__init__()
        self.failure: StoreError | None = None
        self.sizes = sizes
        self._store = store

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the path itself: keys can contain any characters, and patterns are not supported."""
        return [path]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name and size of an object."""
        key = self._strip_protocol(path)
        if key not in self.sizes:
            raise FileNotFoundError(path)
        return {"name": key, "size": self.sizes[key], "type": "file"}

    def modified(self, _path: str) -> datetime:
        """Return a constant time, because files of a table never change."""
        return datetime(1970, 1, 1, tzinfo=UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.IOBase:
        if mode != "rb":
            raise PermissionError(f"{path} can be read only")
        key = self._strip_protocol(path)
        return _Noting(self, self._store, key, self.info(key)["size"])


class _Noting(ObjectFile):
    """A file that records the store's error, because its reader raises its own."""

    def __init__(self, files: StoreFileSystem, store: Store, key: str, size: int) -> None:
        super().__init__(store, key, size)
        self._files = files

    def read(self, length: int | None = -1) -> bytes:
        try:
            return super().read(length)
        except StoreError as error:
            self._files.failure = self._files.failure or error
            raise
