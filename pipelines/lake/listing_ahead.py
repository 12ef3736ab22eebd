"""Listing a bucket in many places at once, in one order.

One listing is a chain of requests: each page says where the next begins, 5,000 to 10,000 keys a second. But a listing
may begin behind any string, so the keys are cut into ranges by strings that lie between two of them, and the ranges
near the reader are listed at once. Nothing depends on the cuts but how many requests run into each other: a range
ends where the next begins, whether or not there is such a key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from os.path import commonprefix
from typing import Final

from pipelines.store import Entry

LIST_THREADS: Final = 16

_PAGE = 1_000  # keys in an answer of S3
_ALONE = 8 * _PAGE  # listed by one request after the other, before it is worth it
_RANGE_KEYS = 4 * _PAGE  # of a range, that wait for their turn
_RANGES = 64  # with those keys: 100 MB at most
_WORTH_PAGES = 2.0  # left of a range that is cut

_LETTERS = 97  # that keys are counted in: those of ASCII that can be seen, one for all before them and one for all behind
_DEPTH = 10  # letters behind what is common to both ends of a range

List = Callable[[str, str | None], Iterator[Entry]]
"""`Store.list`: of a prefix, what is greater than a key."""


def list_ahead(list_from: List, prefix: str, after: str | None, *, threads: int = LIST_THREADS) -> Iterator[Entry]:
    """Yield what `list_from` would, in the same order, of a store that can begin to list anywhere at no cost.

    Holds at most some hundred thousand keys.

    Args:
        list_from: Lists one after the other.
        prefix: Any beginning of a key.
        after: The key after which to begin, None for the start.
        threads: How many requests run at once.

    Raises:
        StoreError: the listing cannot go on; every key before was given.
    """
    entries = list_from(prefix, after)
    first, count = None, 0
    for count, entry in enumerate(islice(entries, _ALONE), 1):
        first = first or entry.key
        yield entry
    if count == _ALONE:
        head = _Range(entries, prefix, None, entry.key, pages=_ALONE / _PAGE, first=first)
        yield from _Ahead(list_from, prefix, head, threads).entries()


@dataclass
class _Range:
    """The keys greater than `position`, where its listing stands, up to `end` (None: the end of the prefix).

    `pages` were listed from the key `first` on. `waiting` are the keys that were listed and not given yet.
    """

    listing: Iterator[Entry]
    prefix: str
    end: str | None
    position: str
    pages: float = 0.0
    first: str | None = None
    waiting: deque[Entry] = field(default_factory=deque)
    is_listed: bool = False
    error: Exception | None = None
    request: Future[list[Entry]] | None = None

    def add(self, page: list[Entry]) -> None:
        """Take a page, as far as it is of this range: its end may have come nearer since the page was asked for."""
        for entry in page:
            if self.end is not None and entry.key > self.end:
                self.is_listed = True
                break
            self.first = self.first or entry.key
            self.position = entry.key
            self.waiting.append(entry)
        self.is_listed = self.is_listed or len(page) < _PAGE
        self.pages += 1

    def cut(self) -> str | None:
        """Return a string about halfway through what is still to be listed; None if that is little, or not known."""
        if self.first is None or self.is_listed:
            return None
        common = self.prefix if self.end is None else commonprefix((self.position, self.end))
        high = _LETTERS**_DEPTH if self.end is None else _number(self.end, common)
        low, begin = _number(self.position, common), _number(max(self.first, common), common)
        if (high - low) * self.pages < _WORTH_PAGES * (low - begin):
            return None
        middle = _text((low + high) // 2)
        for length in range(1, len(middle) + 1):  # the shortest will do
            found = common + middle[:length]
            if found[-1] not in "/." and self.position < found and (self.end is None or found < self.end):
                return found
        return None


class _Ahead:
    """The ranges from the reader on. All decisions are taken in the reader's thread; the others only list."""

    def __init__(self, list_from: List, prefix: str, head: _Range, threads: int) -> None:
        self._list_from, self._prefix, self._threads = list_from, prefix, threads
        self._ranges = deque([head])
        self._listed = self._in_vain = 0

    def entries(self) -> Iterator[Entry]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="list")
        try:
            while self._ranges:
                self._collect()
                self._ask(pool)
                head = self._ranges[0]
                if head.waiting:
                    for _ in range(min(_PAGE, len(head.waiting))):
                        yield head.waiting.popleft()
                elif head.error is not None:
                    raise head.error
                elif head.is_listed and head.request is None:
                    self._ranges.popleft()
                else:
                    wait([one.request for one in self._ranges if one.request], return_when=FIRST_COMPLETED)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _collect(self) -> None:
        """Take the answers that are there."""
        for one in self._ranges:
            if one.request is not None and one.request.done():
                error = one.request.exception()
                if isinstance(error, Exception):
                    one.error, one.is_listed = error, True
                else:
                    one.add(one.request.result())
                    self._listed += 1
                    self._in_vain += one.first is None
                one.request = None

    def _ask(self, pool: ThreadPoolExecutor) -> None:
        """Keep all threads busy: with what is begun, nearest to the reader first, then with what is cut off it."""
        free = self._threads - sum(one.request is not None for one in self._ranges)
        for one in self._ranges:
            if free > 0 and one.request is None and not one.is_listed and len(one.waiting) < _RANGE_KEYS:
                one.request = pool.submit(_page, one.listing)
                free -= 1
        while free > 0 and len(self._ranges) < _RANGES and self._in_vain <= self._listed // 2:
            place, cut = next(
                ((place, cut) for place, one in enumerate(self._ranges) if (cut := one.cut()) is not None), (0, None)
            )
            if cut is None:
                return
            left = self._ranges[place]
            right = _Range(self._list_from(self._prefix, cut), self._prefix, left.end, cut)
            left.end = cut
            self._ranges.insert(place + 1, right)
            right.request = pool.submit(_page, right.listing)
            free -= 1


def _page(listing: Iterator[Entry]) -> list[Entry]:
    return list(islice(listing, _PAGE))


def _number(key: str, common: str) -> int:
    """Return how far a key is behind what is common to all, in letters of `_LETTERS`: greater for greater keys."""
    number = 0
    letters = key[len(common) : len(common) + _DEPTH]
    for letter in letters:
        number = number * _LETTERS + min(max(ord(letter) - 31, 0), _LETTERS - 1)
    return int(number * _LETTERS ** (_DEPTH - len(letters)))


def _text(number: int) -> str:
    """Return the letters of a number, without those of which there is none to be seen."""
    letters = []
    for _ in range(_DEPTH):
        number, letter = divmod(number, _LETTERS)
        letters.append(letter)
    return "".join(chr(31 + min(max(letter, 1), 95)) for letter in reversed(letters))
