"""Lists the images of a run: prefixes, globs, single images and lists of URIs as one ordered stream."""

from __future__ import annotations

import difflib
import heapq
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import pyarrow as pa

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.folders import Folder, Opening, gathered, list_folder, matching
from pipelines.lake.globs import glob_to_regex, is_glob, literal_start
from pipelines.lake.inventory import Inventory, is_inventory, read_inventory
from pipelines.lake.lake_object import (
    COMMENT,
    DUPLICATE,
    NOT_MODIFIED,
    OWN_TABLE,
    WITHOUT_URI,
    LakeObject,
    Listed,
    Skipped,
)
from pipelines.lake.list_formats import READABLE, unreadable_kind
from pipelines.lake.member_files import MemberIndexes
from pipelines.lake.members import TAR_SUFFIX, refuse_packed
from pipelines.lake.skipping import is_image_name, skip_reason
from pipelines.lake.uri_tables import WITHOUT_SECRETS_INSTEAD, UriTable, is_uri_table, read_uri_table
from pipelines.parquet_files import stored_schema
from pipelines.store import (
    NotFound,
    Store,
    StoreEntry,
    StoreError,
    StoreOptions,
    check_no_secret,
    join_uri,
    open_store,
    split_uri,
    without_secrets,
)

_SHOWN_REASONS = 3
_BEGINNING_BYTES = 4_096
_HEADS_AT_ONCE: Final = 8
_MANY_NAMED: Final = 3  # files for which several requests are made at once
_WRITTEN_BY_ENGINES: Final = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")  # as a folder of parts


# Lists a source after a URI, in the order of URIs.
_Stream: TypeAlias = Callable[[str | None], Iterator[Listed]]


@dataclass(frozen=True, slots=True)
class Listing:
    """A stream of images in the byte order of their URIs, which can begin after any URI.

    If several sources have an image, it comes once, as in the first of them. A `Skipped` for each further one comes
    before the image, so that the counts up to an image are complete.

    Attributes:
        streams: one for each source.
        kept_schema: names and types of the values in `LakeObject.kept`.
        modified_since: time in seconds since 1970 (UTC); images that were modified before it are skipped. None skips
            none.
    """

    streams: tuple[_Stream, ...]
    kept_schema: pa.Schema
    modified_since: float | None = None

    def __iter__(self) -> Iterator[Listed]:
        return self.after(None)

    def after(self, uri: str | None) -> Iterator[Listed]:
        """Yield the listing after a URI. Memory does not grow with it, except for lists of URIs.

        Raises:
            RayDetrError: listing a source failed.
        """
        begun = [stream(uri) for stream in self.streams]
        merged = begun[0] if len(begun) == 1 else heapq.merge(*begun, key=attrgetter("uri"))
        for _, group in groupby(merged, key=attrgetter("uri")):
            items = list(group)
            found = items if len(items) == 1 else _without_duplicates(items)
            yield from found if self.modified_since is None else _modified_since(found, self.modified_since)


