"""A labelling run through a real Ray: each image one row, whatever dies, however often it is started."""

from __future__ import annotations

import gc
import os
import signal
import time
import uuid
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from detr.scenes.files import write_scenes
from pipelines.caps import Caps, Meter
from pipelines.errors import CapReached, RayDetrError
from pipelines.labelling import actor_pool as pool
from pipelines.labelling import label as label_module
from pipelines.labelling.actor_pool import ShardActor
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.labeler_spec import LabelerSpec
from pipelines.labelling.outcome import Failed
from pipelines.labelling.progress import Progress
from pipelines.labelling.run import list_runs, read_state
from pipelines.parquet_files import open_listed
from pipelines.store import open_store

SCENES = 12
BROKEN = {"cut.jpg": "truncated", "empty.jpg": "empty", "page.jpg": "not_an_image"}


@pytest.fixture
def config(tmp_path: Path) -> LabelConfig:
    """Four shards of four images at most: twelve small scenes and three broken files."""
    lake = tmp_path / "lake"
    write_scenes(lake, SCENES, 4, sizes={(96, 128): 1, (128, 96): 1})
    whole = (lake / "scene_4_000000.jpg").read_bytes()
    (lake / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (lake / "empty.jpg").write_bytes(b"")
    (lake / "page.jpg").write_bytes(b"<html>not found</html>")
    return LabelConfig(
        (str(lake),), table=str(tmp_path / "table"), model="scenes", device="cpu", actors=(None, 1), shard_images=4
    )


def rows(config: LabelConfig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.dataset.dataset(f"{config.table}/data").to_table().to_pylist()
    return found


def names(config: LabelConfig) -> list[str]:
    return [row["uri"].rpartition("/")[2] for row in rows(config)]


def lake_names(config: LabelConfig) -> list[str]:
    return sorted(path.name for path in Path(config.images[0]).glob("*.jpg"))


def network_of(actor: ShardActor) -> Any:
    detector: Any = actor._labeler._detector
    return detector._network


class AtMostSeven(ShardActor):
    """An actor on a device with too little memory for more than seven images."""

    def __init__(self, spec: LabelerSpec) -> None:
        super().__init__(spec)
        network = network_of(self)
        compute = network.detect

        def small(pixels: Tensor, *others: Any, **options: Any) -> Any:
            if len(pixels) > 7:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return compute(pixels, *others, **options)

        network.detect = small


class NoneAtAll(ShardActor):
    """An actor on a device with too little memory for one image."""

    def __init__(self, spec: LabelerSpec) -> None:
        super().__init__(spec)

        def none_fits(*_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        network_of(self).detect = none_fits


@pytest.mark.ray
def test_a_device_with_too_little_memory_labels_every_image_in_smaller_batches(
    local_ray: str,
    config: LabelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_scenes(tmp_path / "scenes", 64, 4, sizes={(96, 128): 1})  # four shards of 16
    whole = replace(config, images=(str(tmp_path / "scenes"),), shard_images=16, batch_size=16, threshold=0.0)
    alone = replace(whole, table=str(tmp_path / "alone"), batch_size=1)
    label(alone)
    monkeypatch.setattr(pool, "ShardActor", AtMostSeven)

    summary = label(whole)

    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "cpu has too little memory for 16 images of 192 x 256 pixels at once",
        "cpu has too little memory for 8 images of 192 x 256 pixels at once",
    ]
    assert (summary.images, summary.errors) == (64, {})
    for row, expected in zip(rows(whole), rows(alone), strict=True):
        assert (row["uri"], row["error_kind"]) == (expected["uri"], expected["error_kind"])
        for one, other in zip(row["detections"] or (), expected["detections"] or (), strict=True):
            assert one["label"] == other["label"]
            assert list(one["box"].values()) == pytest.approx(list(other["box"].values()), abs=0.01)


@pytest.mark.ray
def test_an_image_is_not_given_up_for_the_memory_of_a_device_and_the_run_can_be_resumed(
    local_ray: str, config: LabelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(pool, "ShardActor", NoneAtAll)
        with pytest.raises(
            RayDetrError, match=r"was lost 3 times.*cpu has too little memory for one image of (192 x|256 x)"
        ):
            label(config)
    assert not Path(config.table, "data").exists()

    summary = label(config)

    assert (summary.images, summary.resumed) == (15, True)
    assert summary.errors == {"truncated": 1, "empty": 1, "not_an_image": 1}


@pytest.mark.ray
def test_images_that_are_not_the_listed_version_any_more_are_labelled_and_counted(
    local_ray: str, config: LabelConfig, tmp_path: Path
) -> None:
    uris = [str(Path(config.images[0]) / f"scene_4_{number:06d}.jpg") for number in range(3)]
    sizes = [Path(uri).stat().st_size for uri in uris]
    listed = tmp_path / "listed.parquet"
    pq.write_table(pa.table({"uri": uris, "size": [sizes[0], sizes[1] + 1, sizes[2] - 1]}), listed)
    config = replace(config, images=(str(listed),))

    summary = label(config)

    assert (summary.images, summary.errors, summary.changed_this_start) == (3, {}, 2)
    assert [row["size"] for row in rows(config)] == sizes


@pytest.mark.ray
def test_each_image_has_one_row_and_a_second_start_labels_only_what_is_new(local_ray: str, config: LabelConfig) -> None:
    seen: list[Progress] = []

    first = label(config, on_progress=seen.append)

    assert (first.images, first.images_this_start, first.already_labelled, first.files) == (15, 15, 0, 1)
    assert first.errors == dict.fromkeys(BROKEN.values(), 1)
    assert first.skipped == {".json": 1}
    assert (first.resumed, first.within_budget, first.error_rate) == (False, False, 0.2)
    assert names(config) == lake_names(config)
    assert {row["uri"].rpartition("/")[2]: row["error_kind"] for row in rows(config) if row["error_kind"]} == BROKEN
    assert first.detections == sum(len(row["detections"] or ()) for row in rows(config)) > 0
    assert {row["model"] for row in rows(config)} == {first.model}
    assert (seen[0].stage, seen[-1].stage) == ("listing images and reading the table", "label")
    assert (seen[-1].images, seen[-1].images_planned, seen[-1].is_planned, seen[-1].errors) == (15, 15, True, 3)
    assert not list(Path(config.table).rglob("*.part"))

    second = label(config)

    assert (second.images, second.already_labelled, second.files) == (0, 15, 0)
    assert names(config) == lake_names(config)

    (Path(config.images[0]) / "new.jpg").write_bytes((Path(config.images[0]) / "scene_4_000003.jpg").read_bytes())
    third = label(config)

    assert (third.images, third.already_labelled, third.errors) == (1, 15, {})
    assert sorted(names(config)) == lake_names(config)
    same = {row["uri"].rpartition("/")[2]: row["detections"] for row in rows(config)}
    assert [found["label"] for found in same["new.jpg"]] == [found["label"] for found in same["scene_4_000003.jpg"]]


@pytest.mark.ray
def test_a_list_of_two_nights_has_one_type_and_its_dead_link_exceeds_the_limit_in_the_first_only(
    local_ray: str, config: LabelConfig, tmp_path: Path
) -> None:
    folder, listed = config.images[0], tmp_path / "listed.csv"
    config = replace(config, images=(str(listed),), keep=("warmth",))

    nights = []
    for warmth in ("21.5", ""):
        listed.write_text(f"uri,warmth\n{folder}/scene_4_000003.jpg,{warmth}\n{folder}/dead.jpg,{warmth}\n")
        nights.append(label(config))

    assert [(night.images, night.errors) for night in nights] == [(2, {"missing": 1}), (1, {"missing": 1})]
    assert [(night.within_budget, night.repeated_errors) for night in nights] == [(False, 0), (True, 1)]
    table = open_store(config.table)
    files = [open_listed(table, entry) for entry in table.list("data/")]
    assert [file.schema_arrow.field("warmth").type for file in files] == [pa.float64()] * 2


@pytest.mark.ray
def test_an_actor_that_is_killed_in_the_middle_costs_no_row_and_doubles_none(
    local_ray: str, config: LabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "died"

    class DiesOnce(ShardActor):
        def __call__(self, row: Any) -> dict[str, Any]:
            done = super().__call__(row)  # committed, and not reported
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    monkeypatch.setattr(pool, "ShardActor", DiesOnce)

    summary = label(config)

    assert marker.exists()
    assert summary.images == 15
    assert names(config) == lake_names(config)


@pytest.mark.ray
def test_a_run_that_was_stopped_is_resumed_by_the_same_configuration_only(
    local_ray: str, config: LabelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(ShardActor):
        """Labels the first shard; then the lake is gone."""

        def __call__(self, row: Any) -> dict[str, Any]:
            # whichever comes first: waiting for another call would be for ever, where both places of the actor wait
            first = super().__call__({"shard": 0})
            return first if row["shard"] == 0 else pool._to_row(Failed("the lake is gone."))

    table = config.table
    night = replace(config, run_id="night")
    with monkeypatch.context() as patched:
        patched.setattr(pool, "ShardActor", Lost)
        with pytest.raises(RayDetrError, match=r"^the lake is gone\. Run the same command again to resume"):
            label(night)
    assert not Path(table, "data").exists()

    with pytest.raises(RayDetrError) as refused:
        label(replace(config, threshold=0.5))
    assert str(refused.value) == (
        "the unfinished run night used another configuration (threshold 0.05, now 0.5). "
        "Use the old value to resume it, or --new-run to seal it and start a new run."
    )

    summary = label(config)

    assert (summary.run_id, summary.resumed, summary.images, summary.images_this_start) == ("night", True, 15, 11)
    assert names(config) == lake_names(config)


@pytest.mark.ray
def test_a_new_run_seals_the_unfinished_one(
    local_ray: str, config: LabelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(ShardActor):
        def __init__(self, spec: LabelerSpec) -> None:
            self._failure = "the lake is gone."

    with monkeypatch.context() as patched:
        patched.setattr(pool, "ShardActor", Lost)
        with pytest.raises(RayDetrError, match="the lake is gone"):
            label(replace(config, run_id="old"))

    summary = label(replace(config, threshold=0.5, new_run=True, run_id="new"))

    store = open_store(config.table)
    assert [(run.run_id, read_state(store, run.run_id)) for run in list_runs(store)] == [
        ("old", "sealed"),
        ("new", "finished"),
    ]
    assert (summary.resumed, summary.images) == (False, 15)
    assert names(config) == lake_names(config)
    assert {row["threshold"] for row in rows(config)} == {0.5}


@pytest.mark.ray
def test_more_actors_than_fit_are_refused_within_seconds(local_ray: str, config: LabelConfig) -> None:
    began = time.monotonic()

    with pytest.raises(RayDetrError) as refused:
        label(replace(config, actors=(99, None)))

    assert time.monotonic() - began < 5
    assert str(refused.value) == (
        "99 actors do not fit: each needs 1 CPU, and the cluster has room for 8 (1 node, 8 CPU, 4 GPU). "
        "Ask for 8 at most with --actors, or add nodes."
    )


@pytest.mark.ray
def test_what_is_wrong_with_the_model_is_reported_before_a_run_begins(local_ray: str, config: LabelConfig) -> None:
    with pytest.raises(RayDetrError, match=r"/nowhere/model"):
        label(replace(config, model="/nowhere/model"))
    with pytest.raises(RayDetrError, match=r"'sqare' is not a class of scenes.*'square'"):
        label(replace(config, classes=(("sqare", None),)))

    assert list(list_runs(open_store(config.table))) == []


def test_a_folder_that_is_not_there_is_reported_before_ray_is_started(config: LabelConfig) -> None:
    with pytest.raises(RayDetrError, match=r"there is nothing at .*lake2\. Check the address"):
        label(replace(config, images=(f"{config.images[0]}2",)))

    assert not Path(config.table).exists()


def test_a_table_that_cannot_be_written_is_reported_before_ray_is_started(config: LabelConfig) -> None:
    table = f"{config.images[0]}/cut.jpg/table"

    with pytest.raises(RayDetrError, match=r"a table cannot be kept at .*cut\.jpg/table: .*cannot be written: "):
        label(replace(config, table=table))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"threshold": 1.5}, "threshold: 1.5 is not in 0..1"),
        ({"max_error_rate": -0.1}, "max error rate: -0.1 is not in 0..1"),
        ({"device": "cuda:1"}, "device: 'cuda:1' is not one of auto, cpu, cuda"),
        ({"actors": (0, None)}, "actors: 0:None is not a range of at least 1 actor"),
        ({"actors": (3, 2)}, "actors: 3:2 is not a range of at least 1 actor"),
        ({"actors": (None, 0)}, "actors: 1:0 is not a range"),
        ({"batch_size": 0}, "batch size: 0 is not at least 1"),
        ({"run_id": "a b"}, "run id: 'a b' is not a valid folder name"),
        ({"max_images": 1, "sample": 1}, "max images and sample exclude each other"),
        ({"shard_images": 0}, "shard images"),
        ({"keep": ("uri",)}, "keep: 'uri' is a column of the detection table itself"),
        ({"images": ()}, "images: name at least one"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_said(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        LabelConfig(**{"images": ("lake",), "table": "table", "model": "scenes", **wrong})


@pytest.mark.ray
def test_actors_end_with_the_call_though_its_error_is_kept(local_ray: str, config: LabelConfig) -> None:
    """As in a notebook, whose last error keeps all local variables of the call."""
    import ray  # here, as other tests of this file do not need it

    free = ray.cluster_resources()["CPU"]

    def fail(progress: Progress) -> None:
        if progress.images_this_start:
            raise ConnectionError("the terminal is gone")

    with pytest.raises(ConnectionError) as kept:
        label(config, on_progress=fail)

    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != free and time.monotonic() < deadline:
        time.sleep(0.1)
    left = ray.available_resources().get("CPU")
    args = kept.value.args
    del kept  # what it keeps alive must end before Ray does, or the failure below is hidden by errors at exit
    gc.collect()
    assert left == free
    assert args == ("the terminal is gone",)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """The meter of the labelling call, whose limit is reached when the test says so."""
    meter = Meter(Caps(max_minutes=1_000))
    monkeypatch.setattr(label_module, "metering", lambda caps: nullcontext(meter))
    return meter


@pytest.mark.ray
def test_a_limit_lets_shards_in_progress_end_and_begins_no_other(
    local_ray: str, config: LabelConfig, meter: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()

    class Noted(ShardActor):
        """Notes each shard that is labelled; the second one takes until the run is to stop, and two seconds more."""

        def __init__(self, spec: LabelerSpec) -> None:
            super().__init__(spec)
            labelled = self._labeler.label

            def noted(shard: int, **options: Any) -> Any:
                (begun / f"{shard} {uuid.uuid4().hex}").touch()
                report = labelled(shard, **options)
                deadline = time.monotonic() + 60
                while shard == 1 and not (tmp_path / "reached").exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(2 if shard == 1 else 0)
                return report

            self._labeler.label = noted  # type: ignore[method-assign]

    def stop_when_a_shard_is_done(progress: Progress) -> None:
        if progress.images_this_start and not meter.reached.is_set():
            meter.caps = Caps(max_minutes=1e-9)
            meter.look()
            (tmp_path / "reached").touch()

    small = replace(config, shard_images=1, caps=Caps(max_minutes=1_000))
    monkeypatch.setattr(pool, "ShardActor", Noted)
    with pytest.raises(CapReached) as reached:
        label(small, on_progress=stop_when_a_shard_is_done)

    numbers = [path.name.partition(" ")[0] for path in begun.iterdir()]
    assert "1" in numbers
    assert len(numbers) < 15
    assert str(reached.value).startswith(
        f"the limit of 1e-09 minutes (--max-minutes) is reached. {len(numbers)} of 15 planned images of run "
    )
    details = reached.value.details
    assert (details["images"], details["images_planned"], details["is_planned"]) == (len(numbers), 15, True)
    assert (details["nodes"], details["cost"]) == (1, None)
    meter.reached.clear()
    meter.caps = Caps()
    (tmp_path / "reached").touch()
    summary = label(small)
    again = [path.name.partition(" ")[0] for path in begun.iterdir()]
    assert (summary.resumed, summary.images, summary.images_this_start) == (True, 15, 15 - len(numbers))
    assert sorted(again, key=int) == [str(shard) for shard in range(15)]  # each shard was begun once, in both starts
    assert names(config) == lake_names(config)


@pytest.mark.ray
def test_a_limit_that_is_reached_at_once_leaves_a_run_to_resume(local_ray: str, config: LabelConfig) -> None:
    with pytest.raises(
        CapReached, match=r"0 of 15 planned images of run .* are labelled, 0 of them by this command\. Run the same"
    ):
        label(replace(config, caps=Caps(max_minutes=1e-6)))

    summary = label(replace(config, caps=Caps(max_cost=1_000, price_per_hour=1)))

    assert (summary.resumed, summary.images) == (True, 15)


@pytest.mark.ray
def test_a_limit_ends_waiting_for_nodes(local_ray: str, config: LabelConfig, meter: Meter) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "waiting for nodes":
            meter.caps = Caps(max_minutes=1e-9)
            meter.look()

    with pytest.raises(
        CapReached, match=r"^the limit of 1e-09 minutes \(--max-minutes\) is reached; the wait for nodes"
    ):
        label(replace(config, actors=(99, 99), node_minutes=5), on_progress=stop)
