"""Nothing that two could write at once lies in a store that writes over it."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.create_only import refuse_overwriting
from pipelines.stopped import RunStopped
from pipelines.store import Denied, Store, memory_store


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
    with pytest.raises(
        RunStopped, match=r"^a table cannot be kept at .*: .* rows could be lost\. Use a bucket without"
    ):
        refuse_overwriting(Overwriting(memory_store()), what="a table", loss="rows could be lost")


def test_a_store_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(RunStopped, match=r"^a table cannot be kept at .*: .*denied"):
        refuse_overwriting(ReadOnly(memory_store()), what="a table", loss="rows could be lost")


def test_a_store_that_keeps_its_word_is_taken_and_left_as_it_was() -> None:
    store = memory_store()

    refuse_overwriting(store, what="a table", loss="rows could be lost", folder="")

    assert list(store.list()) == []
