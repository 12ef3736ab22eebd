"""Cuts the images of a listing that are not labelled yet into shards and segments, in the order of URIs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from math import ceil
from typing import Final

from pipelines.errors import RayDetrError
from pipelines.labelling.config import Selection
from pipelines.labelling.manifest import SEGMENT_SHARDS, Counts, ListingPosition, Segment
from pipelines.lake.lake_object import DUPLICATE, NOT_MODIFIED, LakeObject, Listed, Skipped
from pipelines.lake.listing import Listing
from pipelines.lake.sample import draw_sample

# If few images of a lake are new, a segment is closed after listing this many: labelling begins within seconds, and an
# interrupted planning does not list the whole lake again.
SEGMENT_LISTED: Final = 1_000_000

_LOOKUP_IMAGES = 8_192  # looked up in the labelled keys at a time

IsLabelled = Callable[[Sequence[LakeObject]], Iterable[bool]]


def cut_segments(
    listed: Iterable[Listed],
    is_labelled: IsLabelled,
    *,
    shard_images: int,
    max_images: int | None = None,
    spread: int = 1,
    start: tuple[int, ListingPosition] = (0, ListingPosition()),
) -> Iterator[Segment]:
    """Cut the images that are not labelled yet into shards of `shard_images` and segments of 64 shards.

    A segment may be shorter after each million listed images, if any of them is new, and at the end, where it may have
    no shard. Equal listings give equal shards, wherever an interrupted planning continues. Memory: one segment.

    Args:
        listed: The listing after `start`.
        is_labelled: Returns for many objects together whether they are labelled.
        shard_images: Images in each shard.
        max_images: Listed images after which to end, including labelled ones and those before `start`.
        spread: Least number of shards of a shorter segment, about, so that all actors work to the end.
        start: Number of the first segment, and the position of the listing before it.

    Raises:
        RayDetrError: the listing is not in the order of URIs.
    """
    index, position = start
    pairs = _with_labelled(listed, is_labelled)
    yield from _cut_segments(
        pairs, _Tally(position), index, shard_images=shard_images, max_images=max_images, spread=spread
    )


class Look:
    """A listing, read up to the first image that is not labelled, before a run is begun. Cutting continues from there.

    Attributes:
        has_new: Whether the listing has such an image.
    """

    def __init__(self, listing: Listing, is_labelled: IsLabelled, selection: Selection) -> None:
        """Read up to the first new image. Memory: some thousand images.

        Raises:
            RayDetrError: the listing is not in the order of URIs, or a source cannot be listed.
        """
        self._max_images = selection.max_images
        self._counts = _Tally(ListingPosition())
        self._pairs = _with_labelled(select(listing, None, selection), is_labelled)
        self.has_new = False
        for item, done in self._pairs:
            if self._counts.images == self._max_images:
                break
            if isinstance(item, LakeObject) and not done:
                self._pairs = chain([(item, done)], self._pairs)
                self.has_new = True
                break
            self._counts.add(item, is_labelled=done)

    @property
    def counts(self) -> Counts:
        """Counts of the images that were read: of the whole listing if no image is new."""
        return self._counts.position(shards=0).counts

    def segments(self, *, shard_images: int, spread: int) -> Iterator[Segment]:
        """Yield the segments of the whole listing, as `cut_segments` does. Can be called once."""
        return _cut_segments(
            self._pairs, self._counts, 0, shard_images=shard_images, max_images=self._max_images, spread=spread
        )


def _cut_segments(
    pairs: Iterable[tuple[Listed, bool]],
    counts: _Tally,
    index: int,
    *,
    shard_images: int,
    max_images: int | None,
    spread: int,
) -> Iterator[Segment]:
    images: list[LakeObject] = []
    for item, done in pairs:
        if max_images is not None and counts.images == max_images:
            break
        counts.add(item, is_labelled=done)
        if isinstance(item, LakeObject):
            if not done:
                images.append(item)
        elif item.reason != NOT_MODIFIED:
            continue
        is_full = len(images) == shard_images * SEGMENT_SHARDS
        if is_full or (images and counts.listed % SEGMENT_LISTED == 0):
            shards = _cut(images, shard_images, spread)
            yield Segment(index, shards, counts.position(shards=len(shards)))
            index += 1
            images = []
    shards = _cut(images, shard_images, spread)
    yield Segment(index, shards, counts.position(shards=len(shards)), is_last=True)


def select(listing: Listing, after: str | None, selection: Selection) -> Iterator[Listed]:
    """Return the listing after a URI (None: from the start), or a random sample of it."""
    if selection.sample is None:
        return listing.after(after)
    drawn = draw_sample(listing, selection.sample, seed=selection.seed)
    return drawn if after is None else (item for item in drawn if item.uri > after)


def _with_labelled(listed: Iterable[Listed], is_labelled: IsLabelled) -> Iterator[tuple[Listed, bool]]:
    stream = iter(listed)
    while batch := list(islice(stream, _LOOKUP_IMAGES)):
        done = iter(is_labelled([item for item in batch if isinstance(item, LakeObject)]))
        for item in batch:
            yield item, bool(next(done)) if isinstance(item, LakeObject) else False


def _cut(images: Sequence[LakeObject], shard_images: int, spread: int) -> tuple[tuple[LakeObject, ...], ...]:
    """Return the shards of a segment: of `shard_images` if it is full, else about `spread` smaller ones."""
    most = max(1, min(shard_images, ceil(len(images) / min(spread, SEGMENT_SHARDS))))
    return tuple(tuple(images[first : first + most]) for first in range(0, len(images), most))


class _Tally:
    """Counts listed images, starting from a position."""

    def __init__(self, position: ListingPosition) -> None:
        counts = position.counts
        self._last_uri, self._last_image = position.last_uri, position.last_uri
        self._images, self._size_bytes, self._unknown = counts.images, counts.size_bytes, counts.unknown_sizes
        self._shards, self._labelled, self._duplicates = counts.shards, counts.labelled, counts.duplicates
        self._skipped = Counter(counts.skipped)

    @property
    def images(self) -> int:
        return self._images + self._labelled

    @property
    def listed(self) -> int:
        """Number of images, including those that are skipped because they are old."""
        return self.images + self._skipped[NOT_MODIFIED]

    def add(self, item: Listed, *, is_labelled: bool) -> None:
        is_image = isinstance(item, LakeObject)
        before = self._last_image if is_image else self._last_uri
        if before is not None and (item.uri <= before if is_image else item.uri < before):
            raise RayDetrError(
                f"the listing is out of order: {item.uri} came after {before}. "
                "Two runs would not see the same images; give a list of URIs instead."
            )
        self._last_uri = item.uri
        if isinstance(item, Skipped):
            if item.reason == DUPLICATE:
                self._duplicates += item.count
            else:
                self._skipped[item.reason] += item.count
            return
        self._last_image = item.uri
        if is_labelled:
            self._labelled += 1
            return
        self._images += 1
        self._size_bytes += item.size or 0
        self._unknown += item.size is None

    def position(self, *, shards: int) -> ListingPosition:
        """Return the position of the listing, with `shards` cut since the last call."""
        self._shards += shards
        counts = Counts(
            self._images,
            self._size_bytes,
            self._unknown,
            self._shards,
            self._labelled,
            self._duplicates,
            dict(self._skipped),
        )
        return ListingPosition(self._last_uri, counts)
