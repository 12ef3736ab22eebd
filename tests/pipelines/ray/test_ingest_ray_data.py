"""Training batches by Ray's tasks: the very batches that threads of the worker make, in the same order."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detr.images.decoding import SizeRule
from pipelines.errors import RayDetrError
from pipelines.store import StoreOptions
from pipelines.training.batch import Preparation, TrainBatch
from pipelines.training.ingest import train_batches
from pipelines.training.ingest_ray_data import (
    ShardSource,
    cpu_share,
    cut_stretches,
    longest_side,
    most_task_steps,
    train_batches_by_ray_data,
    worker_limit,
)
from pipelines.training.order import EpochOrder, plan_epoch

SCENES = Preparation("scenes", ((7, 0), (9, 1)), seed=0, scene_sides=(20, 24))


def plan(source: ShardSource, readers: int = 3) -> EpochOrder:
    return plan_epoch(source.open().rows, seed=0, epoch=0, readers=readers, batch_size=2, window_groups=2)


def assert_equal(found: Sequence[Sequence[TrainBatch]], expected: Sequence[Sequence[TrainBatch]]) -> None:
    assert [len(step) for step in found] == [len(step) for step in expected]
    for one, other in zip(chain.from_iterable(found), chain.from_iterable(expected), strict=True):
        assert (one.step, one.reader, one.image_ids) == (other.step, other.reader, other.image_ids)
        for a, b in ((one.pixels, other.pixels), (one.extents, other.extents)):
            assert (a.dtype, a.stride()) == (b.dtype, b.stride())
            assert torch.equal(a, b)
        for a_target, b_target in zip(one.targets, other.targets, strict=True):
            for a, b in ((a_target.labels, b_target.labels), (a_target.boxes_cxcywh, b_target.boxes_cxcywh)):
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert torch.equal(a, b)


def wait_until(predicate: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(1, 6), max_size=20),
    readers=st.integers(1, 5),
    first=st.integers(0, 12),
    images=st.integers(1, 40),
)
def test_stretches_are_all_steps_that_are_left(rows: list[int], readers: int, first: int, images: int) -> None:
    order = plan_epoch(rows, seed=0, epoch=0, readers=readers, batch_size=2, window_groups=2)

    stretches = cut_stretches(order, [0], first, images)

    assert [step for start, end in stretches for step in range(start, end)] == list(range(first, order.steps_of(0)))


def test_a_stretch_has_about_as_many_images_as_asked_for() -> None:
    order = plan_epoch([32] * 8, seed=0, epoch=0, readers=4, batch_size=2, window_groups=2)

    assert cut_stretches(order, [0, 2], 0, 64) == [(0, 16), (16, 32)]
    assert cut_stretches(order, [0, 2], 5, 1) == [(step, step + 1) for step in range(5, 32)]


@pytest.mark.parametrize(
    ("preparation", "side"),
    [
        (SCENES, 40),  # 5/3 of the largest shorter side
        (Preparation("none", (), seed=0, size_rule=SizeRule(shorter=48, longest=80)), 80),
        (Preparation("coco", (), seed=0, size_rule=SizeRule(longest=80)), 1333),
    ],
)
def test_the_longest_side_is_that_of_the_augmentation(preparation: Preparation, side: int) -> None:
    assert longest_side(preparation) == side


def test_half_of_the_object_store_is_shared_by_workers_and_half_of_a_share_is_for_one_task() -> None:
    order = plan_epoch([32] * 8, seed=0, epoch=0, readers=4, batch_size=2, window_groups=2)
    step = 2 * 2 * 3 * 10**2  # readers, images each, channels, pixels

    assert worker_limit(4 * step, workers=2) == step
    assert most_task_steps(order, [0, 2], 10, 8 * step) == 4
    assert most_task_steps(order, [0, 2], 10, 8 * step - 1) == 3
    assert most_task_steps(order, [0, 2], 10, step) == 1  # it must be made, though it is more than half
    with pytest.raises(
        RayDetrError, match=r"the 4 images of a worker's step may take 0\.0 MB, .* --object-store-memory"
    ):
        most_task_steps(order, [0, 2], 10, step - 1)


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=20),
    readers=st.integers(1, 5),
    first=st.integers(0, 12),
    share=st.floats(1, 20),
)
def test_no_task_makes_more_than_half_of_its_workers_share(
    rows: list[int], readers: int, first: int, share: float
) -> None:
    order = plan_epoch(rows, seed=0, epoch=0, readers=readers, batch_size=2, window_groups=2)
    served = range(0, readers, 2)
    limit = share * 2 * len(served) * 3 * 10**2

    most_steps = most_task_steps(order, served, 10, limit)
    stretches = cut_stretches(order, served, first, 1000, most_steps=most_steps)

    for start, end in stretches:
        images = sum(len(order.micro_batch(reader, step)) for reader in served for step in range(start, end))
        assert images * 3 * 10**2 <= limit / 2 or end - start == 1


def test_a_worker_without_images_needs_no_memory() -> None:
    order = plan_epoch([1], seed=0, epoch=0, readers=2, batch_size=2, window_groups=2)
    idle = next(reader for reader in range(2) if not order.steps_of(reader))

    assert most_task_steps(order, [idle], 10, 0.0) == 1


@pytest.mark.parametrize(
    ("cpus", "assigned", "workers", "tasks"),
    [(4, 1, 2, 1), (16, 1, 2, 7), (16, 0, 3, 5), (3, 1, 2, 1), (2, 1, 2, 1), (16, 6, 2, 2)],
)
def test_workers_share_the_cpus_that_they_leave_over(cpus: float, assigned: float, workers: int, tasks: int) -> None:
    assert cpu_share(cpus, assigned, workers) == tasks


@pytest.mark.ray
@pytest.mark.parametrize("task_images", [1, 6, 100])
def test_tasks_make_what_threads_make(local_ray: str, drawn_shards: str, task_images: int) -> None:
    source = ShardSource(drawn_shards, StoreOptions())
    order = plan(source)

    found = list(
        train_batches_by_ray_data(source, order, SCENES, epoch=0, readers=[0, 2], workers=2, task_images=task_images)
    )

    assert_equal(found, list(train_batches(source.open(), order, SCENES, epoch=0, readers=[0, 2])))


@pytest.mark.ray
def test_tasks_take_an_epoch_up_at_any_step(local_ray: str, drawn_shards: str) -> None:
    source = ShardSource(drawn_shards, StoreOptions())
    order = plan(source)

    found = list(train_batches_by_ray_data(source, order, SCENES, epoch=0, readers=[1], first_step=2))

    assert_equal(found, list(train_batches(source.open(), order, SCENES, epoch=0, readers=[1], first_step=2)))


@pytest.mark.ray
def test_a_worker_without_images_still_has_all_steps(local_ray: str, drawn_shards: str) -> None:
    source = ShardSource(drawn_shards, StoreOptions())
    order = plan(source, readers=30)  # of 21 images
    idle = next(reader for reader in range(30) if not order.steps_of(reader))

    assert list(train_batches_by_ray_data(source, order, SCENES, epoch=0, readers=[idle])) == [[]]


@pytest.mark.ray
def test_what_stops_a_task_stops_the_run_in_the_same_sentence(
    local_ray: str, drawn_shards: str, tmp_path: Path
) -> None:
    source = ShardSource(drawn_shards, StoreOptions())
    order = plan(source)
    nowhere = ShardSource(str(tmp_path / "nowhere"), StoreOptions())
    shutil.copytree(drawn_shards, tmp_path / "cut")
    (tmp_path / "cut" / "shard-00001.parquet").unlink()
    cut = ShardSource(str(tmp_path / "cut"), StoreOptions())

    with pytest.raises(RayDetrError, match=r"^there are no training shards at .*nowhere"):
        next(train_batches_by_ray_data(nowhere, order, SCENES, epoch=0, readers=[0]))
    with pytest.raises(
        RayDetrError, match=r"^/.*cut/shard-00001.parquet cannot be read: .*\. Run the same command again"
    ):
        list(train_batches_by_ray_data(cut, order, SCENES, epoch=0, readers=[0, 1, 2]))


@pytest.mark.ray
def test_the_dataset_ends_with_the_iterator(local_ray: str, drawn_shards: str) -> None:
    source = ShardSource(drawn_shards, StoreOptions())

    def executors() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]

    steps = train_batches_by_ray_data(source, plan(source), SCENES, epoch=0, readers=[0], task_images=1)
    next(steps)
    steps.close()

    wait_until(lambda: not executors())


@pytest.mark.ray
@pytest.mark.slow
def test_tasks_run_beside_the_workers_of_ray_train(local_ray: str, drawn_shards: str, tmp_path: Path) -> None:
    # each worker holds its whole placement group: tasks that were put into it would wait for ever
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def work() -> None:
        import ray.train

        rank = ray.train.get_context().get_world_rank()
        source = ShardSource(drawn_shards, StoreOptions())
        order = plan_epoch(source.open().rows, seed=0, epoch=0, readers=4, batch_size=2, window_groups=2)
        readers = [rank, rank + 2]
        steps = list(train_batches_by_ray_data(source, order, SCENES, epoch=0, readers=readers, workers=2))
        expected = list(train_batches(source.open(), order, SCENES, epoch=0, readers=readers))
        for one, other in zip(chain.from_iterable(steps), chain.from_iterable(expected), strict=True):
            assert one.image_ids == other.image_ids
            assert torch.equal(one.pixels, other.pixels)
        ids = [image for step in steps for batch in step for image in batch.image_ids]
        (tmp_path / f"rank-{rank}").write_text(" ".join(map(str, ids)))

    run_config = RunConfig(name="ingest", storage_path=str(tmp_path / "runs"))
    TorchTrainer(work, scaling_config=ScalingConfig(num_workers=2), run_config=run_config).fit()

    ids = [int(number) for rank in range(2) for number in (tmp_path / f"rank-{rank}").read_text().split()]
    assert sorted(ids) == list(range(100, 121))
