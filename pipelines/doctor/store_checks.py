"""Checks that the store of a table has the properties that publishing, leases and resuming need."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.doctor.findings import Finding, Level
from pipelines.store import AlreadyExists, Changed, Misconfigured, NotFound, Store, StoreError
from pipelines.store.local import LocalStore

FOLDER = "_doctor/"
"""The folder for test objects, below the table; readers of the table ignore folders that begin with `_`."""

MANY = 1_100  # objects in one folder: S3 lists 1,000 a page
THREADS = 32
LARGE_BYTES = 24 * 1024**2
SPECIAL = "a b+c%41=&ä/日本.parquet"

OTHER_STORE = "Use another store, or a bucket without versioning."


class _CheckFailed(Exception):
    """The store does not behave as required; the message says how."""


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    run: Callable[[_Place], None]
    level: Level = "fail"
    remedy: str = OTHER_STORE


@dataclass
class _Place:
    """The folder of one series of checks, and values that the checks share."""

    store: Store
    folder: str
    etag: str | None = None

    def key(self, name: str) -> str:
        return self.folder + name

    def names(self, prefix: str = "", after: str | None = None) -> list[str]:
        start = None if after is None else self.key(after)
        return [entry.key.removeprefix(self.folder) for entry in self.store.list(self.key(prefix), start)]


def check_store(store: Store) -> Iterator[Finding]:
    """Yield a finding for each property of a store that tables rely on. What is written is deleted again.

    Takes about 2,300 small requests and 24 MiB in both directions.

    Args:
        store: of the table.
    """
    place = _Place(store, f"{FOLDER}{secrets.token_hex(8)}/")
    try:
        for check in _CHECKS:
            finding = _run(check, place)
            yield finding
            if check.name == "put" and finding.level == "fail":
                return  # nothing can be written: every further check would fail in the same way
    finally:
        cleaned = _clean(place)
    yield cleaned


def _run(check: _Check, place: _Place) -> Finding:
    if check.run in (_if_match, _if_match_stale) and isinstance(place.store, LocalStore):
        return Finding(f"store: {check.name}", "ok", "not needed: in folders, the lease is a lock file")
    try:
        check.run(place)
    except _CheckFailed as wrong:
        return Finding(f"store: {check.name}", check.level, str(wrong), check.remedy)
    except StoreError as error:
        remedy = "Give these credentials the rights in docs/security.md." if check.name == "put" else check.remedy
        transient = check.level == "fail" and error.is_transient
        return Finding(f"store: {check.name}", check.level, f"refused: {error}", remedy, transient)
    return Finding(f"store: {check.name}", "ok", "works as expected")


def _clean(place: _Place) -> Finding:
    name = "store: everything deleted again"
    try:
        left = 0
        with ThreadPoolExecutor(THREADS) as threads:
            while keys := [entry.key for entry in place.store.list(place.folder)]:
                if len(keys) == left:  # they remain
                    break
                left = len(keys)
                list(threads.map(place.store.delete, keys))
        left = len(keys)
    except StoreError as error:
        left, reason = 1, f" ({error})"
    else:
        reason = ""
    if left:
        return Finding(
            name, "warn", f"objects below {place.folder} could not be deleted{reason}", "Delete that folder."
        )
    return Finding(name, "ok", "nothing is left")


def _expect(fact: bool, sentence: str) -> None:
    if not fact:
        raise _CheckFailed(sentence)


def _put(place: _Place) -> None:
    place.etag = place.store.put(place.key("one"), b"first", create=True)


def _read_after_write(place: _Place) -> None:
    _expect(place.store.get(place.key("one")).data == b"first", "an object does not have the bytes that were written")


def _create_only(place: _Place) -> None:
    try:
        place.store.put(place.key("one"), b"second", create=True)
    except AlreadyExists:
        return
    raise _CheckFailed("a create-only put overwrote an existing object: two runs could lose each other's rows")


def _loser_changes_nothing(place: _Place) -> None:
    found = place.store.get(place.key("one")).data
    if found != b"first":
        place.store.put(place.key("one"), b"first")  # for the checks that follow
        raise _CheckFailed("a refused put changed the object")


def _head(place: _Place) -> None:
    entry = place.store.head(place.key("one"))
    _expect(entry.size == 5, f"the size of an object of 5 bytes is reported as {entry.size}")


def _etag(place: _Place) -> None:
    key = place.key("one")
    etags = {place.store.head(key).etag, place.store.get(key).etag}
    etags |= {entry.etag for entry in place.store.list(key)}
    _expect(None not in etags, "objects have no etag: changed images cannot be detected")
    _expect(len(etags) == 1, f"one object has several etags: {sorted(map(str, etags))}")
    place.etag = etags.pop()


def _list_after_write(place: _Place) -> None:
    place.store.put(place.key("two"), b"22")
    _expect("two" in place.names(), "an object that was just written is not in the listing")


def _list_size(place: _Place) -> None:
    sizes = {entry.key: entry.size for entry in place.store.list(place.folder)}
    _expect(sizes.get(place.key("two")) == 2, "the size in the listing differs from the size of the object")


def _range(place: _Place) -> None:
    found = place.store.get_range(place.key("one"), 1, 3)
    _expect(found == b"irs", "a range read returned other bytes than the object has")


def _range_past_end(place: _Place) -> None:
    found = place.store.get_range(place.key("one"), 3, 100)
    _expect(found == b"st", f"a range read past the end returned {len(found)} bytes instead of 2")


def _range_last_byte(place: _Place) -> None:
    _expect(place.store.get_range(place.key("one"), 4, 1) == b"t", "the last byte cannot be read by range")


def _overwrite(place: _Place) -> None:
    place.store.put(place.key("two"), b"other")
    _expect(place.store.get(place.key("two")).data == b"other", "an overwritten object still has its former bytes")


def _etag_changes(place: _Place) -> None:
    before = place.store.head(place.key("two")).etag
    place.store.put(place.key("two"), b"OTHER")  # of the same size
    _expect(place.store.head(place.key("two")).etag != before, "an overwritten object keeps its etag")


def _if_match(place: _Place) -> None:
    key = place.key("swapped")
    place.store.put(key, b"1")
    place.store.put(key, b"2", if_match=place.store.head(key).etag)
    _expect(place.store.get(key).data == b"2", "a conditional put was accepted, but the object did not change")


def _if_match_stale(place: _Place) -> None:
    key = place.key("swapped")
    stale = place.store.head(key).etag
    place.store.put(key, b"3")
    try:
        place.store.put(key, b"4", if_match=stale)
    except Changed:
        _expect(place.store.get(key).data == b"3", "a refused conditional put changed the object")
        return
    except Misconfigured as error:
        raise _CheckFailed(f"conditional puts are not supported: {error}") from error
    raise _CheckFailed("a conditional put over a changed object was accepted")


def _missing(place: _Place) -> None:
    for what in (place.store.head, place.store.get):
        try:
            what(place.key("missing"))
        except NotFound:
            continue
        raise _CheckFailed("an object that does not exist was found")


def _delete(place: _Place) -> None:
    place.store.delete(place.key("two"))
    _expect("two" not in place.names(), "a deleted object is still listed")
    try:
        place.store.get(place.key("two"))
    except NotFound:
        return
    raise _CheckFailed("a deleted object can still be read")


def _delete_again(place: _Place) -> None:
    place.store.delete(place.key("two"))


def _create_after_delete(place: _Place) -> None:
    place.store.put(place.key("two"), b"again", create=True)
    _expect(place.store.get(place.key("two")).data == b"again", "a deleted object cannot be created again")


def _empty(place: _Place) -> None:
    place.store.put(place.key("empty"), b"")
    _expect(place.store.get(place.key("empty")).data == b"", "an empty object is not empty")
    _expect(place.store.head(place.key("empty")).size == 0, "the size of an empty object is not 0")


def _special(place: _Place) -> None:
    place.store.put(place.key(SPECIAL), b"special")
    found = place.store.get(place.key(SPECIAL)).data
    _expect(found == b"special", "an object whose name has special characters returned other bytes")
    _expect(SPECIAL in place.names(), f"the name {SPECIAL!r} is listed under another name")


def _case(place: _Place) -> None:
    place.store.put(place.key("case"), b"lower")
    place.store.put(place.key("CASE"), b"upper")
    _expect(
        place.store.get(place.key("case")).data == b"lower",
        "names that differ only in upper and lower case refer to one object",
    )


def _prefix(place: _Place) -> None:
    place.store.put(place.key("pre/a"), b"1")
    place.store.put(place.key("prefix"), b"2")
    _expect(
        place.names("pre") == ["pre/a", "prefix"], f"objects that begin with 'pre' are listed as {place.names('pre')}"
    )
    _expect(place.names("pre/") == ["pre/a"], "the listing of a folder contains objects outside it")


def _many(place: _Place) -> None:
    expected = [f"many/{number:05d}" for number in range(MANY)]
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda name: place.store.put(place.key(name), b"x"), expected))
    found = place.names("many/")
    _expect(len(found) == MANY, f"{MANY:,} objects were written, but {len(found):,} are listed")
    _expect(found == expected, "the listing is not in the order of the names")


def _after(place: _Place) -> None:
    found = place.names("many/", after=f"many/{MANY - 3:05d}")
    expected = [f"many/{number:05d}" for number in range(MANY - 2, MANY)]
    _expect(
        found == expected, f"a listing that starts after a name has {len(found):,} names instead of {len(expected)}"
    )


def _large(place: _Place) -> None:
    block = secrets.token_bytes(1024**2)
    data = block * (LARGE_BYTES // len(block))
    place.store.put(place.key("large"), data)
    digest = hashlib.sha256(place.store.get(place.key("large")).data).digest()
    _expect(
        digest == hashlib.sha256(data).digest(),
        f"an object of {LARGE_BYTES:,} bytes returned other bytes than were written",
    )


_LOCKS = (
    "Without it, the lease cannot exclude a second writer reliably: run only one command at a time that writes to the "
    "table."
)

_CHECKS = (
    _Check("put", _put, remedy="Give these credentials the rights in docs/security.md."),
    _Check("read after write", _read_after_write),
    _Check("create only", _create_only),
    _Check("a refused put changes nothing", _loser_changes_nothing),
    _Check("size by head", _head),
    _Check("etag", _etag, level="warn", remedy="Changed images are then detected only by their size."),
    _Check("list after write", _list_after_write),
    _Check("size by listing", _list_size),
    _Check("range", _range),
    _Check("range past the end", _range_past_end),
    _Check("range of the last byte", _range_last_byte),
    _Check("overwrite", _overwrite),
    _Check(
        "etag after overwriting",
        _etag_changes,
        level="warn",
        remedy="Changed images are then detected only by their size.",
    ),
    _Check("if-match", _if_match, level="warn", remedy=_LOCKS),
    _Check("if-match with a stale etag", _if_match_stale, level="warn", remedy=_LOCKS),
    _Check("a missing object", _missing),
    _Check("delete", _delete),
    _Check("delete again", _delete_again),
    _Check("create after delete", _create_after_delete),
    _Check("empty object", _empty),
    _Check("special characters", _special),
    _Check("upper and lower case", _case, level="warn", remedy="Do not use names of runs that differ only in case."),
    _Check("prefixes", _prefix),
    _Check("many objects in order", _many),
    _Check("list after a name", _after),
    _Check("large object", _large),
)
