"""Stores are asked before a run only about what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.labelling.reach import check_answers
from pipelines.store import StoreEntry, StoreOptions
from pipelines.store.local import LocalStore


def test_the_parent_of_a_working_directory_that_looks_like_a_pattern_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    list_really = LocalStore.list

    def record(self: LocalStore, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        asked.append(prefix)
        return list_really(self, prefix, after)

    monkeypatch.setattr(LocalStore, "list", record)
    (tmp_path / "run [2024]").mkdir()
    monkeypatch.chdir(tmp_path / "run [2024]")

    check_answers([("photos/*.jpg", StoreOptions()), ("img[12].jpg", StoreOptions())])

    assert asked == [f"{tmp_path}/run [2024]/photos/"[1:], f"{tmp_path}/run [2024]/img"[1:]]
