"""Images at any address: objects of stores, and members of files that hold many."""

from __future__ import annotations

from pipelines.errors import RayDetrError
from pipelines.lake.member_files import MemberIndexes
from pipelines.lake.members import PARQUET_SUFFIX, split_member
from pipelines.lake.parquet_members import ImageColumn, split_name
from pipelines.store import Blob, NotFound, Store, StoreDown, StoreOptions, Stores, without_secrets
from pipelines.store.interface import refuse_larger


class ImageStores(Stores):
    """The stores of many URIs, where members of files are found by their addresses, too."""

    def __init__(self, options: StoreOptions | None = None, indexes: MemberIndexes | None = None) -> None:
        """Take how stores are reached, and the indexes of files where some are known."""
        super().__init__(options)
        self._indexes = indexes or MemberIndexes()

    def get(self, uri: str, *, most_bytes: int | None = None) -> Blob:
        """Return the image at a URI, with the etag of its file where it is a member of one.

        Raises:
            ObjectTooLarge: it has more than `most_bytes`.
            NotFound: there is no such file or no such member.
            StoreDown: the file is damaged, or was cut off.
        """
        found = split_member(uri)
        if found is None:
            return super().get(uri, most_bytes=most_bytes)
        store, key = self.find(found[0])
        try:
            if key.lower().endswith(PARQUET_SUFFIX):
                return _read_row(store, key, found[1], uri, most_bytes)
            return self._read_member(store, key, found[1], uri, most_bytes)
        except _NoFileError:
            return super().get(uri, most_bytes=most_bytes)  # of an object in a folder that is named like an archive

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


class _NoFileError(Exception):
    """There is no file that could hold a member."""


def _read_row(store: Store, key: str, name: str, uri: str, most_bytes: int | None) -> Blob:
    found = split_name(name)
    if found is None:
        raise _NoFileError
    column, row = found
    try:
        images = ImageColumn(store, key, column)
        data = next((data for group in images.groups([row]) for _, data in images.read_group(group, [row])), None)
    except NotFound:
        raise _NoFileError from None
    except RayDetrError as error:
        raise StoreDown(str(error)) from error
    if data is None:
        raise NotFound(f"{without_secrets(uri)} cannot be read: the file has no such row, or no image there.")
    refuse_larger(without_secrets(uri), len(data), most_bytes)
    return Blob(data, images.etag)
