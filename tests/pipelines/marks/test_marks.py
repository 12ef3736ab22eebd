"""The records of marks: appended, never changed, withdrawn by another record, read strictly."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError, UsageError
from pipelines.marks import marks as marks_module
from pipelines.marks.marks import Accepted, Mark, accept_marks, mark_of, marks_key, read_marks, withdraw_marks
from pipelines.store import Store
from tests.memory_store import memory_store

ONE = Mark("s3://lake/a/", 0, "animal", (0.1, 0.2, 0.3, 0.4), 0.85, 20)
OTHER = replace(ONE, folder="s3://lake/b/")
CLOCK = SystemClock()


@pytest.fixture
def table() -> Store:
    return memory_store("memory://table")


def test_what_is_accepted_is_read_and_what_is_withdrawn_is_not(table: Store) -> None:
    assert read_marks(table) == []
    assert accept_marks(table, [ONE, OTHER], CLOCK) == Accepted(1, 2, 0, 2)
    assert sorted(read_marks(table), key=lambda mark: mark.folder) == [ONE, OTHER]
    assert withdraw_marks(table, [ONE.id], CLOCK) == Accepted(2, 1, 0, 1)
    assert read_marks(table) == [OTHER]
    assert accept_marks(table, [ONE], CLOCK) == Accepted(3, 1, 0, 2)
    assert [entry.key for entry in table.list()] == ["_marks/0001.json", "_marks/0002.json", "_marks/0003.json"]


def test_the_same_twice_writes_nothing(table: Store) -> None:
    accept_marks(table, [ONE], CLOCK)
    assert accept_marks(table, [ONE, replace(ONE, images=99)], CLOCK) == Accepted(None, 0, 1, 1)
    withdraw_marks(table, [ONE.id], CLOCK)
    assert withdraw_marks(table, [ONE.id], CLOCK) == Accepted(None, 0, 1, 0)
    assert accept_marks(table, [], CLOCK) == Accepted(None, 0, 0, 0)
    assert len(list(table.list())) == 2


def test_an_unknown_mark_cannot_be_withdrawn(table: Store) -> None:
    accept_marks(table, [ONE], CLOCK)

    with pytest.raises(UsageError, match="never had the mark 0123456789ab"):
        withdraw_marks(table, [ONE.id, "0123456789ab"], CLOCK)
    assert read_marks(table) == [ONE]


def test_two_commands_at_the_same_moment_both_count(table: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read = marks_module._read_all

    def late(store: Store, ever: set[str] | None = None) -> Any:
        found = read(store, ever)
        monkeypatch.setattr(marks_module, "_read_all", read)
        accept_marks(store, [OTHER], CLOCK)  # another command, between reading and writing
        return found

    monkeypatch.setattr(marks_module, "_read_all", late)
    assert accept_marks(table, [ONE], CLOCK).number == 2
    assert len(read_marks(table)) == 2


def test_the_id_follows_from_the_region() -> None:
    assert ONE.id == replace(ONE, images=1).id == "66b6bfa789c4"
    others = [
        replace(ONE, folder="s3://lake/b/"), replace(ONE, levels=1), replace(ONE, label="bird"), replace(ONE, iou=0.8),
        replace(ONE, box=(0.1, 0.2, 0.3, 0.40001)),
    ]  # fmt: skip
    assert len({ONE.id, *(other.id for other in others)}) == 6


def changed(**fields: object) -> Any:
    def change(record: dict[str, Any]) -> None:
        for name, value in fields.items():
            where = record if name in record else record["accepted"][0]
            where[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed(number=2), "is damaged"),
        (changed(accepted=7), "is damaged"),
        (changed(withdrawn=[7]), "is damaged"),
        (changed(box=[0.1, 0.2, 0.3]), "is damaged"),
        (changed(box=[0.3, 0.2, 0.1, 0.4]), "is damaged"),
        (changed(box="0123"), "is damaged"),
        (changed(box=[0.1, 0.2, float("inf"), 0.4]), "is damaged"),
        (changed(box=[0.1, 0.2, 10**400, 0.4]), "is damaged"),
        (changed(box=[0.1, 0.2, "nan", 0.4]), "is damaged"),
        (changed(iou=float("inf")), "is damaged"),
        (changed(levels=10**400), "is damaged"),
        (changed(images=10**400), "is damaged"),
        (changed(label="bird"), r"is damaged: .* \(the mark 66b6bfa789c4 was changed"),
        (changed(levels=True), "is damaged"),
        (changed(record_version=2), "record of version 2, and this release reads 1"),
    ],
)
def test_a_damaged_record_is_refused(table: Store, change: Any, sentence: str) -> None:
    accept_marks(table, [ONE], CLOCK)
    record = json.loads(table.get(marks_key(1)).data)
    change(record)
    text = json.dumps(record).replace("Infinity", "1e400").replace('"nan"', "-1e400")
    table.put(marks_key(1), text.encode())

    with pytest.raises(RayDetrError, match=sentence):
        read_marks(table)


@pytest.mark.parametrize(
    "mark",
    [ONE, replace(ONE, iou=1.0), replace(ONE, box=(0.0, 0.2, 1.0, 1.0)), replace(ONE, box=(1e-05, -0.0, 1.0, 1.0))],
)
def test_a_mark_survives_the_json_of_python_and_of_browsers(mark: Mark) -> None:
    written = json.dumps(mark.as_json())
    of_browsers = re.sub(r"-0\.0|1e-05|\d\.0\b", lambda one: {"1.0": "1", "1e-05": "0.00001"}.get(one[0], "0"), written)

    for text in (written, of_browsers):
        read = mark_of(json.loads(text))
        assert (read, read.id) == (mark, mark.id)
