"""The actions of `ray-detr repeats`: write the page of places, accept them, withdraw marks, list marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.clock import Clock, SystemClock
from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.images import ImageStores
from pipelines.lake.member_files import MemberIndexes
from pipelines.marks.marks import Accepted, Mark, accept_marks, read_marks, withdraw_marks
from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.finding import Found, find_places
from pipelines.repeats.page import render_places
from pipelines.repeats.selection import read_selection
from pipelines.report.report import write_page
from pipelines.store import Store, StoreError, open_store, without_secrets
from pipelines.table.files import DATA, SUFFIX

_ID: Final = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class PageSummary:
    """The result of a search and its page.

    Attributes:
        out: the page.
        bytes: its size.
        places: that were found.
        shown: of these on the page.
        boxes: detections that all places cover.
        images: that were looked at.
        marked_before: detections that marks already cover.
    """

    out: Path
    bytes: int
    places: int
    shown: int
    boxes: int
    images: int
    marked_before: int


def write_places_page(
    config: RepeatsConfig, out: Path, *, clock: Clock | None = None, show: Callable[[str], None] = lambda _what: None
) -> PageSummary:
    """Find places that repeat and write the page on which people accept them.

    Args:
        config: the criteria.
        out: the HTML file; an earlier one is replaced.
        clock: for the time on the page.
        show: called with a text about the next step.

    Raises:
        RayDetrError: the table is empty or damaged, or the file cannot be written.
    """
    found = find_places(config, show=show)
    with _table(config) as table:
        stores = ImageStores(config.options, MemberIndexes(table))
        now = (clock or SystemClock()).now()
        page = render_places(found, config, stores, now, show=lambda done, total: show(f"picture {done} of {total}"))
    data = page.encode()
    write_page(out, data)
    shown = min(len(found.places), config.most_places)
    return PageSummary(out, len(data), len(found.places), shown, _boxes(found), found.images, found.covered)


def accept_file(config: RepeatsConfig, place: str, *, clock: Clock | None = None) -> Accepted:
    """Accept the places of a file downloaded from the page; places already in force are unchanged.

    Raises:
        UsageError: the file is not of a page of this table.
        RayDetrError: a store refused.
    """
    with _table(config) as table:
        return accept_marks(table, read_selection(place, table, config.options), clock or SystemClock())


def accept_all(
    config: RepeatsConfig, *, clock: Clock | None = None, show: Callable[[str], None] = lambda _what: None
) -> tuple[Found, Accepted]:
    """Find places that repeat, and accept all of them.

    Raises:
        RayDetrError: the table is empty or damaged, or the store refused.
    """
    found = find_places(config, with_pictures=False, show=show)
    with _table(config) as table:
        return found, accept_marks(table, [place.mark for place in found.places], clock or SystemClock())


def withdraw(config: RepeatsConfig, words: Sequence[str], *, clock: Clock | None = None) -> Accepted:
    """Withdraw marks, named by their ids or by files downloaded from the page.

    Raises:
        UsageError: the table never had such a mark, or a file is not of a page of this table.
        RayDetrError: the store refused.
    """
    with _table(config) as table:
        ids = [
            one
            for word in words
            for one in ([word] if _ID.fullmatch(word) else [m.id for m in read_selection(word, table, config.options)])
        ]
        return withdraw_marks(table, ids, clock or SystemClock())


def marks_of(config: RepeatsConfig) -> list[Mark]:
    """Return the marks in force of a table, by folder and class.

    Raises:
        RayDetrError: a record is damaged, or the store refused.
    """
    with _table(config) as table:
        return sorted(read_marks(table), key=lambda mark: (mark.folder, mark.label, mark.box))


@contextmanager
def _table(config: RepeatsConfig) -> Iterator[Store]:
    """Open a table that has rows.

    Raises:
        UsageError: it has none.
        RayDetrError: the store refused.
    """
    shown = without_secrets(config.table)
    try:
        table = open_store(config.table, config.options)
        if not any(entry.key.endswith(SUFFIX) for entry in table.list(DATA)):
            raise UsageError(f"table {table.uri} has no published rows. Check the address, or label images into it.")
        yield table
    except StoreError as error:
        raise RayDetrError(f"cannot use the marks of {shown}: {error}") from error


def _boxes(found: Found) -> int:
    return sum(place.boxes for place in found.places)