def list_objects(
    sources: Sequence[str],
    *,
    options: StoreOptions | None = None,
    keep: Sequence[str] = (),
    table: str | None = None,
    image_column: str | None = None,
    modified_since: datetime | None = None,
    indexes: MemberIndexes | None = None,
    open_root: Callable[[str], Store] | None = None,
) -> Listing:
    """Return the images of all sources, after checking that each source exists and has an image.

    Args:
        sources: Folders and prefixes; globs (`*`, `**`, `?`, `[abc]`, `{jpg,png}`); single images; tar archives of
            images, or a glob of them, of which at least one has an image; lists of URIs, a glob of them, or a folder
            with lists and without images; manifests of S3 Inventories.
        options: How to reach the stores.
        keep: Columns of lists of URIs to keep; they are null for images of other sources.
        table: URI of the detection table; objects below it are not images.
        image_column: The column with images of Parquet files and folders of them; None: they are lists of URIs.
        modified_since: Skip images that were modified before this time. For images inside files it is the time of the
            file. None skips none.
        indexes: Known indexes of files with images; None reads all.
        open_root: Opens a store by its root, such as `s3://bucket`; None uses `options`.

    Raises:
        RayDetrError: a source does not exist, is empty, or cannot be read.
    """
    try:
        check_addresses(sources)
    except ValueError as error:
        raise RayDetrError(str(error)) from error
    opened = cache(open_root or partial(open_store, options=options or StoreOptions()))
    own = None if table is None else join_uri(*split_uri(table)).removesuffix("/") + "/"
    opening = Opening(indexes or MemberIndexes(), image_column)
    found: list[Folder | UriTable | LakeObject] = []
    heads = _heads(sources, opened, opening)
    named: dict[str, list[Folder]] = {}  # files that hold images, by their store
    for text in dict.fromkeys(sources):
        try:
            for source in _resolve(text, opened, keep, opening, heads):
                if isinstance(source, Folder) and source.entries is not None:
                    named.setdefault(source.root, []).append(source)
                else:
                    found += _with_images(text, source, own, keep, needs_times=modified_since is not None)
        except StoreError as error:
            raise RayDetrError(f"cannot list {without_secrets(text)}: {error}") from error
    for folders in named.values():
        files = gathered(folders)
        found += _with_images(files.name, files, own, keep, needs_times=modified_since is not None)
    if image_column is not None and not any(isinstance(source, Folder) and source.is_parquet for source in found):
        raise UsageError("--image-column: none of the images are in Parquet files. Omit it, or name such files.")
    schema = _kept_schema([source for source in found if isinstance(source, UriTable)], keep)
    nulls = (None,) * len(schema)
    singles = [replace(source, kept=nulls) for source in found if isinstance(source, LakeObject)]
    streams: list[_Stream] = [
        partial(list_folder, source, nulls, own)
        if isinstance(source, Folder)
        else partial(_list_table, source, schema.names)
        for source in found
        if not isinstance(source, LakeObject)
    ]
    if singles:
        streams.append(partial(_list_singles, sorted(singles, key=attrgetter("uri"))))
    return Listing(tuple(streams), schema, None if modified_since is None else modified_since.timestamp())


def check_addresses(sources: Sequence[str]) -> None:
    """Reject addresses of images with secrets, because plans and tables contain these addresses.

    A list of URIs may have such an address, which is not recorded.

    Raises:
        ValueError: about the first one.
    """
    for text in sources:
        if not is_uri_table(text):
            check_no_secret("images", text, instead=WITHOUT_SECRETS_INSTEAD)


def _heads(sources: Sequence[str], opened: Callable[[str], Store], opening: Opening) -> Mapping[str, StoreEntry]:
    """Return the entries of files with images that are named one by one, from several concurrent requests."""

    def head(text: str) -> StoreEntry | None:
        root, key = split_uri(text)
        try:
            return opened(root).head(key)
        except StoreError:
            return None  # requested again later, where the error is reported

    named = [
        text
        for text in dict.fromkeys(sources)
        if opening.takes(text) and "*" not in text and not _is_web(split_uri(text)[0])
    ]
    if len(named) < _MANY_NAMED:
        return {}
    with ThreadPoolExecutor(_HEADS_AT_ONCE, thread_name_prefix="heads") as pool:
        entries = [head(named[0]), *pool.map(head, named[1:])]  # the first one opens the store
    return {text: entry for text, entry in zip(named, entries, strict=True) if entry is not None}


def _is_web(root: str) -> bool:
    return root.startswith(("http://", "https://"))


