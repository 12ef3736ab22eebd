"""Open files that contain images during a listing: their indexes, and their members in the order of addresses."""

from __future__ import annotations

import heapq
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Final, TypeAlias

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.lake_object import LakeObject, Listed, Skipped
from pipelines.lake.members import (
    MARK,
    PARQUET_SUFFIX,
    REFUSED,
    MemberIndex,
    decode_index,
    encode_index,
    is_member_file,
    member_index,
)
from pipelines.lake.parquet_members import read_parquet_index
from pipelines.lake.tar_members import read_tar_index
from pipelines.store import (
    Archived,
    Changed,
    Denied,
    NotFound,
    Store,
    StoreEntry,
    StoreError,
    join_uri,
    without_secrets,
)

_logger = logging.getLogger(__name__)

_THREADS: Final = 8  # archives whose headers are read concurrently
_REMEMBERED: Final = 2 * _THREADS
_TRIES: Final = 3  # attempts to read an archive that is being replaced

OpenedFile: TypeAlias = tuple[StoreEntry, MemberIndex]
"""A file as it was when its index was read."""


@dataclass
class _Slot:
    """A file that is opened once; `is_new` means that the table has no index of it."""

    opened: OpenedFile | None = None
    is_new: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemberIndexes:
    """The indexes of files that contain images, each read once for a version of its file. Thread-safe.

    They are stored in a table as `_members/<hash>.index`, where they can be removed at any time: a damaged one is
    written again, and a table that cannot be read or written is not used any more. Without a table, or for a file
    without an etag, the last few are cached in memory.
    """

    def __init__(self, table: Store | None = None, *, keep: bool = False) -> None:
        """Set the table that stores indexes (None: no table), and whether to write new ones to it."""
        self._table, self._keep = table, keep
        self._lock = threading.Lock()
        self._remembered: OrderedDict[str, _Slot] = OrderedDict()

    def keep(self) -> None:
        """Write new indexes to the table from now on, and also the cached ones."""
        with self._lock:
            self._keep = True
            remembered = list(self._remembered.items())
        for key, slot in remembered:
            with slot.lock:
                self._write(key, slot)

    def open(self, store: Store, entry: StoreEntry, column: str | None = None) -> OpenedFile:
        """Return the index of a file, and the entry of the indexed version.

        Args:
            store: The store of the file.
            entry: The file, as it was listed.
            column: The column of images of a Parquet file.

        Raises:
            UsageError: the file has no such column.
            StoreError: the store refused.
        """
        name = "\0".join([join_uri(store.uri, entry.key), entry.etag or "", str(entry.size), column or ""])
        key = f"_members/{blake2b(name.encode(), digest_size=16).hexdigest()}.index"
        with self._lock:
            slot = self._remembered.setdefault(key, _Slot())
            self._remembered.move_to_end(key)
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        with slot.lock:  # another thread that needs the same index waits for it
            if slot.opened is None:
                kept = None if entry.etag is None else self._kept(key)
                slot.opened = (entry, kept) if kept is not None else _read_unless_refused(store, entry, column)
                read, index = slot.opened
                # damage at the first byte is read again: it costs little, and the store may have caused it
                slot.is_new = kept is None and read == entry and index.damaged_at not in (REFUSED, 0)
                self._write(key, slot)
            return slot.opened

    def _kept(self, key: str) -> MemberIndex | None:
        """Return the table's index; None if it has no readable one."""
        table = self._table
        if table is None:
            return None
        try:
            return decode_index(table.get(key).data, join_uri(table.uri, key))
        except (NotFound, RayDetrError):  # the latter: damaged
            return None
        except StoreError as error:
            self._give_up_table(error)
            return None

    def _write(self, key: str, slot: _Slot) -> None:
        """Write the index of a file if it is new and should be stored; a failure is not an error."""
        table = self._table
        if table is None or not self._keep or not slot.is_new or slot.opened is None or slot.opened[0].etag is None:
            return
        slot.is_new = False
        try:
            table.put(key, encode_index(slot.opened[1]))
        except StoreError as error:
            self._give_up_table(error)

    def _give_up_table(self, error: StoreError) -> None:
        with self._lock:
            is_first, self._table = self._table is not None, None
        if is_first:
            _logger.warning("Indexes of archives are not kept, and each run reads the archives again: %s", error)


