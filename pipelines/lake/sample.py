"""Draw a random sample of a listing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from operator import attrgetter

from pipelines.lake.lake_object import LakeObject, Listed, Skipped


def draw_sample(listed: Iterable[Listed], count: int, *, seed: int) -> Iterator[Listed]:
    """Yield `count` random images in the order of their URIs, after the totals of skipped objects.

    Images are drawn by a hash of the URI: the same seed draws the same images from the same lake, and mostly the same
    after a few images were added. Memory: `count` images.
    """
    key = seed.to_bytes(16, "big", signed=True)
    skipped: dict[str, int] = {}
    drawn: list[tuple[int, str, LakeObject]] = []
    for item in listed:
        if isinstance(item, Skipped):
            skipped[item.reason] = skipped.get(item.reason, 0) + item.count
            continue
        # negative, because heapq pops the smallest, and the largest hash is removed first
        rank = -int.from_bytes(blake2b(item.uri.encode(), digest_size=8, key=key).digest(), "big")
        if len(drawn) < count:
            heapq.heappush(drawn, (rank, item.uri, item))
        elif drawn and rank > drawn[0][0]:
            heapq.heapreplace(drawn, (rank, item.uri, item))
    for reason, number in skipped.items():
        yield Skipped("", reason, number)
    yield from sorted((item for _, _, item in drawn), key=attrgetter("uri"))
