"""Resolve the sources of a run: folders, globs, single images, lists of URIs, files with images, inventories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from pipelines.errors import UsageError
from pipelines.lake.folders import Folder, Opening, list_folder, matching
from pipelines.lake.globs import glob_to_regex, is_glob, literal_start
from pipelines.lake.inventory import Inventory, is_inventory, read_inventory
from pipelines.lake.lake_object import OWN_TABLE, LakeObject
from pipelines.lake.list_addresses import WITHOUT_SECRETS_INSTEAD, explain_other_machine
from pipelines.lake.list_formats import READABLE, unreadable_kind
from pipelines.lake.members import TAR_SUFFIX, refuse_packed
from pipelines.lake.skipping import is_image_name, skip_reason
from pipelines.lake.uri_tables import UriTable, is_uri_table, list_table, read_uri_table
from pipelines.store import (
    NotFound,
    Store,
    StoreEntry,
    StoreError,
    check_no_secret,
    is_utf8,
    join_uri,
    other_machine,
    split_uri,
    split_written,
    without_secrets,
)

_SHOWN_REASONS = 3
_BEGINNING_BYTES = 4_096
_HEADS_AT_ONCE: Final = 8
_MANY_NAMED: Final = 3  # number of files from which requests are made concurrently
_WRITTEN_BY_ENGINES: Final = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")  # as a folder of parts

Source: TypeAlias = Folder | UriTable | LakeObject


def check_addresses(sources: Sequence[str]) -> None:
    """Reject addresses of images with secrets, or that are not UTF-8, because plans and tables contain these addresses.

    A list of URIs may have such an address, which is not recorded. `file:` addresses of other machines are refused.

    Raises:
        ValueError: about the first one.
    """
    for text in sources:
        if other_machine(text) is not None:
            raise ValueError(f"images: {explain_other_machine(text)}")
        if not is_uri_table(text):
            check_no_secret("images", text, instead=WITHOUT_SECRETS_INSTEAD)
            if not is_utf8(join_uri(*split_uri(text))):
                raise ValueError(f"images: the path {text!a} is not UTF-8, so a table cannot store it. Rename it.")


def request_heads(sources: Sequence[str], opened: Callable[[str], Store], opening: Opening) -> Mapping[str, StoreEntry]:
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


def resolve(
    text: str,
    opened: Callable[[str], Store],
    keep: Sequence[str],
    opening: Opening,
    heads: Mapping[str, StoreEntry],
) -> Iterator[Source]:
    """Yield the listings of a source: several for a glob of lists, else one. Entries in `heads` are not requested."""
    root, inside, written = split_written(text)
    key = inside + written
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
    if entry is None and key and not key.endswith("/") and "*" not in written:
        entry = _head(store, key)
    if entry is not None and _is_placeholder(store, entry):
        entry = None
    if entry is not None or is_glob(written):  # otherwise it is a folder
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
    elif is_glob(written) and ("*" in written or not _is_folder(store, key)):
        folder = Folder(name, store, root, inside + literal_start(written), glob_to_regex(written, inside))
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


def _is_folder(store: Store, key: str) -> bool:
    """Return whether a key that could be a pattern, such as `photos [2024]/`, is the name of a folder."""
    return next(iter(store.list(f"{key.rstrip('/')}/")), None) is not None


def _is_placeholder(store: Store, entry: StoreEntry) -> bool:
    """Return whether an object stands for a folder, as some tools write it: `photos` beside `photos/a.jpg`."""
    return entry.size == 0 and not is_image_name(entry.key) and _is_folder(store, entry.key)


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


def _unknown_time(name: str) -> UsageError:
    return UsageError(
        f"--modified-since: {name} does not have times of modification; folders, buckets, and inventories with "
        "LastModifiedDate have them. Omit the option, and name only the images that should be labelled."
    )


def with_images(
    text: str,
    source: Source,
    own: str | None,
    keep: Sequence[str],
    *,
    needs_times: bool = False,
) -> Sequence[Source]:
    """Return the source if it has an image; for a folder with lists and without images, return the lists.

    Raises:
        RayDetrError: the source has no image, or its first image has no time although `needs_times`.
    """
    name = without_secrets(text)

    def check(item: LakeObject) -> Sequence[Source]:
        if needs_times and item.modified is None:
            raise _unknown_time(name)
        return [source]

    if isinstance(source, LakeObject):
        return check(source)
    skipped: Counter[str] = Counter()
    stream = list_folder(source, (), own, None) if isinstance(source, Folder) else list_table(source, (), None)
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
