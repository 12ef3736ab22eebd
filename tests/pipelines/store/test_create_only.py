"""Objects that two writers could create at once are created only once; stores that overwrite them are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipelines.errors import RayDetrError
from pipelines.store import (
    AlreadyExists,
    Changed,
    Denied,
    Misconfigured,
    Store,
    StoreDown,
    StoreEntry,
    StoreError,
    Throttled,
)
from pipelines.store.create_only import ATTEMPTS, Capabilities, probe, put_if_absent, require_create_only
from tests.memory_store import memory_store


class Unreliable:
    """A store whose first writes go wrong: before anything is written, or after."""

    def __init__(self, inner: Store, failures: list[tuple[str, StoreError]]) -> None:
        self._inner, self._failures = inner, failures
        self.uri, self.list, self.head = inner.uri, inner.list, inner.head
        self.get, self.get_range, self.delete = inner.get, inner.get_range, inner.delete

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        if not self._failures:
            return self._inner.put(key, data, create=create, if_match=if_match)
        when, error = self._failures.pop(0)
        if when == "after":
            self._inner.put(key, data, create=create, if_match=if_match)
        raise error


def test_the_first_writer_gets_its_own_bytes_and_the_second_those_of_the_first() -> None:
    store = memory_store()

    assert put_if_absent(store, "a", b"first") == b"first"
    assert put_if_absent(store, "a", b"second") == b"first"
    assert store.get("a").data == b"first"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_is_asked_for_again(when: str) -> None:
    store = memory_store()

    assert put_if_absent(Unreliable(store, [(when, StoreDown("no answer"))]), "a", b"ours") == b"ours"
    assert store.get("a").data == b"ours"


def test_a_lost_answer_of_one_who_lost_is_not_taken_for_a_success() -> None:
    store = memory_store()
    store.put("a", b"theirs")

    assert put_if_absent(Unreliable(store, [("before", StoreDown("no answer"))]), "a", b"ours") == b"theirs"


def test_it_gives_up_after_some_attempts() -> None:
    with pytest.raises(Throttled):
        put_if_absent(Unreliable(memory_store(), [("before", Throttled("slow down"))] * ATTEMPTS), "a", b"ours")
    failures: list[tuple[str, StoreError]] = [("before", Throttled("slow down"))] * (ATTEMPTS - 1)
    assert put_if_absent(Unreliable(memory_store(), failures), "a", b"ours") == b"ours"


def test_a_refusal_is_not_repeated() -> None:
    store = Unreliable(memory_store(), [("before", Denied("no right to write"))])

    with pytest.raises(Denied):
        put_if_absent(store, "a", b"ours")
    with pytest.raises(StoreError):
        store.get("a")


def test_a_store_that_says_exists_of_its_own_accord_is_believed() -> None:
    store = memory_store()
    store.put("a", b"theirs")

    assert put_if_absent(Unreliable(store, [("before", AlreadyExists("a exists"))]), "a", b"ours") == b"theirs"


class Overwriting:
    """A store that forgets that an object was to be created only, as a versioned bucket of Ceph 16 does."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        return self._store.put(key, data, if_match=if_match)


class ReadOnly(Overwriting):
    def put(self, key: str, data: bytes, **others: Any) -> str | None:
        raise Denied(f"{key}: denied.")


def test_a_store_that_writes_over_is_refused_and_what_could_be_lost_is_said() -> None:
    with pytest.raises(RayDetrError, match=r"^a table cannot be kept at .*: .* rows could be lost\. Use a bucket"):
        require_create_only(Overwriting(memory_store()), what="a table", loss="rows could be lost")


def test_a_store_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(RayDetrError, match=r"^a table cannot be kept at .*: .*denied"):
        require_create_only(ReadOnly(memory_store()), what="a table", loss="rows could be lost")


