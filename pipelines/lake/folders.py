"""List folders of images, and of files with images, in the order of addresses."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter

from pipelines.errors import RayDetrError
from pipelines.lake.inventory import Inventory
from pipelines.lake.lake_object import ARCHIVED, IN_MEMBER_FILE, NOT_UTF8, OWN_TABLE, LakeObject, Listed, Skipped
from pipelines.lake.listing_ahead import list_ahead
from pipelines.lake.member_files import MemberIndexes, files_that_hold, list_members
from pipelines.lake.members import PARQUET_SUFFIX, TAR_SUFFIX, split_member
from pipelines.lake.skipping import skip_reason
from pipelines.store import ListsAnywhere, ListsUnnameable, Store, StoreEntry, StoreError, join_uri


@dataclass(frozen=True, slots=True)
class Opening:
    """Settings for opening files with images."""

    indexes: MemberIndexes
    column: str | None

    def takes(self, key: str) -> bool:
        """Return whether a file with this key, or a glob of files, contains images to label."""
        return key.lower().endswith(TAR_SUFFIX if self.column is None else (TAR_SUFFIX, PARQUET_SUFFIX))


@dataclass(frozen=True, slots=True)
class Folder:
    """The objects of a store whose keys begin with `prefix` and match `pattern`.

    With `opening` they are files with images, otherwise images. With `entries` the files were named individually and
    are in the order of keys; nothing is listed. The rules of `skipping` apply to names relative to `folder`.
    """

    name: str
    store: Store | Inventory
    root: str
    prefix: str
    pattern: re.Pattern[str] | None = None
    opening: Opening | None = None
    entries: tuple[StoreEntry, ...] | None = None

    @property
    def is_parquet(self) -> bool:
        """Whether the images may be in a column of Parquet files."""
        return self.opening is not None and self.opening.column is not None

    @property
    def folder(self) -> str:
        """The folder to which names are relative, with a trailing slash."""
        return self.prefix[: self.prefix.rfind("/") + 1]


def gathered(folders: Sequence[Folder]) -> Folder:
    """Return files of one store that were named individually, as one folder."""
    entries = {entry.key: entry for folder in folders for entry in folder.entries or ()}
    in_order = tuple(sorted(entries.values(), key=attrgetter("key")))
    first = folders[0]
    name = first.name if len(in_order) == 1 else f"{first.name} and {len(in_order) - 1:,} more"
    return replace(first, name=name, prefix="", entries=in_order)


def matching(folder: Folder, after: str | None) -> Iterator[StoreEntry]:
    """Yield the entries of a folder after a key, in order, that match its pattern.

    Raises:
        StoreError: the store refused.
    """
    if folder.entries is not None:
        yield from folder.entries[0 if after is None else bisect_right(folder.entries, after, key=attrgetter("key")) :]
        return
    pattern, store = folder.pattern, folder.store
    is_s3 = folder.root.startswith(("s3://", "s3a://"))  # Azure and Google use the same class
    if is_s3 and isinstance(store, ListsAnywhere):
        listed = list_ahead(store, folder.prefix, after)
    elif pattern is None and isinstance(store, ListsUnnameable):
        listed = store.list_all(folder.prefix, after)
    else:
        listed = store.list(folder.prefix, after)
    for entry in listed:
        if pattern is None or pattern.fullmatch(entry.key):
            yield entry


def list_folder(folder: Folder, kept: tuple[None, ...], own: str | None, after: str | None) -> Iterator[Listed]:
    """Yield the images of a folder, or of its files, after an address.

    Args:
        folder: The folder.
        kept: Values of each image's kept columns.
        own: Address of the detection table with a trailing slash; objects below it are not images.
        after: The address; None yields all.

    Raises:
        RayDetrError: listing the folder failed.
    """
    base = join_uri(folder.root, "")
    start = None
    if after is not None and after.startswith(base):
        start = after[len(base) :]
    elif after is not None and after > base:
        return
    try:
        if folder.opening is not None:
            yield from _list_inside(folder, folder.opening, kept, own, start)
            return
        inside = len(folder.folder)
        for entry in matching(folder, start):
            uri = base + entry.key
            skipped = _skipped(uri, entry, entry.key[inside:], own)
            yield skipped or LakeObject(uri, entry.etag, entry.size, kept, modified=entry.modified)
    except StoreError as error:
        raise RayDetrError(f"cannot list {folder.name}: {error}") from error


def _list_inside(
    folder: Folder, opening: Opening, kept: tuple[None, ...], own: str | None, start: str | None
) -> Iterator[Listed]:
    """Yield the images inside the files of a folder, after an image or file with the key `start`."""
    store = folder.store
    assert not isinstance(store, Inventory), "an inventory is of images"
    base = join_uri(folder.root, "")
    inside = len(folder.folder)

    def check(entry: StoreEntry) -> StoreEntry | Skipped:
        # with an image's file extension, so that all other rules apply, unless the file itself was named
        path = entry.key[inside:] if folder.entries is None else ""
        skipped = _skipped(base + entry.key, entry, f"{path}.jpg" if path else "", own)
        if skipped is None and split_member(entry.key) is not None:
            skipped = Skipped(base + entry.key, IN_MEMBER_FILE)
        return entry if skipped is None else skipped

    begun: Sequence[StoreEntry] = []
    if start is not None and folder.entries is not None:
        begun = [one for one in folder.entries if start.startswith(one.key)]
    elif start is not None:
        begun = [one for one in files_that_hold(store, start) if _matches(folder, one.key)]
    yield from list_members(
        chain((one for one in begun if isinstance(check(one), StoreEntry)), map(check, matching(folder, start))),
        lambda entry: opening.indexes.open(store, entry, opening.column),
        base,
        kept,
        None if start is None else base + start,
    )


def _matches(folder: Folder, key: str) -> bool:
    return folder.pattern is None or folder.pattern.fullmatch(key) is not None


def _skipped(uri: str, entry: StoreEntry, path: str, own: str | None) -> Skipped | None:
    """Return why an object is skipped, or None for an image. `path` is relative to the folder."""
    if entry.unnameable:
        return Skipped(uri, NOT_UTF8, entry.unnameable)
    reason = OWN_TABLE if own is not None and uri.startswith(own) else skip_reason(path)
    if reason is None and entry.is_archived:
        reason = ARCHIVED
    return None if reason is None else Skipped(uri, reason)
