"""Destinations of exports: a local file, written piece by piece, or a folder of complete files at any URI."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

import pyarrow as pa

from pipelines.errors import RayDetrError, UsageError, note_incomplete
from pipelines.exports.formats import RowsWriter
from pipelines.store import Store, put_if_absent

FILE_BYTES: Final = 64_000_000  # approximate size of a folder's files: each is in memory until it is put in one request
INDEX_KEY: Final = "_export.json"


def require_empty(store: Store) -> None:
    """Refuse a folder with files, also those of a stopped command.

    Raises:
        UsageError: it is not empty.
    """
    first = next(iter(store.list()), None)
    if first is not None:
        raise UsageError(
            f"{store.uri} is not empty: it contains {first.key}. Name another folder; if a stopped command has left "
            "this one, delete it and run the command again."
        )


def put_index(store: Store, record: Mapping[str, object]) -> None:
    """Write the record that makes the folder a complete export; a put whose answer was lost is repeated.

    Raises:
        RayDetrError: another export has written its record there.
        StoreError: the store refused, or did not answer.
    """
    # unique, so that the record of another export of the same rows is not taken for this one
    whole = {**record, "export_id": secrets.token_hex(8)}
    data = (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()
    if put_if_absent(store, INDEX_KEY, data) != data:
        raise RayDetrError(f"another export wrote to {store.uri} at the same time, so its files may be of both.")


class OneFile:
    """A file that gets its name when it is complete; leaving the context earlier removes the partial file."""

    def __init__(self, path: Path, writer: Callable[[IO[bytes]], RowsWriter]) -> None:
        if path.exists():
            raise UsageError(f"{path} exists already. Remove it, or name another file.")
        self.files = 1
        self._path = path
        self._unfinished = path.parent / f".ray-detr-unfinished-{secrets.token_hex(8)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = self._unfinished.open("xb")
        self._writer = writer(self._sink)

    def __enter__(self) -> OneFile:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove a partial file."""
        try:
            self._writer.close()  # again, or early: pyarrow's own close would be too late
        finally:
            self._sink.close()
            self._unfinished.unlink(missing_ok=True)

    def add(self, rows: pa.Table) -> None:
        """Write more rows."""
        self._writer.add(rows)

    def finish(self, _: Mapping[str, object]) -> None:
        """Rename the file to its final name."""
        self._writer.close()
        self._sink.close()
        self._unfinished.rename(self._path)


class Folder:
    """Files of one format, numbered, of about 64 MB; a record beside them is written last."""

    def __init__(
        self, store: Store, suffix: str, writer: Callable[[IO[bytes]], RowsWriter], most_images: int | None = None
    ) -> None:
        require_empty(store)
        self.files = 0
        self._store, self._suffix, self._new_writer = store, suffix, writer
        self._most_images, self._images = most_images, 0
        self._open()

    def __enter__(self) -> Folder:
        """Return itself."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Keep the written files: without the record they are an unfinished export."""
        if error is not None and self.files:
            note_incomplete(error, self._store.uri)
        self._writer.close()

    def add(self, rows: pa.Table) -> None:
        """Write more rows."""
        while len(rows):
            room = len(rows) if self._most_images is None else self._most_images - self._images
            if self._sink.tell() >= FILE_BYTES or room == 0:
                self._put()
                self._open()
                continue
            self._writer.add(rows.slice(0, room))
            self._images += min(room, len(rows))
            rows = rows.slice(room)

    def finish(self, record: Mapping[str, object]) -> None:
        """Write the last file, and the record."""
        self._put()
        put_index(self._store, {**record, "files": self.files})

    def _open(self) -> None:
        self._sink, self._images = io.BytesIO(), 0
        self._writer = self._new_writer(self._sink)

    def _put(self) -> None:
        self._writer.close()
        self._store.put(f"{self.files:05d}.{self._suffix}", self._sink.getvalue())
        self.files += 1
