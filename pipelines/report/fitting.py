"""Keep a report's page under 5 MB: how many pictures and boxes it may show, and the room for its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from pipelines.report.examples import Example, left_out_bins
from pipelines.report.page import ROLES, Item, Page, PictureRow, render
from pipelines.report.pictures import MOST_BYTES, Picture, unique
from pipelines.store import without_known_secrets

PAGE_BYTES: Final = 4_950_000
LEAST_BYTES: Final = 4_000  # of a picture as text, for 96 pixels
SHOWN_PICTURES: Final = 1_000  # of all galleries; a picture counts in each
DRAWN_BOXES: Final = 25_000  # of all of these, about 50 bytes each
LEAST_PICTURES: Final = 30  # of all galleries, however large the rest of the page is
_BEFORE: Final = ROLES.index("before")


def fitted(page: Page) -> tuple[Page, dict[str, Example], int]:
    """Return a page with as many pictures and boxes as fit, its images by address, and the bytes left for pictures.

    Pictures of the page have no source yet.
    """
    pictures, boxes = SHOWN_PICTURES, DRAWN_BOXES
    while True:
        smaller, shown = _limited(page, pictures, boxes)
        room = min(MOST_BYTES, PAGE_BYTES - len(render(smaller).encode()))
        if room >= LEAST_BYTES * len(shown) or pictures <= LEAST_PICTURES:
            return smaller, shown, max(0, room)
        pictures, boxes = pictures // 2, boxes // 2


def largest_limit(counts: Sequence[int], total: int, most: int) -> int:
    """Return the largest limit, from 1 to `most`, with which counts that are cut to it are together at most `total`."""
    return next((limit for limit in range(most, 1, -1) if sum(min(count, limit) for count in counts) <= total), 1)


def limited_boxes(
    boxes: Sequence[Sequence[Any]], more: Sequence[tuple[int, int]], most: int
) -> tuple[Sequence[Sequence[Any]], Sequence[tuple[int, int]]]:
    """Return at most this many boxes of a picture, in order, and the bins of those that are not drawn.

    Changes and mistakes are kept first, then former places of boxes that moved, then annotations, then the boxes with
    the highest scores. Former places and annotations are in no bin.
    """
    if len(boxes) <= most:
        return boxes, more
    roles = [box[6] if len(box) > 6 else 0 for box in boxes]
    ranks = [
        (2 if role < 2 else role == _BEFORE, -np.inf if box[1] is None else -box[1])
        for box, role in zip(boxes, roles, strict=True)
    ]
    kept = set(sorted(range(len(boxes)), key=ranks.__getitem__)[:most])
    cut = [box for place, box in enumerate(boxes) if place not in kept and roles[place] != _BEFORE]
    scores = [box[1] for box in cut if box[1] is not None]
    bins = dict(more)
    for number, count in left_out_bins(np.array(scores, np.float32)):
        bins[number] = bins.get(number, 0) + count
    return [box for place, box in enumerate(boxes) if place in kept], sorted(bins.items())


def _limited(page: Page, pictures: int, drawn: int) -> tuple[Page, dict[str, Example]]:
    rows = [*page.galleries, *(gallery for part in page.comparisons for gallery in part.galleries)]
    longest = max((len(row.items) for row in rows), default=1)
    of_row = largest_limit([len(row.items) for row in rows], pictures, max(1, longest))
    items = [item for row in rows for item in row.items[:of_row]]
    lengths = [len(_boxes(item)) for item in items]
    of_item = largest_limit(lengths, drawn, max(lengths, default=1))

    def limited(galleries: Iterable[PictureRow]) -> list[PictureRow]:
        return [replace(row, items=[_item(item, of_item) for item in row.items[:of_row]]) for row in galleries]

    shown = unique([[item.example for item in row.items[:of_row]] for row in rows])
    smaller = replace(
        page,
        galleries=limited(page.galleries),
        comparisons=[replace(part, galleries=limited(part.galleries)) for part in page.comparisons],
        pictures={
            uri: Picture(without_known_secrets(uri), None, one.width or 0, one.height or 0)
            for uri, one in shown.items()
        },
        most_pictures=of_row if of_row < longest else None,
        most_boxes=of_item if any(length > of_item for length in lengths) else None,
    )
    return smaller, shown


def _boxes(item: Item) -> Sequence[Sequence[Any]]:
    return item.example.boxes if item.boxes is None else item.boxes


def _item(item: Item, most: int) -> Item:
    boxes, more = limited_boxes(_boxes(item), item.example.more if item.boxes is None else item.more, most)
    return replace(item, boxes=boxes, more=more)
