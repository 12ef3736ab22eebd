"""An image that changes back between listing and reading, to a version that the table has: one row of it stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.labelling.manifest import read_shard
from pipelines.lake.lake_object import LakeObject
from tests.simulation.world import World, Writer, check_end, small_segments

FIRST, OTHER = "s3://lake/0.jpg", "s3://lake/1.jpg"


@pytest.fixture(autouse=True)
def few_shards_a_segment() -> Iterator[None]:
    with small_segments():
        yield


def change_back_while_labelled(world: World, writer: Writer, **versions: str) -> None:
    """Run with the versions that are listed first changed as soon as the first shard is read."""

    def before(_name: str, call: str) -> None:
        if call.startswith("put _runs/") and call.endswith(".plan"):
            world.lake.update({f"s3://lake/{number}.jpg": version for number, version in versions.items()})

    world.before_call = before
    writer.start()
    world.before_call = lambda _name, _call: None


def test_a_version_of_an_earlier_run_becomes_no_second_row_and_is_not_planned_again() -> None:
    world = World({FIRST: "a", OTHER: "a"})
    writer = Writer(world)
    writer.start()
    world.lake.update({FIRST: "b", OTHER: "b"})
    change_back_while_labelled(world, writer, **{"0": "a", "1": "c"})

    rows = {(row["uri"], row["etag"], row["status"]): row for row in world.read()}
    assert sorted(rows) == [
        (FIRST, "a", "error"), (FIRST, "a", "ok"), (OTHER, "a", "ok"), (OTHER, "c", "ok"),
    ]  # fmt: skip
    error = rows[FIRST, "a", "error"]
    assert (error["error_kind"], error["detections"]) == ("fetch_failed", None)
    assert "already has" in error["error"]
    finished = writer.start()
    assert (finished.planned.images, finished.planned.labelled) == (0, 2)
    check_end(world)


def test_another_models_row_of_that_version_is_no_reason() -> None:
    world = World({FIRST: "a"})
    Writer(world, model="detr@1").start()
    world.lake[FIRST] = "b"
    change_back_while_labelled(world, Writer(world, "b", model="detr@2"), **{"0": "a"})

    assert [(row["etag"], row["status"], row["model"]) for row in world.read()] == [
        ("a", "ok", "detr@1"), ("a", "ok", "detr@2"),
    ]  # fmt: skip


def test_what_an_earlier_run_had_as_an_error_is_no_reason() -> None:
    world = World({FIRST: "a"})
    writer = Writer(world)
    world.before_call = lambda _name, call: world.lake.clear() if call.endswith("00000.plan") else None
    writer.start()  # gone when it is read
    assert [row["error_kind"] for row in world.read()] == ["missing"]
    world.lake[FIRST] = "b"
    change_back_while_labelled(world, writer, **{"0": "a"})

    assert [(row["etag"], row["status"]) for row in world.read()] == [(None, "error"), ("a", "ok")]


def test_the_plan_says_what_was_listed() -> None:
    world = World({FIRST: "b"})
    change_back_while_labelled(world, Writer(world), **{"0": "a"})

    run_id = world.read()[0]["run_id"]
    assert read_shard(world.objects, run_id, 0) == (LakeObject(FIRST, "b"),)
