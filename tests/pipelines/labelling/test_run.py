"""The runs of a table: one unfinished at a time, resumed by the same command, refused with the difference shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.run import (
    End,
    Run,
    RunRequest,
    begin_run,
    end_run,
    find_unfinished,
    finish_run,
    latest_run,
    list_runs,
    new_run_id,
    read_end,
    read_state,
)
from pipelines.store import Store, StoreDown
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run

NOW = datetime(2026, 11, 22, 18, 15, 3, tzinfo=UTC)
REQUEST = RunRequest("detr@3f2a", "3f2a91", {"threshold": 0.05, "images": ("s3://lake",)}, 64, {"ray": "2.60.0"})


def start(table: Store, request: RunRequest = REQUEST, *, now: datetime = NOW, tail: str = "a1b2") -> tuple[Run, bool]:
    return start_run(table, request, now=now, tail=tail)


def finish(table: Store, run: Run) -> None:
    finish_run(table, run.run_id, now=NOW, totals={})


def test_a_new_run_is_recorded(store: Store) -> None:
    run, resumed = start(store)

    assert not resumed
    assert run == Run(
        run_id="20261122-181503-a1b2",
        number=1,
        model="detr@3f2a",
        model_sha256="3f2a91",
        configuration={"threshold": 0.05, "images": ["s3://lake"]},
        shard_images=64,
        versions={"ray": "2.60.0"},
        started_at=NOW,
    )
    record = json.loads(store.get("_runs/20261122-181503-a1b2/run.json").data)
    assert record["configuration"] == {"threshold": 0.05, "images": ["s3://lake"]}
    assert record["started_at"] == "2026-11-22T18:15:03+00:00"
    assert list(list_runs(store)) == [run]


def test_a_record_is_text_that_people_can_read() -> None:
    table = memory_store()
    request = RunRequest("detr@3f2a", "3f2a91", {"classes": [["Käse", None]]}, 64, {})
    start_run(table, request, now=NOW, tail="a1b2")

    text = table.get("_runs/20261122-181503-a1b2/run.json").data.decode()
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    assert '"Käse"' in text


def test_the_same_command_resumes_the_unfinished_run() -> None:
    table = memory_store()
    run, _ = start(table)

    assert start(table, tail="ffff", now=NOW.replace(day=23)) == (run, True)
    assert find_unfinished(table) == run


def test_a_resumed_run_keeps_its_own_shard_size_and_versions() -> None:
    table = memory_store()
    start(table)

    run, _ = start(table, replace(REQUEST, shard_images=2048, versions={"ray": "2.61.0"}))

    assert (run.shard_images, run.versions) == (64, {"ray": "2.60.0"})


def test_a_finished_run_is_followed_by_a_new_one() -> None:
    table = memory_store()
    first, _ = start(table)
    finish_run(table, first.run_id, now=NOW, totals={"rows": 7})

    second, resumed = start(table, tail="ffff")

    assert (second.number, resumed) == (2, False)
    assert read_end(table, first.run_id) == End("finished", NOW, {"rows": 7})
    assert list(list_runs(table)) == [first, second]
    assert latest_run(table) == find_unfinished(table) == second


def test_a_table_without_runs_has_none() -> None:
    assert find_unfinished(memory_store()) is None
    assert latest_run(memory_store()) is None


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            replace(REQUEST, configuration={"threshold": 0.1, "images": ["s3://lake"]}),
            "the unfinished run 20261122-181503-a1b2 used another configuration (threshold 0.05, now 0.1). "
            "Use the old value to resume it, or --new-run to seal it and start a new run.",
        ),
        (
            replace(
                REQUEST, model="detr@9c1e", model_sha256="9c1e", configuration={"threshold": 0.05, "images": ["a", "b"]}
            ),
            "the unfinished run 20261122-181503-a1b2 used another configuration (model detr@3f2a, now detr@9c1e; "
            "images s3://lake, now a b). Use the old values to resume it, or --new-run to seal it and start a new "
            "run.",
        ),
        (
            replace(REQUEST, model_sha256="9c1e"),
            "the unfinished run 20261122-181503-a1b2 used another configuration (model sha256 3f2a91, now 9c1e). "
            "Use the old value to resume it, or --new-run to seal it and start a new run.",
        ),
        (
            replace(REQUEST, run_id="night"),
            "the unfinished run of this table is 20261122-181503-a1b2, not night. "
            "Omit --run-id to resume it, or use --new-run to seal it and start a new run.",
        ),
    ],
)
def test_another_configuration_is_refused_with_the_difference(request_: RunRequest, sentence: str) -> None:
    table = memory_store()
    start(table)

    with pytest.raises(UsageError) as refusal:
        start(table, request_)

    assert str(refusal.value) == sentence


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
JSON = VALUES | st.lists(VALUES, max_size=3)


@settings(deadline=None, max_examples=40)
@given(configuration=st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_any_configuration_equals_itself_after_it_was_stored(configuration: dict[str, object]) -> None:
    table = memory_store()
    run, _ = start(table, replace(REQUEST, configuration=configuration))

    assert start(table, replace(REQUEST, configuration=configuration)) == (run, True)


def test_a_run_may_be_named() -> None:
    table = memory_store()
    run, _ = start(table, replace(REQUEST, run_id="night-1"))

    assert run.run_id == "night-1"
    assert start(table, replace(REQUEST, run_id="night-1")) == (run, True)
    assert start(table) == (run, True)


def test_a_name_that_was_used_is_refused() -> None:
    table = memory_store()
    for name in ("night-1", "night-2"):
        run, _ = start(table, replace(REQUEST, run_id=name))
        finish(table, run)

    with pytest.raises(UsageError, match="run night-1 of memory://store has already ended"):
        start(table, replace(REQUEST, run_id="night-1"))


@pytest.mark.parametrize("name", ["", "_order", ".", "../x", "a/b", "a b", "ä", "x" * 101, "night\n"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid folder name"):
        replace(REQUEST, run_id=name)


def test_a_shard_has_at_least_one_image() -> None:
    with pytest.raises(ValueError, match="shard images: 0"):
        replace(REQUEST, shard_images=0)


def test_run_ids_sort_by_time() -> None:
    assert new_run_id(NOW, "ffff") < new_run_id(NOW.replace(second=4), "0000") == "20261122-181504-0000"


class Interleaved:
    """A store in which something happens just before the first object of a folder is created."""

    def __init__(self, inner: Store, folder: str, happening: Callable[[], object]) -> None:
        self._inner, self._folder, self.happenings = inner, folder, [happening]
        self.uri, self.list, self.head = inner.uri, inner.list, inner.head
        self.get, self.get_range, self.delete = inner.get, inner.get_range, inner.delete

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        if key.startswith(self._folder) and self.happenings:
            self.happenings.pop()()
        return self._inner.put(key, data, create=create, if_match=if_match)


def test_of_two_starters_at_the_same_moment_one_begins_and_the_other_resumes() -> None:
    table = memory_store()
    winners: list[tuple[Run, bool]] = []
    slower = Interleaved(table, "_runs/_order/", lambda: winners.append(start(table, tail="1111")))

    run, resumed = start(slower, tail="2222")

    assert winners == [(run, False)]
    assert resumed
    assert list(list_runs(table)) == [run]


def test_a_starter_who_slept_through_whole_runs_begins_behind_them() -> None:
    table = memory_store()

    def other_runs() -> None:
        for tail in ("1111", "2222"):
            run, _ = start(table, tail=tail)
            finish(table, run)

    run, resumed = start(Interleaved(table, "_runs/_order/", other_runs), tail="3333")

    assert (run.number, resumed) == (3, False)
    assert [run.run_id[-4:] for run in list_runs(table)] == ["1111", "2222", "3333"]


def test_a_start_that_crashed_before_its_record_is_completed_by_the_next() -> None:
    table = memory_store()

    def crash() -> None:
        raise StoreDown("no answer")

    dying = Interleaved(table, "_runs/2026", crash)
    dying.happenings *= 3  # of which a write is tried so often
    with pytest.raises(StoreDown):
        start(dying)
    run, resumed = start(table, tail="ffff")

    assert (run.run_id[-4:], resumed) == ("a1b2", True)
    assert json.loads(table.get(f"_runs/{run.run_id}/run.json").data)["run_id"] == run.run_id


def test_the_state_follows_what_exists() -> None:
    table = memory_store()
    run, _ = start(table)
    states = [read_state(table, run.run_id)]
    table.put(f"_runs/{run.run_id}/plan/complete.json", b"{}")
    states.append(read_state(table, run.run_id))
    finish(table, run)

    assert [*states, read_state(table, run.run_id)] == ["planning", "labelling", "finished"]


def test_how_a_run_ended_is_written_once() -> None:
    table = memory_store()
    run, _ = start(table)

    assert end_run(table, run.run_id, End("sealed", NOW, {})).state == "sealed"
    assert end_run(table, run.run_id, End("finished", NOW, {"rows": 1})) == End("sealed", NOW, {})
    with pytest.raises(RayDetrError, match="was sealed by another command"):
        finish(table, run)
    assert read_state(table, run.run_id) == "sealed"


def test_finishing_twice_is_finishing() -> None:
    table = memory_store()
    run, _ = start(table)

    finish_run(table, run.run_id, now=NOW, totals={"rows": 1})
    finish_run(table, run.run_id, now=NOW.replace(day=23), totals={"rows": 1})

    assert read_end(table, run.run_id) == End("finished", NOW, {"rows": 1})


GOOD = {
    "record_version": 3,
    "run_id": "x",
    "number": 1,
    "model": "m",
    "model_sha256": "s",
    "configuration": {},
    "shard_images": 1,
    "versions": {},
    "started_at": "2026-11-22T18:15:03+00:00",
    "precision": "bf16",
    "tells_settings_apart": True,
    "layout": "flat",
}
LATER = ("tells_settings_apart", "layout")
SECOND = {**{name: value for name, value in GOOD.items() if name not in LATER}, "record_version": 2}
OLD = {**{name: value for name, value in SECOND.items() if name != "precision"}, "record_version": 1}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (b"", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[]", "is damaged"),
        (json.dumps({**GOOD, "run_id": "../../elsewhere"}).encode(), "is damaged"),
        (json.dumps({**GOOD, "number": "1"}).encode(), "is damaged"),
        (json.dumps({**GOOD, "number": 7}).encode(), "is damaged"),  # its starter would look for number 8 for ever
        (json.dumps({**GOOD, "shard_images": 0}).encode(), "is damaged"),
        (json.dumps({**GOOD, "model_sha256": 5}).encode(), "is damaged"),
        (json.dumps({**GOOD, "configuration": []}).encode(), "is damaged"),
        (json.dumps({**GOOD, "configuration": {"threshold": float("nan")}}).encode(), "is damaged"),
        (json.dumps({**GOOD, "configuration": {"modified_since": "soon"}}).encode(), "is damaged"),
        (json.dumps({**GOOD, "configuration": {"modified_since": "2026-11-28"}}).encode(), "is damaged"),
        (json.dumps({**GOOD, "model": "\ud800"}).encode(), "is damaged"),
        (b"[" * 200_000 + b"]" * 200_000, "is damaged"),
        (json.dumps({**GOOD, "started_at": "yesterday"}).encode(), "is damaged"),
        (json.dumps({**GOOD, "surprise": 1}).encode(), "is damaged"),
        (json.dumps({name: value for name, value in GOOD.items() if name != "model"}).encode(), "is damaged"),
        (json.dumps({**GOOD, "precision": "auto"}).encode(), "is damaged"),
        (json.dumps({**GOOD, "precision": None}).encode(), "is damaged"),
        (json.dumps({**OLD, "record_version": 2}).encode(), "is damaged"),
        (json.dumps({**OLD, "precision": "bf16"}).encode(), "is damaged"),
        (json.dumps({**OLD, "configuration": None}).encode(), "is damaged"),
        (json.dumps({**GOOD, "record_version": 2}).encode(), "is damaged"),
        (json.dumps({**SECOND, "record_version": 3}).encode(), "is damaged"),
        (json.dumps({**SECOND, "layout": "flat"}).encode(), "is damaged"),
        (json.dumps({**GOOD, "layout": "deep"}).encode(), "is damaged"),
        (json.dumps({**GOOD, "configuration": {"classes": [5]}}).encode(), "is damaged"),
        (
            json.dumps({name: value for name, value in GOOD.items() if name != "record_version"}).encode(),
            "is a run record of version null, and this release reads version 3",
        ),
        (
            json.dumps({**GOOD, "record_version": True}).encode(),
            "is a run record of version true, and this release reads version 3",
        ),
        (
            json.dumps({**GOOD, "record_version": 4}).encode(),
            "is a run record of version 4, and this release reads version 3",
        ),
        (
            json.dumps({**GOOD, "record_version": "x" * 18}).encode(),
            f'is a run record of version "{"x" * 18}", and this',
        ),
        (
            json.dumps({**GOOD, "record_version": "x" * 19}).encode(),
            f'is a run record of version "{"x" * 19}..., and this',
        ),
    ],
)
def test_a_damaged_record_is_said(record: bytes, sentence: str) -> None:
    table = memory_store()
    table.put("_runs/_order/0000001.json", record)

    with pytest.raises(RayDetrError, match=f"memory://store/_runs/_order/0000001.json {sentence}"):
        start(table)


@pytest.mark.parametrize(
    ("configuration", "precision"),
    [({}, "fp32"), ({"precision": "auto"}, "fp32"), ({"precision": "bf16"}, "bf16"), ({"precision": 5}, "fp32")],
)
def test_a_record_of_before_precision_was_resolved_is_fp32_unless_another_was_asked_for(
    configuration: dict[str, object], precision: str
) -> None:
    table = memory_store()
    table.put("_runs/_order/0000001.json", json.dumps({**OLD, "configuration": configuration}).encode())

    run = latest_run(table)

    assert run is not None
    assert run.precision == precision


def test_the_settings_of_a_run_have_the_precision_of_its_record() -> None:
    run = Run("night", 1, "m", "s", {"precision": "fp16", "threshold": 0.5}, 1, {}, NOW, precision="fp32")

    assert run.settings == '{"precision":"fp32","threshold":0.5}'


@pytest.mark.parametrize("record", [OLD, SECOND])
def test_a_record_of_before_settings_told_rows_apart_says_so(record: dict[str, object]) -> None:
    table = memory_store()
    table.put("_runs/_order/0000001.json", json.dumps({**record, "configuration": {"threshold": 0}}).encode())

    run = latest_run(table)

    assert run is not None
    assert (run.tells_settings_apart, run.layout) == (False, "folders")
    precision = "fp32" if record is OLD else "bf16"
    assert run.settings == f'{{"precision":"{precision}","threshold":0.0}}'


def test_a_run_is_begun_as_the_next_one_only() -> None:
    table = memory_store()
    first, _ = start(table)
    finish(table, first)

    def begin(after: Run | None) -> Run | None:
        return begin_run(
            table, replace(REQUEST, shard_images=None), after=after, shard_images=7, precision="bf16", now=NOW, tail="2"
        )

    assert begin(None) is None  # another start has begun number 1 since this one looked
    second = begin(first)
    assert second is not None
    assert (second.number, second.shard_images, second.precision) == (2, 7, "bf16")
    assert find_unfinished(table) == second
    assert json.loads(table.get(f"_runs/{second.run_id}/run.json").data)["precision"] == "bf16"


@pytest.mark.parametrize(
    "record", [b"", b"null", b"{}", b'{"state": "finished", "ended_at": 1, "totals": {}}',
     b'{"state": "ended", "ended_at": "2026-11-22T18:15:03+00:00", "totals": {}}'],
)  # fmt: skip
def test_a_damaged_end_is_said(record: bytes) -> None:
    table = memory_store()
    run, _ = start(table)
    table.put(f"_runs/{run.run_id}/end.json", record)

    with pytest.raises(RayDetrError, match=r"end\.json is damaged"):
        start(table)


def test_foreign_names_among_the_runs_do_not_matter() -> None:
    table = memory_store()
    run, _ = start(table)
    table.put("_runs/_order/desktop.ini", b"of a file manager")

    assert latest_run(table) == run


def test_the_good_record_of_these_tests_is_good() -> None:
    table = memory_store()
    table.put("_runs/_order/0000001.json", json.dumps(GOOD).encode())

    assert latest_run(table) == Run("x", 1, "m", "s", {}, 1, {}, NOW, "bf16")


def test_all_runs_of_a_table_have_the_layout_of_the_first() -> None:
    table = memory_store()
    table.put("_runs/_order/0000001.json", json.dumps(SECOND).encode())
    old, resumed = start_run(table, replace(REQUEST, model="m", model_sha256="s", configuration={}), now=NOW, tail="1")
    assert (old.layout, resumed) == ("folders", True)
    finish(table, old)
    second, _ = start(table, tail="2")
    assert second.layout == "folders"
    finish(table, second)
    assert start(table, tail="3")[0].layout == "folders"

    new = memory_store()
    first, _ = start(new)
    finish(new, first)
    assert [first.layout, start(new, tail="2")[0].layout] == ["flat", "flat"]


@pytest.mark.parametrize(
    ("key", "layout"),
    [("data/x/0.parquet", "folders"), ("data/x-0.parquet", "flat"), ("data/x/notes.txt", "flat")],
)
def test_a_table_that_somebody_has_put_files_into_keeps_their_layout(key: str, layout: str) -> None:
    table = memory_store()
    table.put(key, b"x")

    assert start(table)[0].layout == layout
