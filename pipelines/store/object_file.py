"""A file object over an object of a store, for pyarrow."""

from __future__ import annotations

import io
from typing import Final

from pipelines.store.interface import Store, StoreDown
from pipelines.store.uris import join_uri, without_secrets

_TRIES: Final = 3  # attempts after truncated responses; each requests the rest


class ObjectFile(io.RawIOBase):
    """One object as a file with random access; each read is one request."""

    def __init__(self, store: Store, key: str, size: int, *, if_match: str | None = None) -> None:
        """Open an object of a known size in bytes without reading.

        With `if_match` reading raises `Changed` if the object has another etag.
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
        """Return the next `length` bytes, fewer at the end; all remaining bytes for None or -1.

        Raises:
            StoreDown: the store sent fewer bytes three times, although the object has more.
        """
        rest = max(self._size - self._position, 0)
        wanted = rest if length is None or length < 0 else min(length, rest)
        data = b""
        for _ in range(_TRIES):
            if len(data) < wanted:
                start = self._position + len(data)
                data += self._store.get_range(self._key, start, wanted - len(data), if_match=self._if_match)
        if len(data) < wanted:
            refuse_cut_off(self._store, self._key, self._position, wanted, len(data))
        self._position += len(data)
        return data


def refuse_cut_off(store: Store, key: str, start: int, wanted: int, arrived: int) -> None:
    """Refuse a response with fewer bytes than requested, unless the object ends there.

    Raises:
        StoreDown: the object is longer than the response.
        StoreError: the store refused.
    """
    size = store.head(key).size
    if size is None or size >= start + wanted:
        raise StoreDown(
            f"{without_secrets(join_uri(store.uri, key))} was cut off: {arrived:,} of {wanted:,} bytes "
            "arrived. Check proxies and the network, then run again."
        )