def _resolve(
    text: str,
    opened: Callable[[str], Store],
    keep: Sequence[str],
    opening: Opening,
    heads: Mapping[str, StoreEntry],
) -> Iterator[Folder | UriTable | LakeObject]:
    """Yield what a source means: several lists for a glob of lists, else one. Entries in `heads` are not requested."""
    root, key = split_uri(text)
    name = without_secrets(text)
    if _is_web(root):
        refuse_packed(urlsplit(text).path, name)
        if opening.takes(urlsplit(text).path):
            raise UsageError(
                f"the images in {name} cannot be listed: it is on a web server. Copy the file to a disk or a bucket."
            )
        if is_uri_table(text):
            yield read_uri_table(opened(root), key, keep=keep)
        elif key and not key.endswith("/") and "*" not in key:
            _check_may_be_an_image(urlsplit(text).path, b"", name)
            yield LakeObject(text)
        else:
            raise UsageError(f"cannot list {name}: web servers have no listings. Name images, or a list of them.")
        return
    store = opened(root)
    entry = heads.get(text)
    if entry is None and key and not key.endswith("/") and "*" not in key:
        entry = _head(store, key)
    if entry is not None or is_glob(key):  # otherwise it is a folder
        refuse_packed(key, name)
    if entry is not None and is_inventory(key):
        inventory = read_inventory(store, key)
        yield Folder(name, inventory, inventory.bucket, "")
    elif entry is not None and opening.takes(key):
        yield Folder(name, store, root, key, opening=opening, entries=(entry,))
    elif entry is not None and is_uri_table(key):
        yield read_uri_table(store, key, keep=keep)
    elif entry is not None:
        if not is_image_name(key):
            _check_may_be_an_image(key, store.get_range(key, 0, _BEGINNING_BYTES), name)
        yield LakeObject(join_uri(root, key), entry.etag, entry.size, modified=entry.modified)
    elif is_glob(key):
        folder = Folder(name, store, root, literal_start(key), glob_to_regex(key))
        if opening.takes(key):
            yield replace(folder, opening=opening)
            return
        if not is_uri_table(key):
            yield folder
            return
        tables = [found.key for found in matching(folder, None)]
        if not tables:
            raise UsageError(f"there is no table of URIs at {name}. Check the address.")
        for table in tables:
            yield read_uri_table(store, table, keep=keep)
    else:
        folder = Folder(name, store, root, key if not key or key.endswith("/") else f"{key}/")
        if opening.column is not None:
            files = re.compile(re.escape(folder.prefix) + r".*\.parquet", re.DOTALL | re.IGNORECASE)
            folder = replace(folder, pattern=files, opening=opening)
        yield folder


def _check_may_be_an_image(path: str, beginning: bytes, name: str) -> None:
    """Reject a file that was named for labelling if it is a list or table of an unsupported kind.

    Raises:
        RayDetrError: it is.
    """
    kind = unreadable_kind(path.rpartition("/")[2], beginning)
    if kind is not None:
        raise UsageError(f"{name} is not an image but {kind}, and cannot be read as a list of images. {READABLE}")


def _head(store: Store, key: str) -> StoreEntry | None:
    try:
        return store.head(key)
    except NotFound:
        return None


def _list_table(table: UriTable, names: Sequence[str], after: str | None) -> Iterator[Listed]:
    """Yield the rows of a list of URIs, with the kept values in the order of `names`, null for missing columns."""
    if after is None and table.without_uri:
        yield Skipped("", WITHOUT_URI, table.without_uri)
    if after is None and table.comments:
        yield Skipped("", COMMENT, table.comments)
    have = table.rows.column_names[3:]
    places = [have.index(name) if name in have else None for name in names]
    is_plain = places == list(range(len(have)))
    for uri, etag, size, kept in table.after(after):
        values = kept if is_plain else tuple(None if place is None else kept[place] for place in places)
        yield LakeObject(uri, etag, size, values)


def _list_singles(singles: Sequence[LakeObject], after: str | None) -> Iterator[Listed]:
    yield from singles[bisect_right(singles, after, key=attrgetter("uri")) if after is not None else 0 :]


def _without_duplicates(group: Sequence[Listed]) -> Iterator[Listed]:
    """Yield the first image of a group with one URI, after a `Skipped` for each further one."""
    images = [item for item in group if isinstance(item, LakeObject)]
    if not images:
        # several sources skip it: once is what there is; rows without URI are of several tables
        yield from group if group[0].uri == "" else group[:1]
        return
    if len(images) > 1:
        yield Skipped(images[0].uri, DUPLICATE, len(images) - 1)
    yield images[0]


def _unknown_time(name: str) -> UsageError:
    return UsageError(
        f"--modified-since: {name} does not have times of modification; folders, buckets, and inventories with "
        "LastModifiedDate have them. Omit the option, and name only the images that shall be labelled."
    )


def _modified_since(group: Iterable[Listed], time: float) -> Iterator[Listed]:
    """Yield the group, with a `Skipped` in place of each image that was modified before a time."""
    for item in group:
        if isinstance(item, LakeObject) and item.modified is not None and item.modified < time:
            yield Skipped(item.uri, NOT_MODIFIED)
        else:
            yield item  # also images with unknown time, such as broken links


