"""Training batches by threads: the planned ones in their order, whoever reads them, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any
from weakref import ref

import pytest
import torch

from detr.images.decoding import SizeRule
from pipelines.clock import Clock
from pipelines.errors import RayDetrError
from pipelines.shards.reader import TrainingImage, read_index
from pipelines.store import Store, StoreDown, open_store
from pipelines.training.batch import Preparation, TrainBatch
from pipelines.training.ingest import FETCH_AHEAD_STEPS, train_batches
from pipelines.training.order import EpochOrder, plan_epoch, served_readers
from pipelines.training.row_groups import RowGroups
from tests.waiting import wait_until

PLAIN = Preparation("none", ((7, 0), (9, 1)), seed=0, size_rule=SizeRule(shorter=20, longest=30))
SCENES = Preparation("scenes", ((7, 0), (9, 1)), seed=0, scene_sides=(20, 24))

Named = list[list[tuple[int, int, tuple[int, ...]]]]


class Counted(RowGroups):
    """Row groups that remember what was asked for."""

    def __init__(self, folder: str) -> None:
        store = open_store(folder)
        super().__init__(store, read_index(store))
        self.asked: list[int] = []

    def read(self, number: int, *, clock: Clock | None = None) -> list[TrainingImage]:
        self.asked.append(number)
        return super().read(number, clock=clock)


class Down:
    """A store that has gone away with some keys."""

    def __init__(self, store: Store, key: str = "") -> None:
        self._store, self._key = store, key
        self.asked = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if not key.startswith(self._key):
            return self._store.get_range(key, start, length)
        self.asked.set()
        raise StoreDown("no answer.")


def plan(groups: RowGroups, **others: int) -> EpochOrder:
    arguments = {"seed": 0, "epoch": 0, "readers": 3, "batch_size": 2, "window_groups": 2} | others
    return plan_epoch(groups.rows, **arguments)  # type: ignore[arg-type]


def named(steps: Sequence[Sequence[TrainBatch]]) -> Named:
    return [[(batch.step, batch.reader, batch.image_ids) for batch in step] for step in steps]


def planned(groups: RowGroups, order: EpochOrder, readers: Sequence[int]) -> Named:
    """The same, from the plan alone."""
    ids = [[image.image_id for image in groups.read(number)] for number in range(len(groups.rows))]
    steps: Named = [[] for _ in range(order.steps)]
    for step, reader in ((step, reader) for step in range(order.steps) for reader in readers):
        batch = tuple(ids[group][row] for group, row in order.micro_batch(reader, step).tolist())
        if batch:
            steps[step].append((step, reader, batch))
    return steps


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ingest")]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_steps_are_as_planned_for_any_number_of_workers_and_threads(
    drawn_shards: str, workers: int, threads: int
) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups)

    shares = [
        list(train_batches(groups, order, SCENES, epoch=0, readers=served, threads=threads, prefetch_steps=2))
        for served in (served_readers(worker, workers, 3) for worker in range(workers))
    ]
    steps = [sorted(chain.from_iterable(step), key=lambda batch: batch.reader) for step in zip(*shares, strict=True)]

    assert named(steps) == planned(groups, order, range(3))
    alone = list(train_batches(groups, order, SCENES, epoch=0, readers=range(3), prefetch_steps=0))
    for batch, other in zip(chain.from_iterable(steps), chain.from_iterable(alone), strict=True):
        assert torch.equal(batch.pixels, other.pixels)
        assert torch.equal(batch.extents, other.extents)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_is_taken_up_at_any_step(drawn_shards: str, first: int) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups)

    steps = list(train_batches(groups, order, PLAIN, epoch=0, readers=[0, 2], first_step=first))

    assert named(steps) == planned(groups, order, [0, 2])[first:]


def test_only_what_is_left_is_read_when_an_epoch_is_taken_up(drawn_shards: str) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups, readers=1, window_groups=1)

    list(train_batches(groups, order, PLAIN, epoch=0, readers=[0], first_step=order.steps - 2))

    last = chain.from_iterable(order.micro_batch(0, order.steps - back).tolist() for back in (1, 2))
    assert sorted(groups.asked) == sorted({group for group, _ in last})


def test_an_epoch_can_be_left_before_its_end(drawn_shards: str) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups)

    steps = list(train_batches(groups, order, PLAIN, epoch=0, readers=range(3), first_step=1, end_step=3))

    assert named(steps) == planned(groups, order, range(3))[1:3]


def test_a_row_group_is_read_once_by_each_reader(drawn_shards: str) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups)

    list(train_batches(groups, order, PLAIN, epoch=0, readers=range(3)))

    needed: Counter[int] = Counter()
    for reader in range(3):
        needed.update({group for step in range(order.steps) for group, _ in order.micro_batch(reader, step).tolist()})
    assert Counter(groups.asked) == needed


def test_reading_keeps_within_sight_of_the_steps(drawn_shards: str) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups, readers=1, batch_size=1, window_groups=1)
    steps = train_batches(groups, order, PLAIN, epoch=0, readers=[0], prefetch_steps=1)

    next(steps)
    near = [order.micro_batch(0, step)[0, 0] for step in range(1 + 1 + FETCH_AHEAD_STEPS)]
    wait_until(lambda: len(groups.asked) == len(set(near)))
    steps.close()

    assert set(groups.asked) == set(near) < set(range(6))


@pytest.mark.parametrize("first", [0, 8])
def test_only_images_that_are_still_to_be_used_are_held(drawn_shards: str, first: int) -> None:
    class Watched(TrainingImage):
        """Without slots, so that it can be referred to weakly."""

    class Watching(Counted):
        def read(self, number: int, *, clock: Clock | None = None) -> list[TrainingImage]:
            images: list[TrainingImage] = [
                Watched(*(getattr(image, field.name) for field in fields(image)))
                for image in super().read(number, clock=clock)
            ]
            references.extend(map(ref, images))
            return images

    references: list[ref[TrainingImage]] = []
    groups = Watching(drawn_shards)
    order = plan(groups, readers=1, batch_size=1, window_groups=6)
    steps = train_batches(groups, order, PLAIN, epoch=0, readers=[0], first_step=first, prefetch_steps=0)

    for _ in range(first, 15):
        next(steps)

    assert len(references) >= 21 - first
    wait_until(lambda: sum(reference() is not None for reference in references) == 6)
    steps.close()


def test_a_worker_whose_readers_have_ended_still_has_all_steps(drawn_shards: str) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups, readers=20, batch_size=1)  # of 21 images: one reader has two

    steps = [list(train_batches(groups, order, PLAIN, epoch=0, readers=[reader])) for reader in range(20)]

    assert [len(own) for own in steps] == [2] * 20
    assert sorted(len(own[1]) for own in steps) == [0] * 19 + [1]


def test_threads_end_with_the_iterator(drawn_shards: str) -> None:
    groups = Counted(drawn_shards)
    order = plan(groups)

    list(train_batches(groups, order, PLAIN, epoch=0, readers=range(3)))
    assert threads_of_ours() == []

    steps = train_batches(groups, order, PLAIN, epoch=0, readers=range(3))
    next(steps)
    assert threads_of_ours() != []
    steps.close()
    assert threads_of_ours() == []


def test_a_store_that_stays_away_stops_the_consumer_in_a_sentence(drawn_shards: str) -> None:
    store = open_store(drawn_shards)
    groups = RowGroups(Down(store), read_index(store), outage_seconds=0.0)

    with pytest.raises(RayDetrError, match=r"no answer\. Run the same command again"):
        next(train_batches(groups, plan(groups), PLAIN, epoch=0, readers=range(3)))
    assert threads_of_ours() == []


def test_closing_does_not_wait_for_a_store_that_is_away(drawn_shards: str) -> None:
    store = open_store(drawn_shards)
    down = Down(store, "shard-00002.parquet")
    groups = RowGroups(down, read_index(store), outage_seconds=3600.0)
    orders = (plan(groups, readers=1, window_groups=1, epoch=epoch) for epoch in range(100))
    order = next(one for one in orders if 5 in one.micro_batch(0, 1)[:, 0] and 5 not in one.micro_batch(0, 0)[:, 0])
    steps = train_batches(groups, order, PLAIN, epoch=0, readers=[0])

    assert next(steps)
    assert down.asked.wait(10)
    began = time.monotonic()
    steps.close()

    assert time.monotonic() - began < 10
    assert threads_of_ours() == []


def test_an_image_that_cannot_be_used_is_named_with_its_shard(drawn_shards: str) -> None:
    class Damaged(Counted):
        def read(self, number: int, *, clock: Clock | None = None) -> list[TrainingImage]:
            images = super().read(number, clock=clock)
            return [replace(image, data=b"") if image.image_id == 115 else image for image in images]

    groups = Damaged(drawn_shards)

    with pytest.raises(RayDetrError, match=r"shard-00001.parquet: image 115 \(15.jpg\) cannot be decoded"):
        list(train_batches(groups, plan(groups), PLAIN, epoch=0, readers=range(3)))


@pytest.mark.parametrize("others", [{"threads": 0}, {"prefetch_steps": -1}])
def test_arguments_out_of_range_are_refused(drawn_shards: str, others: dict[str, int]) -> None:
    groups = Counted(drawn_shards)

    with pytest.raises(ValueError, match="at least 1 and 0"):
        next(train_batches(groups, plan(groups), PLAIN, epoch=0, readers=[0], **others))
