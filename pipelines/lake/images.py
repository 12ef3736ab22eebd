"""Read images at any address: objects of stores, and members of files with many images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from pipelines.errors import RayDetrError
from pipelines.lake.member_files import MemberIndexes
from pipelines.lake.members import PARQUET_SUFFIX, split_member
from pipelines.lake.parquet_members import ImageColumn, split_name
from pipelines.store import Blob, NotFound, Store, StoreDown, StoreOptions, Stores, join_uri, without_secrets
from pipelines.store.interface import refuse_larger

# Cache of Parquet files whose rows are read by address: number of files, and largest cached row group.
_REMEMBERED_FILES: Final = 4
_REMEMBERED_BYTES: Final = 64 << 20


class ImageStores(Stores):
    """The stores of many URIs; also finds members of files by their addresses."""

    def __init__(self, options: StoreOptions | None = None, indexes: MemberIndexes | None = None) -> None:
        """Set the access to stores, and known indexes of files, if any."""
        super().__init__(options)
        self._indexes = indexes or MemberIndexes()
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[str, str], _RowReader] = OrderedDict()

    def get(self, uri: str, *, most_bytes: int | None = None) -> Blob:
        """Return the image at a URI; a member has the etag of its file.

        Raises:
            ObjectTooLarge: it has more than `most_bytes`.
            NotFound: there is no such file or no such member.
            StoreDown: the file is damaged or truncated.
        """
        found = split_member(uri)
        if found is None:
            store, key = self.find(uri)
            return store.get(key, most_bytes=most_bytes)
        store, key = self.find(found[0])
        try:
            if key.lower().endswith(PARQUET_SUFFIX):
                return self._read_row(store, key, found[1], uri, most_bytes)
            return self._read_member(store, key, found[1], uri, most_bytes)
        except _NoFileError:
            return super().get(uri, most_bytes=most_bytes)  # an object in a folder that is named like an archive

    def _read_member(self, store: Store, key: str, name: str, uri: str, most_bytes: int | None) -> Blob:
        try:
            listed = store.head(key)
        except NotFound:
            raise _NoFileError from None
        entry, index = self._indexes.open(store, listed)
        place = index.find(name)
        if place is None:
            raise NotFound(f"{without_secrets(uri)} cannot be read: the archive has no such member.")
        offset, size = place
        assert size is not None, "members of tar archives have a size"
        refuse_larger(without_secrets(uri), size, most_bytes)
        data = store.get_range(key, offset, size, if_match=entry.etag)
        if len(data) < size:
            raise StoreDown(f"{without_secrets(uri)} was cut off: {len(data):,} of {size:,} bytes arrived.")
        return Blob(data, entry.etag)

    def _read_row(self, store: Store, key: str, name: str, uri: str, most_bytes: int | None) -> Blob:
        found = split_name(name)
        if found is None:
            raise _NoFileError
        column, row = found
        file = (join_uri(store.uri, key), column)
        with self._lock:
            rows = self._rows.setdefault(file, _RowReader())
            self._rows.move_to_end(file)
            while len(self._rows) > _REMEMBERED_FILES:
                self._rows.popitem(last=False)
        try:
            data, etag = rows.read(store, key, column, row)
        except NotFound:
            raise _NoFileError from None
        except RayDetrError as error:
            raise StoreDown(str(error)) from error
        if data is None:
            raise NotFound(f"{without_secrets(uri)} cannot be read: the file has no such row, or no image there.")
        refuse_larger(without_secrets(uri), len(data), most_bytes)
        return Blob(data, etag)


class _NoFileError(Exception):
    """The file part of a member's address does not exist."""


class _RowReader:
    """The images in a column of a Parquet file, by row; caches the footer and the last row group."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # threads that need other rows of the row group wait for it
        self._images: ImageColumn | None = None
        self._group, self._found = -1, dict[int, bytes | None]()

    def read(self, store: Store, key: str, column: str, row: int) -> tuple[bytes | None, str | None]:
        """Return the bytes of an image (None if there is no such row, or no image in it) and the file's etag."""
        with self._lock:
            images = self._open(store, key, column)
            (group,) = images.groups([row]) or (None,)
            if group is None:
                return None, images.etag
            if images.group_bytes(group) > _REMEMBERED_BYTES:
                return next((data for _, data in images.read_group(group, [row])), None), images.etag
            if group != self._group or row not in self._found:
                self._group, self._found = group, {}
                try:
                    self._found.update(images.read_group(group, images.rows_of(group)))
                except RayDetrError:
                    if row not in self._found:  # it is after the damage
                        raise
            return self._found[row], images.etag

    def _open(self, store: Store, key: str, column: str) -> ImageColumn:
        if self._images is None or self._images.etag is None or store.head(key).etag != self._images.etag:
            self._images, self._group, self._found = None, -1, {}
            self._images = ImageColumn(store, key, column)
        return self._images