def _with_images(
    text: str,
    source: Folder | UriTable | LakeObject,
    own: str | None,
    keep: Sequence[str],
    *,
    needs_times: bool = False,
) -> Sequence[Folder | UriTable | LakeObject]:
    """Return the source if it has an image; for a folder with lists and without images, return the lists.

    Raises:
        RayDetrError: the source has no image, or its first image has no time although `needs_times`.
    """
    name = without_secrets(text)

    def check(item: LakeObject) -> Sequence[Folder | UriTable | LakeObject]:
        if needs_times and item.modified is None:
            raise _unknown_time(name)
        return [source]

    if isinstance(source, LakeObject):
        return check(source)
    skipped: Counter[str] = Counter()
    stream = list_folder(source, (), own, None) if isinstance(source, Folder) else _list_table(source, (), None)
    for item in stream:
        if isinstance(item, LakeObject):
            return check(item)
        skipped[item.reason] += item.count
    lists = _lists_in(source) if isinstance(source, Folder) and OWN_TABLE not in skipped else []
    if lists and isinstance(source, Folder):
        assert not isinstance(source.store, Inventory)
        if needs_times:
            raise _unknown_time(name)
        return [read_uri_table(source.store, key, keep=keep) for key in lists]
    if skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.most_common(_SHOWN_REASONS))
        archives = "a glob that ends in .tar" if is_glob(text) else f"{name.rstrip('/')}/**/*.tar"
        remedy = (
            f"To label the images inside archives, give {archives}."
            if TAR_SUFFIX in skipped
            else "Check the address, or name images in a list of URIs."
        )
        raise UsageError(f"there is no image at {name} (left out: {reasons}). {remedy}")
    if isinstance(source, Folder) and source.opening is not None:
        if any(matching(source, None)):
            raise UsageError(f"there is no image inside {name}. Check the address.")
        if not is_glob(text):
            raise UsageError(
                f"there is no Parquet file at {name}. Check the address, or omit --image-column to label loose images."
            )
    if text == name and not is_glob(text) and Path(text).is_dir():
        raise UsageError(f"the folder {name} is empty. Check the address.")
    hint = "" if text.endswith("/") or is_glob(text) else f" To match names that begin with it, use {name}*."
    raise UsageError(f"there is nothing at {name}. Check the address.{hint}")


def _lists_in(folder: Folder) -> list[str]:
    """Return the keys of the lists in a folder (engines write one list as several files); none if kinds differ."""
    if folder.pattern is not None or folder.entries is not None or isinstance(folder.store, Inventory):
        return []
    inside = len(folder.folder)
    lists = [
        entry.key
        for entry in matching(folder, None)
        if not entry.unnameable
        and (skip_reason(entry.key[inside:]) or "").startswith(".")
        and entry.key.lower().endswith(_WRITTEN_BY_ENGINES)
    ]
    suffixes = {next(suffix for suffix in _WRITTEN_BY_ENGINES if key.lower().endswith(suffix)) for key in lists}
    return lists if len(suffixes) == 1 else []


def _kept_schema(tables: Sequence[UriTable], keep: Sequence[str]) -> pa.Schema:
    """Return the names and types of the kept columns, which must be equal in all lists that have them."""
    fields = []
    for name in keep:
        having = [table for table in tables if name in table.columns]
        if not having:
            where = ", ".join(table.name for table in tables) or "the images: no table of URIs is among them"
            near = difflib.get_close_matches(name, [column for table in tables for column in table.columns], 1)
            raise RayDetrError(
                f"keep: there is no column {name!r} in {where}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
        kinds: dict[pa.DataType, str] = {}
        for table in having:
            kinds.setdefault(table.rows.schema.field(name).type, table.name)
        if len(kinds) > 1:
            said = ", ".join(f"{kind} in {table}" for kind, table in kinds.items())
            raise RayDetrError(f"keep: column {name!r} has several types: {said}. Give it one.")
        fields.append(pa.field(name, next(iter(kinds))))
    return stored_schema(pa.schema(fields))
