"""Checkpoints: complete or not there, whatever breaks off; written by the newest claim only; nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from detr.checkpoints.checkpoint import dump, fingerprint, load
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from pipelines.errors import RayDetrError
from pipelines.store import Store, StoreDown
from pipelines.training.checkpoint_index import Overtaken, SavedCheckpoint, advance, read_manifest
from pipelines.training.checkpoints import TrainingPosition, latest_checkpoint, load_checkpoint, without_nan
from pipelines.training.training_run import TrainingRun, open_run
from tests.memory_store import memory_store

NOW = datetime(2026, 11, 22, 18, 15, 3, tzinfo=UTC)
CONFIGURATION = {"train": "s3://shards", "lr": 1e-4}
TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 4, (4, 8), (1, 1)),
    hidden_dim=8,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    queries=2,
    categories=(Category(7, "cat"), Category(90, "dog")),
)
TENSORS = {
    "exp_avg.0": torch.arange(6.0).view(2, 3).T,
    "step": torch.tensor(3),
    "rng": torch.arange(5, dtype=torch.uint8),
}
FILES_OF_ONE = {
    "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    "training.json", "training.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Detr:
    torch.manual_seed(0)
    return Detr(TINY).eval()


@pytest.fixture(scope="module")
def files(model: Detr) -> dict[str, bytes]:
    return dump(model)


def opened(store: Store, start_id: str = "a") -> TrainingRun:
    return open_run(store, CONFIGURATION, start_id=start_id, now=NOW, versions={"torch": "2.14.1"})


def save(run: TrainingRun, files: Mapping[str, bytes], step: int, *, ap: float | None = None, keep: int = 2) -> str:
    position = TrainingPosition(step // 10, step % 10, step)
    name = run.save(position, files, TENSORS, trainable_norm=True, keep=keep)
    if ap is not None:
        run.set_metrics(name, {"AP": ap})
    return name


def kept(run: TrainingRun) -> list[str]:
    return [saved.name for saved in run.checkpoints()]


def folders(store: Store) -> set[str]:
    return {entry.key.split("/")[1] for entry in store.list("checkpoints/")}


def test_what_was_saved_is_loaded(store: Store, model: Detr, files: dict[str, bytes]) -> None:
    name = save(opened(store), files, 25)

    run = opened(store, "b")
    latest = run.latest()
    assert name == "000000025-a-1"
    assert latest is not None
    assert (latest.name, latest.epoch, latest.step_in_epoch, latest.step, latest.metrics) == (name, 2, 5, 25, None)
    loaded = load_checkpoint(store, latest)
    assert loaded.position == TrainingPosition(2, 5, 25)
    assert loaded.trainable_norm
    assert fingerprint(loaded.model) == fingerprint(model)
    assert loaded.training_tensors.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert torch.equal(loaded.training_tensors[key], tensor)
        assert loaded.training_tensors[key].dtype == tensor.dtype


def test_a_run_begins_without_checkpoints(store: Store) -> None:
    assert latest_checkpoint(store) is None

    run = opened(store)

    assert run.latest() is None
    assert run.best() is None
    assert not run.is_finished
    assert latest_checkpoint(store) is None


def test_a_checkpoint_is_a_model_directory(tmp_path: Path, model: Detr, files: dict[str, bytes]) -> None:
    store = memory_store("memory://lake/runs/r50")
    name = save(opened(store), files, 20, ap=0.25)

    prefix = f"checkpoints/{name}/"
    for entry in store.list(prefix):
        (tmp_path / entry.key.removeprefix(prefix)).write_bytes(store.get(entry.key).data)

    assert {path.name for path in tmp_path.iterdir()} == {*FILES_OF_ONE, "metrics.json"}
    assert fingerprint(load(tmp_path)) == fingerprint(model)
    assert json.loads((tmp_path / "metrics.json").read_bytes()) == {"AP": 0.25}
    assert json.loads((tmp_path / "training.json").read_bytes()) == {
        "epoch": 2,
        "step_in_epoch": 0,
        "step": 20,
        "record": {"trainable_norm": True},
    }
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# r50, step 20\n\nA DETR after 20 steps, 2 whole epochs, written by ray-detr.")
    assert "| AP |\n| --- |\n| 0.250 |" in card
    assert "Classes, 2: cat, dog." in card
    assert "| train | s3://shards |" in card


def test_people_read_in_latest_json_what_counts(store: Store, files: dict[str, bytes]) -> None:
    run = opened(store)
    save(run, files, 10, ap=0.5)
    save(run, files, 20, ap=0.25)

    latest = json.loads(store.get("latest.json").data)

    assert (latest["latest"], latest["best"], latest["finished"]) == ("000000020-a-1", "000000010-a-1", False)
    assert latest["owner"] | {"token": ""} == {
        "number": 1,
        "start_id": "a",
        "token": "",
        "claimed_at": "2026-11-22T18:15:03+00:00",
        "versions": {"torch": "2.14.1"},
    }
    assert [saved["step"] for saved in latest["checkpoints"]] == [10, 20]
    assert latest["checkpoints"][0]["files"] == {
        name: store.head(f"checkpoints/000000010-a-1/{name}").size for name in FILES_OF_ONE - {"README.md"}
    }
    assert len(list(store.list("manifests/"))) == 1


def test_the_newest_and_the_best_are_kept_and_the_others_leave_nothing(store: Store, files: dict[str, bytes]) -> None:
    run = opened(store)

    for step, ap in [(10, 0.1), (20, 0.4), (30, 0.4), (40, 0.2), (50, None), (60, 0.3)]:
        save(run, files, step, ap=ap, keep=2)

    assert kept(run) == ["000000030-a-1", "000000050-a-1", "000000060-a-1"]  # of equals the later is the best
    assert folders(store) == set(kept(run))
    best = run.best()
    assert best is not None
    assert best.step == 30


def test_the_evaluation_may_come_after_the_checkpoint(store: Store, files: dict[str, bytes]) -> None:
    run = opened(store)
    first, second = save(run, files, 10), save(run, files, 20)

    run.set_metrics(first, {"AP": 0.5, "AP50": float("nan"), "classes": [{"AP": float("-inf")}]})
    run.set_metrics(second, {"AP": 0.4})

    best = opened(store, "b").best()
    assert best is not None
    assert best.name == first
    assert best.metrics == {"AP": 0.5, "AP50": None, "classes": [{"AP": None}]}
    assert json.loads(store.get(f"checkpoints/{first}/metrics.json").data) == best.metrics
    assert "| 0.500 |" in store.get(f"checkpoints/{first}/README.md").data.decode()


def test_metrics_of_a_checkpoint_that_is_not_kept_are_refused(files: dict[str, bytes]) -> None:
    run = opened(memory_store("memory://r50"))
    for step in (10, 20, 30):
        save(run, files, step, keep=1)

    with pytest.raises(ValueError, match=r"run r50 keeps no checkpoint 000000010-a-1; it keeps 000000030-a-1\."):
        run.set_metrics("000000010-a-1", {"AP": 0.5})


def test_an_ap_of_nothing_is_never_the_best(files: dict[str, bytes]) -> None:
    run = opened(memory_store())
    save(run, files, 10, ap=0.1)
    save(run, files, 20, ap=float("nan"))

    best = run.best()

    assert best is not None
    assert best.step == 10
    assert without_nan({"AP": float("nan"), "images": 3}) == {"AP": None, "images": 3}


def test_a_position_is_saved_once_and_steps_never_go_back(files: dict[str, bytes]) -> None:
    store = memory_store()
    name = save(opened(store), files, 20)
    run = opened(store, "b")
    before = {entry.key: entry.etag for entry in store.list("checkpoints/")}

    assert save(run, files, 20) == name
    assert {entry.key: entry.etag for entry in store.list("checkpoints/")} == before
    assert save(run, files, 20, ap=0.5) == name
    assert run.best() == run.latest()
    with pytest.raises(ValueError, match="step 19 comes"):
        save(run, files, 19)
    with pytest.raises(ValueError, match="keep: 0 is not a number of checkpoints"):
        save(run, files, 30, keep=0)


def test_a_finished_run_has_its_best_model_beside_it(
    store: Store, tmp_path: Path, model: Detr, files: dict[str, bytes]
) -> None:
    run = opened(store)
    save(run, files, 10, ap=0.5)
    save(run, files, 20, ap=0.4)

    assert run.finish() == "000000010-a-1"

    copy = tmp_path / "copy"
    copy.mkdir()
    for entry in store.list("model/"):
        (copy / entry.key.removeprefix("model/")).write_bytes(store.get(entry.key).data)
    assert {path.name for path in copy.iterdir()} == {
        "README.md", "config.json", "metrics.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert fingerprint(load(copy)) == fingerprint(model)
    assert json.loads((copy / "metrics.json").read_bytes()) == {"AP": 0.5}
    again = opened(store, "b")
    assert again.is_finished
    with pytest.raises(ValueError, match="the end"):
        save(again, files, 30)


def test_a_finished_run_takes_checkpoints_again_once_it_is_reopened(store: Store, files: dict[str, bytes]) -> None:
    run = opened(store)
    save(run, files, 10, ap=0.5)
    run.finish()

    again = opened(store, "b")
    again.reopen()
    save(again, files, 20, ap=0.6)

    assert not again.is_finished
    assert not opened(store, "c").is_finished  # a start that dies leaves a run to resume
    last = opened(store, "d")
    assert last.finish() == "000000020-b-5"  # claim 5: manifests 1 to 4 are the first start's
    assert last.is_finished


def test_a_run_that_was_never_evaluated_ends_with_its_newest(files: dict[str, bytes]) -> None:
    run = opened(memory_store())
    with pytest.raises(ValueError, match="no checkpoint to finish with"):
        run.finish()
    save(run, files, 10)
    save(run, files, 20)

    assert run.finish() == "000000020-a-1"
    assert run.finish("000000010-a-1") == "000000010-a-1"


def test_the_earlier_of_two_starts_can_write_nothing_any_more(store: Store, files: dict[str, bytes]) -> None:
    first = opened(store, "a")
    name = save(first, files, 10)
    second = opened(store, "b")
    before = [(entry.key, entry.size) for entry in store.list()]

    for write in (
        lambda: save(first, files, 20, keep=1),
        lambda: first.set_metrics(name, {"AP": 1.0}),
        lambda: first.finish(),
    ):
        with pytest.raises(Overtaken, match="another process has taken over run"):
            write()

    save(second, files, 15)
    latest = latest_checkpoint(store)
    assert latest is not None
    assert latest.name == "000000015-b-3"
    assert folders(store) == {"000000010-a-1", "000000015-b-3"}
    assert {key for key, _ in before} <= {entry.key for entry in store.list()} | {"manifests/000000003.json"}
    assert second.best() is None


def test_groups_of_workers_of_one_start_fence_each_other_off(files: dict[str, bytes]) -> None:
    store = memory_store()
    old = opened(store, "a")
    save(old, files, 10)
    new = opened(store, "a")
    save(new, files, 20)

    with pytest.raises(Overtaken):
        save(old, files, 20)

    assert kept(new) == ["000000010-a-1", "000000020-a-3"]
    assert folders(store) == {"000000010-a-1", "000000020-a-3"}
    assert save(new, files, 30) == "000000030-a-3"


def test_a_claim_removes_what_dead_starts_left_and_nothing_of_later_claims(files: dict[str, bytes]) -> None:
    store = memory_store()
    save(opened(store, "a"), files, 10)
    store.put("checkpoints/000000020-a-1/model.safetensors", b"half")
    store.put("checkpoints/000000030-b-99/model.safetensors", b"being written by a claim that came later")
    store.put("checkpoints/notes.txt", b"not ours")

    opened(store, "b")

    assert folders(store) == {"000000010-a-1", "000000030-b-99", "notes.txt"}


def test_a_checkpoint_that_another_thread_is_writing_is_not_an_orphan(files: dict[str, bytes]) -> None:
    store = memory_store()
    nested: list[str] = []

    def meanwhile(key: str) -> None:
        if key == "checkpoints/000000020-a-1/config.json" and not nested:
            nested.append("a save, and the sweep at its end")
            nested.append(save(run, files, 10))

    run = opened(Watched(store, meanwhile))
    save(run, files, 20)

    assert kept(run) == [nested[1], "000000020-a-1"]
    assert load_checkpoint(store, run.checkpoints()[1]).position.step == 20


def test_a_manifest_that_was_overtaken_unseen_does_not_count(files: dict[str, bytes]) -> None:
    store = memory_store()
    zombie = opened(store, "a")
    save(zombie, files, 10)

    def others_write(key: str) -> None:
        if key == "manifests/000000003.json" and not later:
            later.append(opened(store, "b"))
            save(later[0], files, 30, keep=1)  # removes the number 3, so that the zombie's create succeeds

    later: list[TrainingRun] = []
    zombie._store = Watched(store, others_write)
    with pytest.raises(Overtaken):
        save(zombie, files, 20)

    latest = latest_checkpoint(store)
    assert latest is not None
    assert latest.name == "000000030-b-3"
    assert [saved.step for saved in later[0].checkpoints()] == [30]
    save(later[0], files, 40, keep=1)
    assert folders(store) == {"000000040-b-3"}
    assert len(list(store.list("manifests/"))) == 1


@pytest.mark.parametrize("file", ["training.safetensors", "config.json"])
def test_who_is_overtaken_during_an_upload_leaves_nothing_of_it(files: dict[str, bytes], file: str) -> None:
    store = memory_store()
    later: list[TrainingRun] = []

    def take_over(key: str) -> None:
        if key == f"checkpoints/000000020-a-1/{file}":
            later.append(opened(store, "b"))

    first = opened(Watched(store, take_over), "a")
    save(first, files, 10)
    with pytest.raises(Overtaken):
        save(first, files, 20)

    assert kept(later[0]) == ["000000010-a-1"]
    assert folders(store) == {"000000010-a-1"}


def test_who_is_overtaken_at_the_last_moment_does_not_change_what_counts(files: dict[str, bytes]) -> None:
    store = memory_store()
    later: list[TrainingRun] = []

    def take_over(key: str) -> None:
        if key == "manifests/000000003.json" and not later:
            later.append(opened(store, "b"))

    first = opened(Watched(store, take_over), "a")
    save(first, files, 10)
    with pytest.raises(Overtaken):
        save(first, files, 20)

    manifest = read_manifest(store)
    assert manifest is not None
    assert manifest.owner.start_id == "b"
    assert [saved.step for saved in manifest.checkpoints] == [10]


def test_a_manifest_whose_answer_was_lost_is_built_upon(files: dict[str, bytes]) -> None:
    store = memory_store()
    before = opened(store)._manifest
    with pytest.raises(StoreDown):
        advance(Breaking(store, at=0, times=3, when="after"), before, lambda one: one.with_checkpoint(checkpoint(10)))

    after = advance(store, before, lambda one: one.with_checkpoint(checkpoint(20)))

    assert [saved.step for saved in after.checkpoints] == [10, 20]
    assert read_manifest(store) == after


def test_a_number_that_an_older_claim_took_says_nothing_of_what_was_written_before(files: dict[str, bytes]) -> None:
    store = memory_store()
    zombie = opened(store, "a")._manifest
    owner = opened(store, "b")._manifest
    elsewhere = memory_store()
    advance(elsewhere, replace(zombie, number=2), lambda one: one)
    store.put("manifests/000000003.json", elsewhere.get("manifests/000000003.json").data)

    with pytest.raises(Overtaken) as caught:
        advance(store, owner, lambda one: one)

    assert not caught.value.is_unseen


def checkpoint(step: int) -> SavedCheckpoint:
    return SavedCheckpoint(f"{step:09d}-a-1", 0, step, step, None, {})


def complete_run(run: TrainingRun, files: Mapping[str, bytes], on_saved: Callable[[int], object]) -> None:
    """What a trainer does from where it is: a checkpoint every ten steps, every second one evaluated after."""
    while True:
        latest = run.latest()
        if latest is not None and latest.step % 20 == 0 and latest.metrics is None:
            run.set_metrics(latest.name, {"AP": 1 / latest.step})
        step = 10 if latest is None else latest.step + 10
        if step > 40:
            break
        save(run, files, step, keep=1)
        on_saved(step)
    if not run.is_finished:
        run.finish()


@pytest.mark.parametrize("when", ["before", "after"])
def test_wherever_a_start_dies_the_latest_checkpoint_is_whole_and_the_next_start_leaves_no_orphans(
    files: dict[str, bytes], when: str
) -> None:
    for deaths in range(1000):
        store = memory_store()
        acknowledged = [0]
        try:
            complete_run(opened(Breaking(store, at=deaths, times=10**6, when=when)), files, acknowledged.append)
        except StoreDown:
            pass
        else:
            break

        manifest = read_manifest(store)
        checkpoints = manifest.checkpoints if manifest else ()
        assert max((saved.step for saved in checkpoints), default=0) in (acknowledged[-1], acknowledged[-1] + 10)
        for saved in checkpoints:
            assert_whole(store, saved, files)
        resumed = opened(store, "b")
        complete_run(resumed, files, acknowledged.append)
        assert_complete(store, resumed, files)
    assert deaths > 60  # every put and every delete of a whole run


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("times", [1, 3])  # 3: as often as a create is tried by itself
def test_whichever_write_fails_the_same_start_may_go_on(files: dict[str, bytes], when: str, times: int) -> None:
    for failures in range(1000):
        store = memory_store()
        breaking = Breaking(store, at=10**6, times=times, when=when)
        run = opened(breaking)
        breaking.at = failures
        for _ in range(2 * times):
            try:
                complete_run(run, files, lambda step: None)
            except StoreDown:
                continue
            break
        assert run.is_finished
        assert_complete(store, run, files)
        if breaking.at >= 0:
            break
    assert failures > 50


def assert_whole(store: Store, saved: SavedCheckpoint, files: Mapping[str, bytes]) -> None:
    """Every file of a checkpoint is what was written: what other tests load, without the time that it takes."""
    written = {name: store.get(f"checkpoints/{saved.name}/{name}").data for name in saved.files}
    assert {name: len(data) for name, data in written.items()} == saved.files
    assert {name: written[name] for name in files} == files
    assert json.loads(written["training.json"])["step"] == saved.step
    assert safetensors.torch.load(written["training.safetensors"]).keys() == TENSORS.keys()


def assert_complete(store: Store, run: TrainingRun, files: Mapping[str, bytes]) -> None:
    """What a whole run leaves: the best and the newest checkpoint and the model, and no object beside them."""
    best = run.best()
    assert run.is_finished
    assert best is not None
    assert [saved.step for saved in run.checkpoints()] == [20, 40]
    expected = {"run.json", "latest.json", f"manifests/{run._manifest.number:09d}.json"}
    for saved in run.checkpoints():
        assert_whole(store, saved, files)
        extra = {"metrics.json"} if saved.metrics is not None else set()
        expected |= {f"checkpoints/{saved.name}/{file}" for file in FILES_OF_ONE | extra}
    model = FILES_OF_ONE - {"training.json", "training.safetensors"}
    expected |= {f"model/{file}" for file in {*model, "metrics.json"}}
    assert {entry.key for entry in store.list()} == expected


class Breaking:
    """A store of which some writes go wrong: `times` of them from number `at` on, "before" or "after" their effect."""

    def __init__(self, inner: Store, *, at: int, times: int, when: str) -> None:
        self.uri, self.list, self.head = inner.uri, inner.list, inner.head
        self.get, self.get_range = inner.get, inner.get_range
        self.at, self._times, self._when, self._inner = at, times, when, inner

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        etag: str | None = self._call(lambda: self._inner.put(key, data, create=create, if_match=if_match))
        return etag

    def delete(self, key: str) -> None:
        self._call(lambda: self._inner.delete(key))

    def _call(self, request: Callable[[], Any]) -> Any:
        self.at -= 1
        if self.at >= 0 or self._times <= 0:
            return request()
        self._times -= 1
        if self._when == "after":
            self._when = "before"  # who is dead after a write does not write the next
            request()
        raise StoreDown("no answer")


def test_a_damaged_position_of_the_right_size_is_reported(files: dict[str, bytes]) -> None:
    store = memory_store("memory://lake/runs/r50")
    key = f"checkpoints/{save(opened(store), files, 10)}/training.json"
    store.put(key, b"{}".ljust(len(store.get(key).data)))

    latest = latest_checkpoint(store)
    assert latest is not None
    with pytest.raises(RayDetrError, match=r"training\.json is damaged"):
        load_checkpoint(store, latest)


@pytest.mark.parametrize(
    ("file", "data", "sentence"),
    [
        ("model.safetensors", b"short", "model.safetensors is damaged: its contents have changed since it was written"),
        ("training.json", b"{}", "training.json is damaged: its contents have changed since it was written"),
        ("training.safetensors", None, "training.safetensors is missing: another program removed it"),
    ],
)
def test_a_checkpoint_that_was_meddled_with_stops_the_run(
    files: dict[str, bytes], file: str, data: bytes | None, sentence: str
) -> None:
    store = memory_store("memory://lake/runs/r50")
    name = save(opened(store), files, 10)
    key = f"checkpoints/{name}/{file}"
    store.delete(key) if data is None else store.put(key, data)

    latest = opened(store, "b").latest()
    assert latest is not None
    with pytest.raises(RayDetrError, match=f"^memory://lake/runs/r50/{key.replace('.', '[.]')}") as caught:
        load_checkpoint(store, latest)

    assert sentence in str(caught.value)


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b'{"manifest_version": 1, "checkpoints": [{"name": "../x"}]}'])
def test_a_damaged_manifest_is_said_to_be_damaged(data: bytes) -> None:
    store = memory_store("memory://lake/runs/r50")
    store.put("manifests/000000007.json", data)

    with pytest.raises(RayDetrError, match=r"memory://lake/runs/r50/manifests/000000007.json is damaged"):
        read_manifest(store)


class Watched:
    """A store that calls back before a put."""

    def __init__(self, inner: Store, before_put: Callable[[str], None]) -> None:
        self.uri, self.list, self.head = inner.uri, inner.list, inner.head
        self.get, self.get_range, self.delete = inner.get, inner.get_range, inner.delete
        self._inner, self._before_put = inner, before_put

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        self._before_put(key)
        return self._inner.put(key, data, create=create, if_match=if_match)
