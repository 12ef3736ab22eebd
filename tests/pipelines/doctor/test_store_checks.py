"""Every property of a store that tables rely on is checked: a store that lacks one is found, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pipelines.doctor import store_checks
from pipelines.doctor.findings import Finding
from pipelines.doctor.store_checks import check_store
from pipelines.store import (
    AlreadyExists,
    Blob,
    Changed,
    Denied,
    NotFound,
    Store,
    StoreDown,
    StoreEntry,
    StoreError,
    Throttled,
    open_store,
)
from tests.conftest import S3Server
from tests.memory_store import memory_store


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_checks, "MANY", 40)
    monkeypatch.setattr(store_checks, "LARGE_BYTES", 1024**2)


def bad(findings: list[Finding]) -> set[str]:
    return {finding.check.removeprefix("store: ") for finding in findings if finding.level != "ok"}


def test_stores_of_every_kind_pass_and_nothing_is_left(store: Store) -> None:
    store.put("data/kept.parquet", b"kept")

    findings = list(check_store(store))

    assert len(findings) == 27
    assert bad(findings) == set()
    assert [entry.key for entry in store.list()] == ["data/kept.parquet"]


class Broken:
    """A store in memory that does one thing wrong."""

    etag_form = "quoted"

    def __init__(self) -> None:
        self.inner = memory_store()
        self.uri = self.inner.uri
        self.gone: dict[str, StoreEntry] = {}

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        yield from self.inner.list(prefix, after)

    def head(self, key: str) -> StoreEntry:
        return self.inner.head(key)

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        return self.inner.get(key, most_bytes=most_bytes)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        return self.inner.get_range(key, start, length)

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        return self.inner.put(key, data, create=create, if_match=if_match)

    def delete(self, key: str) -> None:
        self.inner.delete(key)


class OverwritesAll(Broken):
    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        return self.inner.put(key, data)


class RefusesAndWrites(Broken):
    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        try:
            return super().put(key, data, create=create, if_match=if_match)
        except (AlreadyExists, Changed):
            self.inner.put(key, data)
            raise


class ListsLate(Broken):
    """As S3 before December 2020: a new object is in the second listing only."""

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        for entry in list(self.inner.list(prefix, after)):
            if entry.key in self.gone:
                yield entry
            self.gone[entry.key] = entry


class ListsDeleted(Broken):
    def delete(self, key: str) -> None:
        if key.endswith("/two"):
            self.gone[key] = self.inner.head(key)
        super().delete(key)

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        yield from super().list(prefix, after)
        yield from (entry for key, entry in self.gone.items() if key.startswith(prefix))


class OnePage(Broken):
    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        yield from list(super().list(prefix, after))[:30]


class Unordered(Broken):
    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        yield from reversed(list(super().list(prefix, after)))


class IgnoresAfter(Broken):
    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        yield from super().list(prefix)


class WholeRanges(Broken):
    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        return self.inner.get(key).data


class RefusesRangesPastTheEnd(Broken):
    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if start + length > len(self.inner.get(key).data):
            raise StoreDown("416")
        return super().get_range(key, start, length)


class Cut(Broken):
    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        blob = super().get(key)
        return replace(blob, data=blob.data[:65_536])


class NoEtags(Broken):
    def head(self, key: str) -> StoreEntry:
        return replace(super().head(key), etag=None)


class NoEmptyObjects(Broken):
    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        return super().put(key, data or b"\n", create=create, if_match=if_match)


class OneCase(Broken):
    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        return super().put(key.replace("CASE", "case"), data, create=create, if_match=if_match)

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        return super().get(key.replace("CASE", "case"))


class EncodedNames(Broken):
    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        yield from (replace(entry, key=entry.key.replace("%", "%25")) for entry in super().list(prefix, after))


class FindsAll(Broken):
    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        try:
            return super().get(key)
        except NotFound:
            return Blob(b"", None)


class WrongSizes(Broken):
    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        yield from (replace(entry, size=0) for entry in super().list(prefix, after))


class WrongHead(Broken):
    def head(self, key: str) -> StoreEntry:
        return replace(super().head(key), size=7)


class FoldersOnly(Broken):
    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        for entry in super().list(prefix, after):
            if not prefix or prefix.endswith("/") or entry.key.startswith(f"{prefix}/") or entry.key == prefix:
                yield entry


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (OverwritesAll, {"create only", "a refused put changes nothing", "if-match with a stale etag"}),
        (RefusesAndWrites, {"a refused put changes nothing", "if-match with a stale etag"}),
        (ListsLate, {"list after write", "special characters", "prefixes", "many objects in order"}),
        (ListsDeleted, {"delete", "delete again", "everything deleted again"}),
        (OnePage, {"many objects in order"}),
        (Unordered, {"prefixes", "many objects in order", "list after a name"}),
        (IgnoresAfter, {"list after a name"}),
        (WholeRanges, {"range", "range past the end", "range of the last byte"}),
        (RefusesRangesPastTheEnd, {"range past the end"}),
        (Cut, {"large object"}),
        (NoEtags, {"etag", "etag after overwriting", "if-match with a stale etag"}),
        (NoEmptyObjects, {"empty object"}),
        (OneCase, {"upper and lower case"}),
        (EncodedNames, {"special characters", "everything deleted again"}),
        (FindsAll, {"a missing object", "delete"}),
        (WrongSizes, {"size by listing"}),
        (WrongHead, {"size by head", "empty object"}),
        (FoldersOnly, {"prefixes"}),
    ],
)
def test_what_a_store_does_wrong_is_found(kind: Callable[[], Any], found: set[str]) -> None:
    broken = kind()

    findings = list(check_store(broken))

    assert bad(findings) == found
    assert all(finding.remedy for finding in findings if finding.level != "ok")


def test_a_bucket_that_is_not_there_is_one_finding(moto: S3Server) -> None:
    findings = list(check_store(open_store("s3://no-such-bucket/table", moto.options())))

    assert [(finding.check, finding.level) for finding in findings[:1]] == [("store: put", "fail")]
    assert "no-such-bucket" in findings[0].text


@pytest.mark.parametrize(("error", "transient"), [(Throttled("slow down"), True), (Denied("not yours"), False)])
def test_a_store_that_throttles_may_pass_by_itself_and_one_that_refuses_does_not(
    error: StoreError, transient: bool
) -> None:
    class Refuses(Broken):
        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            raise error

    first = next(check_store(Refuses()))

    assert (first.check, first.level, first.transient) == ("store: put", "fail", transient)
