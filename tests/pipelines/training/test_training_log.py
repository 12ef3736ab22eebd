"""The log of a training run: read back as TensorBoard's files and as JSON lines, through resumes and outages."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pipelines.store import Denied, Store, StoreDown, StoreError
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.training_log import TrainLog
from tests.memory_store import memory_store

CONFIG = TrainConfig(train="s3://shards", storage="s3://runs", name="r50", finetune="scenes")


class Noon:
    """A clock that stands still."""

    def now(self) -> datetime:
        return datetime(2026, 11, 22, 12, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing waits")


@dataclass
class Failing:
    """A store whose puts fail while `error` says so."""

    inner: Store = field(default_factory=memory_store)
    error: StoreError | None = None

    def __post_init__(self) -> None:
        self.uri, self.list, self.head = self.inner.uri, self.inner.list, self.inner.head
        self.get, self.get_range, self.delete = self.inner.get, self.inner.get_range, self.inner.delete

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        if self.error is not None:
            raise self.error
        return self.inner.put(key, data, create=create, if_match=if_match)


def opened(store: Store, step: int = 0, start_id: str = "a", **others: Any) -> TrainLog:
    return TrainLog(store, CONFIG, TrainingPosition(0, step, step), start_id, clock=Noon(), **others)


def line(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "epoch": 3, "loss": loss, "lr": 1e-4}


def lines(store: Store, name: str) -> list[dict[str, object]]:
    return [json.loads(text) for text in store.get(f"logs/{name}").data.splitlines()]


def events(data: bytes) -> Iterator[Event]:
    """The events of a file of TensorFlow's records: length, its checksum, bytes, their checksum."""
    while data:
        length = struct.unpack("<Q", data[:8])[0]
        record = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(record)
        yield Event.FromString(record)
        data = data[16 + length :]


def masked(data: bytes) -> int:
    checksum: int = crc32c(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def event_files(store: Store) -> list[list[Event]]:
    return [list(events(store.get(entry.key).data)) for entry in store.list("logs/events")]


def scalars(found: list[Event]) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]


def test_figures_are_read_back_from_both_kinds_of_file(store: Store) -> None:
    with opened(store) as log:
        log.add(line(10, 4.5))
        log.add(line(20, 4.25))
        log.evaluated(
            20, {"AP": 0.5, "APs": -1.0, "images": 4, "is_whole": True, "classes": {"cat": 0.5}, "names": "x"}
        )

    assert lines(store, "steps-000000001-a.jsonl") == [
        {"step": 10, "epoch": 3, "loss": 4.5, "lr": 1e-4, "time": "2026-11-22T12:00:00+00:00"},
        {"step": 20, "epoch": 3, "loss": 4.25, "lr": 1e-4, "time": "2026-11-22T12:00:00+00:00"},
        {"step": 20, "val/AP": 0.5, "val/images": 4, "time": "2026-11-22T12:00:00+00:00"},
    ]
    (found,) = event_files(store)
    assert found[0].file_version == "brain.Event:2"
    assert [(step, tag, round(value, 6)) for step, tag, value in scalars(found)] == [
        (10, "train/loss", 4.5),
        (10, "train/lr", 1e-4),
        (10, "train/epoch", 3.0),
        (20, "train/loss", 4.25),
        (20, "train/lr", 1e-4),
        (20, "train/epoch", 3.0),
        (20, "val/AP", 0.5),
        (20, "val/images", 4.0),
    ]
    assert {event.wall_time for event in found[1:]} == {datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()}


def test_a_resume_has_files_of_its_own_and_hides_the_steps_that_it_repeats() -> None:
    store = memory_store()
    with opened(store, 0, "a") as log:
        log.add(line(10, 1.0))
    with opened(store, 5, "b") as log:
        log.add(line(10, 2.0))

    assert [entry["loss"] for entry in lines(store, "steps-000000001-a.jsonl")] == [1.0]
    assert [entry["loss"] for entry in lines(store, "steps-000000006-b.jsonl")] == [2.0]
    starts = [
        (event.step, event.session_log.status)
        for found in event_files(store)
        for event in found
        if event.session_log.status
    ]
    assert starts == [(1, SessionLog.START), (6, SessionLog.START)]
    assert [entry.key[-12:] for entry in store.list("logs/events")] == [".000000001-a", ".000000006-b"]


def test_what_is_logged_is_seen_after_a_flush() -> None:
    store = memory_store()
    log = opened(store)
    log.add(line(10, 1.0))
    assert list(store.list("logs/")) == []

    log.flush()
    log.add(line(20, 2.0))

    assert [entry["step"] for entry in lines(store, "steps-000000001-a.jsonl")] == [10]
    log.close()
    assert [entry["step"] for entry in lines(store, "steps-000000001-a.jsonl")] == [10, 20]


def test_files_are_followed_by_others_before_they_are_large() -> None:
    store = memory_store()
    with opened(store, new_file_bytes=150) as log:
        for step in range(10, 60, 10):
            log.add(line(step, 1.0))

    names = [entry.key for entry in store.list("logs/steps")]
    assert names == [f"logs/steps-{step:09d}-a.jsonl" for step in (1, 30, 50)]
    assert [entry["step"] for name in names for entry in lines(store, name.removeprefix("logs/"))] == [
        10,
        20,
        30,
        40,
        50,
    ]
    assert [step for found in event_files(store) for step, tag, _ in scalars(found) if tag == "train/loss"] == [
        10, 20, 30, 40, 50,
    ]  # fmt: skip
    assert sum(event.session_log.status for found in event_files(store) for event in found) == 1


def test_a_store_that_is_away_for_a_while_loses_nothing_and_the_user_is_told() -> None:
    store, notes = Failing(), list[str]()
    with opened(store, note=notes.append) as log:
        log.add(line(10, 1.0))
        store.error = StoreDown("no answer")
        log.flush()
        store.error = None
        log.add(line(20, 2.0))

    assert [entry["step"] for entry in lines(store, "steps-000000001-a.jsonl")] == [10, 20]
    assert notes == ["the training log could not be written; it will be written with the next lines: no answer"]


def test_a_store_that_refuses_the_log_is_an_error() -> None:
    store = Failing()
    log = opened(store)
    log.add(line(10, 1.0))
    store.error = Denied("no right to write")

    with pytest.raises(Denied):
        log.flush()
    with pytest.raises(Denied):
        log.close()


def test_nan_is_null_in_json_and_nan_in_tensorboard() -> None:
    store = memory_store()
    with opened(store) as log:
        log.add(line(10, float("nan")))

    assert lines(store, "steps-000000001-a.jsonl")[0]["loss"] is None
    value = scalars(event_files(store)[0])[0][2]
    assert value != value
