"""List the images of all sources of a run as one ordered stream."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from itertools import groupby
from operator import attrgetter
from typing import TypeAlias

import pyarrow as pa

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.folders import Folder, Opening, gathered, list_folder
from pipelines.lake.kept_columns import kept_schema, with_types
from pipelines.lake.lake_object import DUPLICATE, NOT_MODIFIED, LakeObject, Listed, Skipped
from pipelines.lake.member_files import MemberIndexes
from pipelines.lake.sources import Source, check_addresses, request_heads, resolve, with_images
from pipelines.lake.uri_tables import UriTable, list_table
from pipelines.store import Store, StoreError, StoreOptions, join_uri, open_store, split_uri, without_secrets
from pipelines.table.schema import NO_COLUMNS

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
    stored: pa.Schema = NO_COLUMNS,
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
        stored: Columns of the table's newest file, whose types kept columns get where that loses nothing.
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
    found: list[Source] = []
    heads = request_heads(sources, opened, opening)
    named: dict[str, list[Folder]] = {}  # files that contain images, by store
    for text in dict.fromkeys(sources):
        try:
            for source in resolve(text, opened, keep, opening, heads):
                if isinstance(source, Folder) and source.entries is not None:
                    named.setdefault(source.root, []).append(source)
                else:
                    found += with_images(text, source, own, keep, needs_times=modified_since is not None)
        except StoreError as error:
            raise RayDetrError(f"cannot list {without_secrets(text)}: {error}") from error
    for folders in named.values():
        files = gathered(folders)
        found += with_images(files.name, files, own, keep, needs_times=modified_since is not None)
    if image_column is not None and not any(isinstance(source, Folder) and source.is_parquet for source in found):
        raise UsageError("--image-column: none of the images are in Parquet files. Omit it, or name such files.")
    schema = kept_schema([source for source in found if isinstance(source, UriTable)], keep, stored)
    nulls = (None,) * len(schema)
    singles = [replace(source, kept=nulls) for source in found if isinstance(source, LakeObject)]
    streams: list[_Stream] = [
        partial(list_folder, source, nulls, own)
        if isinstance(source, Folder)
        else partial(list_table, with_types(source, schema), schema.names)
        for source in found
        if not isinstance(source, LakeObject)
    ]
    if singles:
        streams.append(partial(_list_singles, sorted(singles, key=attrgetter("uri"))))
    return Listing(tuple(streams), schema, None if modified_since is None else modified_since.timestamp())


def _list_singles(singles: Sequence[LakeObject], after: str | None) -> Iterator[Listed]:
    yield from singles[bisect_right(singles, after, key=attrgetter("uri")) if after is not None else 0 :]


def _without_duplicates(group: Sequence[Listed]) -> Iterator[Listed]:
    """Yield the first image of a group with one URI, after a `Skipped` for each further one."""
    images = [item for item in group if isinstance(item, LakeObject)]
    if not images:
        # skipped by several sources: counts once, except for rows without URI, which are of different tables
        yield from group if group[0].uri == "" else group[:1]
        return
    if len(images) > 1:
        yield Skipped(images[0].uri, DUPLICATE, len(images) - 1)
    yield images[0]


def _modified_since(group: Iterable[Listed], time: float) -> Iterator[Listed]:
    """Yield the group, with a `Skipped` in place of each image that was modified before a time."""
    for item in group:
        if isinstance(item, LakeObject) and item.modified is not None and item.modified < time:
            yield Skipped(item.uri, NOT_MODIFIED)
        else:
            yield item  # also images with unknown time, such as broken links