class Swapping(Overwriting):
    """A store that answers conditional puts by a script: "" does them, an error is raised "before" or "after"."""

    def __init__(self, store: Store, *script: str, error: StoreError | None = None, creates: str = "") -> None:
        super().__init__(store)
        self._script, self._error, self._creates = list(script), error or Changed("it changed"), creates
        self.keys: list[str] = []
        self.conditions: list[str | None] = []
        self.written: list[bytes] = []

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        self.keys.append(key)
        self.written.append(data)
        self.conditions.append(if_match)
        if create:
            etag = self._store.put(key, data, create=True)
            if self._creates == "after":
                self._creates = ""
                raise AlreadyExists("it met itself")
            return etag
        when = self._script.pop(0) if self._script else ""
        if when == "before":
            raise self._error
        etag = self._store.put(key, data, if_match=None if when in ("after", "unconditional") else if_match)
        if when == "after":
            raise self._error
        return etag


class WithoutEtags(Overwriting):
    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        assert if_match is None
        self._store.put(key, data, create=create)
        return None

    def head(self, key: str) -> StoreEntry:
        return replace(self._store.head(key), etag=None)


@pytest.mark.parametrize(
    ("store", "swap"),
    [
        (memory_store, "quoted"),
        (lambda: Swapping(memory_store()), "quoted"),
        (lambda: Swapping(memory_store(), creates="after"), "quoted"),  # its answer was lost: the etag is asked for
        (lambda: Swapping(memory_store(), "after"), "quoted"),  # a lost answer: the repeated put met its own object
        (lambda: Swapping(memory_store(), "before"), None),
        (lambda: Swapping(memory_store(), "before", error=Misconfigured("not implemented")), None),
        (lambda: Swapping(memory_store(), "", "unconditional"), None),  # it accepts a stale etag
        (lambda: WithoutEtags(memory_store()), None),
    ],
)
def test_what_a_store_can_do_is_measured_and_nothing_is_left(store: Callable[[], Any], swap: str | None) -> None:
    measured = store()

    capabilities = require_create_only(measured, what="a table", loss="rows could be lost", folder="tests/")

    assert capabilities == Capabilities(create_only=True, swap=swap)
    assert list(measured.list()) == []


def test_conditional_puts_of_a_store_that_overwrites_are_measured_too() -> None:
    assert probe(Overwriting(memory_store())) == Capabilities(create_only=False, swap="quoted")


def test_the_form_of_etags_is_that_of_the_store() -> None:
    store = Swapping(memory_store())
    store.etag_form = "bare"  # type: ignore[attr-defined]

    assert probe(store).swap == "bare"


def test_probes_have_names_of_their_own_in_the_folder() -> None:
    store = Swapping(memory_store())
    probe(store)
    probe(store)
    require_create_only(store, what="a table", loss="rows could be lost")
    probe(store, "tests/")
    require_create_only(store, what="a table", loss="rows could be lost", folder="others/")

    names = list(dict.fromkeys(store.keys))
    folders = [*["_runs/"] * 3, "tests/", "others/"]
    assert len(names) == 5
    assert [re.fullmatch(r"(.*)probe-[0-9a-f]{16}", name)[1] for name in names] == folders  # type: ignore[index]


@pytest.mark.parametrize("has_head", [True, False])
def test_both_conditional_puts_are_sent_with_the_etag_of_the_first_write(*, has_head: bool) -> None:
    store = Swapping(memory_store())
    if not has_head:  # a store whose HEAD has no etag: that of the write counts
        store.head = lambda key: StoreEntry(key, 1, None)  # type: ignore[attr-defined]

    assert probe(store).swap == "quoted"
    assert store.conditions == [None, None, "1", "1"]
    assert store.written == [b"1", b"1", b"2", b"3"]


def test_a_probe_that_fails_is_deleted() -> None:
    store = Swapping(memory_store(), "before", error=StoreDown("no answer"))

    with pytest.raises(StoreDown):
        probe(store)
    assert list(store.list()) == []


def test_a_store_that_keeps_its_word_is_taken_and_left_as_it_was() -> None:
    store = memory_store()

    require_create_only(store, what="a table", loss="rows could be lost", folder="")

    assert list(store.list()) == []