def _read_unless_refused(store: Store, entry: StoreEntry, column: str | None) -> OpenedFile:
    """Read the index of a file; one that is refused, archived, removed or being written has one error row only."""
    try:
        return _read_index(store, entry, column)
    except (NotFound, Denied, Archived, Changed):
        return entry, member_index([], [], [], skipped={}, damaged_at=REFUSED)


def list_members(
    files: Iterable[StoreEntry | Skipped],
    open_file: Callable[[StoreEntry], OpenedFile],
    base: str,
    kept: tuple[object, ...],
    after: str | None,
) -> Iterator[Listed]:
    """Yield the images inside files in the order of addresses, and the numbers of other members.

    A damaged or refused file counts as one unreadable image. Memory: the indexes of eight files.

    Args:
        files: The files in the order of keys, including skipped ones.
        open_file: Returns the index of a file; called by several threads.
        base: The beginning of the addresses.
        kept: Values of each image's kept columns.
        after: The address after which to begin; None: all.
    """
    waiting: list[tuple[str, int, Iterator[Listed]]] = []  # whose addresses may come after those of later files
    for number, opened in enumerate(_opened_ahead(files, open_file)):
        uri = opened.uri if isinstance(opened, Skipped) else base + opened[0].key
        while waiting and waiting[0][0] < uri:
            yield from heapq.heappop(waiting)[2]
        if isinstance(opened, Skipped):
            yield opened
            continue
        entry, index = opened
        if index.damaged_at is not None and (after is None or uri > after):
            yield LakeObject(uri, entry.etag, None, kept, index.damaged_at, entry.modified)
        # a name that no member has, and that comes before all members'
        skipped = [Skipped(f"{uri}#\x01{reason}", reason, count) for reason, count in sorted(index.skipped.items())]
        heapq.heappush(waiting, (f"{uri}#", number, (one for one in skipped if after is None or one.uri > after)))
        heapq.heappush(waiting, (uri + MARK, number, index.members(uri, entry, kept, after)))
    yield from chain.from_iterable(heapq.heappop(waiting)[2] for _ in range(len(waiting)))


def files_that_hold(store: Store, key: str) -> Iterator[StoreEntry]:
    """Yield the files, in order, whose members' keys may be greater than a key although their own is not."""
    for end in range(1, len(key) + 1):
        if is_member_file(key[:end]):
            try:
                yield store.head(key[:end])
            except NotFound:
                continue


def _opened_ahead(
    files: Iterable[StoreEntry | Skipped], open_file: Callable[[StoreEntry], OpenedFile]
) -> Iterator[OpenedFile | Skipped]:
    """Yield the files with their indexes; reads a few ahead."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="members")
    pending: deque[Future[OpenedFile] | Skipped] = deque()
    most = 0  # the first file is read alone: often no others are needed

    def first() -> OpenedFile | Skipped:
        one = pending.popleft()
        return one if isinstance(one, Skipped) else one.result()

    try:
        for file in files:
            pending.append(file if isinstance(file, Skipped) else pool.submit(open_file, file))
            if len(pending) > most:
                yield first()
                most = min(most + 1, _THREADS)
        while pending:
            yield first()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_index(store: Store, entry: StoreEntry, column: str | None) -> OpenedFile:
    """Read the index of a file; if it is replaced meanwhile, that of the newer version.

    Raises:
        Changed: it changed at each of `_TRIES` attempts.
        StoreError: the store refused.
    """
    for _ in range(_TRIES - 1):
        try:
            return _read_version(store, entry, column)
        except Changed:
            entry = store.head(entry.key)
    return _read_version(store, entry, column)


def _read_version(store: Store, entry: StoreEntry, column: str | None) -> OpenedFile:
    if entry.size is None:
        entry = store.head(entry.key)
    if entry.size is None:
        name = without_secrets(join_uri(store.uri, entry.key))
        raise UsageError(
            f"the images in {name} cannot be listed: its store does not report its size. Copy it elsewhere."
        )
    if entry.key.lower().endswith(PARQUET_SUFFIX):
        assert column is not None, "a Parquet file is opened for a column of images"
        return entry, read_parquet_index(store, entry.key, entry.size, column, etag=entry.etag)
    return entry, read_tar_index(store, entry.key, entry.size, etag=entry.etag)
