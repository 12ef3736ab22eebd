"""An object of a store as a file that pyarrow reads."""

from __future__ import annotations

import io

from pipelines.store.interface import Store


class ObjectFile(io.RawIOBase):
    """One object as a file that can be read from anywhere; what is read is one request."""

    def __init__(self, store: Store, key: str, size: int, *, if_match: str | None = None) -> None:
        """Take an object of a known size in bytes; read nothing yet.

        With `if_match` reading raises `Changed` where the object has another etag.
        """
        self._store, self._key, self._size, self._position = store, key, size, 0
        self._if_match = if_match

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset in bytes, and return the new position."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def read(self, length: int | None = -1) -> bytes:
        """Return the next `length` bytes, fewer at the end; all that is left for None or -1."""
        rest = max(self._size - self._position, 0)
        wanted = rest if length is None or length < 0 else min(length, rest)
        data = self._store.get_range(self._key, self._position, wanted, if_match=self._if_match) if wanted else b""
        self._position += len(data)
        return data
