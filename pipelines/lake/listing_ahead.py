"""List a bucket with concurrent requests, in the order of keys.

A listing is a chain of requests: each page contains the start of the next, 5,000 to 10,000 keys a second. But a listing
can begin after any string, so the keys are cut into ranges, and the ranges nearest to the reader are listed
concurrently. Cuts are at folders, which the store lists a thousand at a time, and within large folders halfway between
two names. Only the number of requests depends on the cuts: a range ends where the next begins, even if no such key
exists.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, Final

from pipelines.store import ListsAnywhere, StoreEntry, StoreError

LIST_THREADS: Final = 16

_PAGE = 1_000  # keys in a response of S3
_ALONE = 8 * _PAGE  # listed sequentially, before cutting pays
_RANGE_KEYS = 8 * _PAGE  # keys of a range that wait for the reader; more if no other range needs the thread
_WAITING_KEYS = 256 * _PAGE  # of all ranges: 100 MB
_PAGES_TO_LOOK = 2  # pages of a range before its folders are requested
_PAGES_OF_A_CUT = 4  # of a range of many small folders
_PAGES_TO_HALVE = 16  # of a range without folders, before it is cut at a guess; the first few guesses fail

_DEPTH = 24  # significant letters, after the common beginning of both ends of a range
_SAMPLED = 20  # one key of this many is sampled for the letters in use


def list_ahead(
    store: ListsAnywhere, prefix: str, after: str | None, *, threads: int = LIST_THREADS
) -> Iterator[StoreEntry]:
    """Yield the same as `store.list`, in the same order. Memory: at most some hundred thousand keys.

    Args:
        store: A store that can begin a listing at any key without extra cost.
        prefix: Any beginning of a key.
        after: The key after which to begin; None for the start.
        threads: Number of concurrent requests.

    Raises:
        StoreError: the listing cannot continue after the last yielded key.
    """
    listing = store.list(prefix, after)
    page: deque[StoreEntry] = deque(maxlen=_PAGE)
    count = 0
    for entry in islice(listing, _ALONE):
        page.append(entry)
        count += 1
        yield entry
    if count == _ALONE:
        folder = prefix[: prefix.rfind("/") + 1]
        head = _Range(prefix, page[-1].key, None, folder, listing, pages=_ALONE // _PAGE, page=list(page))
        yield from _Ahead(store, prefix, head, threads).entries()


@dataclass
class _Range:
    """The keys greater than `position`, the progress of its listing, up to `end` (None: the end of the prefix).

    Attributes:
        prefix: of the whole listing.
        folder: the folder at whose subfolders it may be cut; None: not at folders.
        listing: None before it begins.
        waiting: listed entries that are not yet yielded.
        pages: number of listed pages, including those before it was split from another range.
        page: the last page.
        request: for the next page.
        look: request for folders within `folder`.
    """

    prefix: str
    position: str
    end: str | None
    folder: str | None
    listing: Iterator[StoreEntry] | None = None
    waiting: deque[StoreEntry] = field(default_factory=deque)
    pages: int = 0
    page: Sequence[StoreEntry] = ()
    is_listed: bool = False
    error: Exception | None = None
    request: Future[list[StoreEntry]] | None = None
    look: Future[tuple[Sequence[str], bool]] | None = None

    def add(self, page: Sequence[StoreEntry]) -> None:
        """Add the part of a page within this range, whose end may have moved since the page was requested."""
        end = self.end
        self.is_listed = len(page) < _PAGE or (end is not None and page[-1].key > end)
        self.page = page if end is None else [entry for entry in page if entry.key <= end]
        self.pages += 1
        self.waiting.extend(self.page)
        self.position = self.page[-1].key if self.page else self.position

    def cut_at(self, folders: Sequence[str], *, is_whole: bool) -> list[_Range]:
        """Split off ranges that begin at some of these folders within `folder`; `is_whole`: there are no more."""
        assert self.folder is not None, "folders are of some folder"
        several = len({_folder_within(self.folder, entry.key) for entry in self.page})
        step = 1 if several <= 1 else several * _PAGES_OF_A_CUT
        ranges: list[_Range] = []
        before = self
        for name in folders[step - 1 :: step]:
            cut = _just_before(name)
            if cut > before.position and (self.end is None or cut < self.end):
                before = _Range(self.prefix, cut, None, name if step == 1 else None)
                ranges.append(before)
        if ranges and not is_whole:
            ranges[-1].folder = self.folder
        for one, following in pairwise([self, *ranges]):
            following.end, one.end = one.end, following.position
        self.folder = _folder_within(self.folder, self.position) if step == 1 else None
        return ranges

    def halve(self) -> _Range | None:
        """Split off about half of the remaining keys; None if they are few, or their number is unknown."""
        if not self.page or self.is_listed or self.pages < _PAGES_TO_HALVE:
            return None
        common = self.prefix if self.end is None else _common_start(self.position, self.end)
        scale = _Scale(len(common), {letter for entry in self.page[::_SAMPLED] for letter in entry.key[len(common) :]})
        high = scale.top if self.end is None else scale.number(self.end)
        low, begin = scale.number(self.position), scale.number(max(self.page[0].key, common))
        if high - low < max(1, 2 * (low - begin)):
            return None
        middle = scale.text((low + high) // 2)
        for length in range(1, len(middle) + 1):  # the shortest is sufficient
            cut = common + middle[:length]
            if cut[-1] not in "/." and self.position < cut and (self.end is None or cut < self.end):
                right = _Range(self.prefix, cut, self.end, None, pages=self.pages)
                self.end = cut
                return right
        return None


class _Ahead:
    """The ranges from the reader on. The reader's thread makes all decisions; other threads only send requests."""

    def __init__(self, store: ListsAnywhere, prefix: str, head: _Range, threads: int) -> None:
        self._store, self._prefix, self._threads = store, prefix, threads
        self._ranges = [head]
        self._pages = self._in_vain = 0

    def entries(self) -> Iterator[StoreEntry]:
        """Yield all keys in order."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="list")
        try:
            while self._ranges:
                self._ask(pool)
                head = self._ranges[0]
                if head.waiting:
                    for _ in range(min(_PAGE, len(head.waiting))):
                        yield head.waiting.popleft()
                elif head.error is not None:
                    raise head.error
                else:
                    running: list[Future[Any]] = [
                        future for one in self._ranges for future in (one.request, one.look) if future
                    ]
                    wait(running, return_when=FIRST_COMPLETED)
                self._collect()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _collect(self) -> None:
        """Process the responses that have arrived."""
        ranges: list[_Range] = []
        for one in self._ranges:
            ranges.append(one)
            if one.request is not None and one.request.done():
                try:
                    one.add(one.request.result())
                except StoreError as error:  # raised when the reader reaches it
                    one.error, one.is_listed = error, True
                self._pages += 1
                self._in_vain += not one.waiting and one.is_listed
                one.request = None
            if one.look is not None and one.look.done():
                try:
                    folders, is_whole = one.look.result()
                except StoreError:  # a persistent error will also occur in the listing
                    one.folder = None
                else:
                    ranges += one.cut_at(folders, is_whole=is_whole)
                one.look = None
        self._ranges = [one for one in ranges if one.request or one.waiting or one.error or not one.is_listed]

    def _ask(self, pool: ThreadPoolExecutor) -> None:
        """Keep all threads busy, nearest to the reader first: with listing ranges, then with finding cuts."""
        free = self._threads - sum((one.request is not None) + (one.look is not None) for one in self._ranges)
        room = _WAITING_KEYS - sum(len(one.waiting) for one in self._ranges)
        # distant ranges would take the memory of ranges that are split off the near ones
        unlisted = list(islice((one for one in self._ranges if not one.is_listed), self._threads))
        for one in unlisted:
            if free > 0 and one.request is None and len(one.waiting) < _RANGE_KEYS and (room > 0 or one is unlisted[0]):
                self._ask_for_page(pool, one)
                free, room = free - 1, room - _PAGE
        for one in unlisted:
            if free > 0 and one.folder is not None and one.look is None and one.pages >= _PAGES_TO_LOOK:
                one.look = pool.submit(self._store.folders, one.folder, one.position)
                free -= 1
        while free > 0 and room > 0 and self._in_vain <= self._threads + self._pages // 4:
            halves = ((place, one.halve()) for place, one in enumerate(self._ranges, 1) if one.folder is None)
            place, right = next(((place, half) for place, half in halves if half is not None), (0, None))
            if right is None:
                break
            self._ranges.insert(place, right)
            self._ask_for_page(pool, right)
            free, room = free - 1, room - _PAGE
        for one in unlisted:  # no other work is available
            if free > 0 and one.request is None and not one.is_listed and room > _WAITING_KEYS // 4:
                self._ask_for_page(pool, one)
                free, room = free - 1, room - _PAGE

    def _ask_for_page(self, pool: ThreadPoolExecutor, one: _Range) -> None:
        one.listing = one.listing or self._store.list(self._prefix, one.position)
        one.request = pool.submit(_page, one.listing)


def _page(listing: Iterator[StoreEntry]) -> list[StoreEntry]:
    return list(islice(listing, _PAGE))


def _folder_within(folder: str, key: str) -> str | None:
    """Return the folder within `folder` that contains a key; None if no such folder does."""
    slash = key.find("/", len(folder))
    return key[: slash + 1] if slash >= 0 and key.startswith(folder) else None


def _common_start(key: str, end: str) -> str:
    length = next((place for place, (one, other) in enumerate(zip(key, end, strict=False)) if one != other), None)
    return key[:length] if length is not None else min(key, end, key=len)


def _just_before(folder: str) -> str:
    """Return a string between the keys before a folder and those in it, in a form that every client accepts."""
    return folder[:-1] + "."  # the letter before the slash


class _Scale:
    """An order-preserving map of keys to numbers: the part after a common start, in the letters of nearby keys."""

    def __init__(self, start: int, letters: Iterable[str]) -> None:
        self._start, self._letters = start, sorted(letters)
        self._base = len(self._letters) + 1
        self.top = self._base**_DEPTH - 1

    def number(self, key: str) -> int:
        """Return the number of a key."""
        number = 0
        letters = key[self._start : self._start + _DEPTH]
        for letter in letters:
            number = number * self._base + bisect_right(self._letters, letter)
        return int(number * self._base ** (_DEPTH - len(letters)))

    def text(self, number: int) -> str:
        """Return the letters of a number; the first letter also covers everything before it."""
        places = []
        for _ in range(_DEPTH):
            number, place = divmod(number, self._base)
            places.append(place)
        return "".join(self._letters[max(place, 1) - 1] for place in reversed(places))
