"""The order of an epoch: every image once, for any number of workers, another one in the next epoch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from itertools import chain, groupby
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.training.order import EpochOrder, Places, Similar, plan_epoch, random_stream, served_readers, step_stream

ROWS = st.lists(st.integers(0, 6), max_size=30)
SHAPES = ((480, 640), (640, 480), (500, 375))

Batch = list[tuple[int, int]]


def plan(rows: Sequence[int], **others: int) -> EpochOrder:
    arguments = {"seed": 7, "epoch": 1, "readers": 3, "batch_size": 2, "window_groups": 2} | others
    return plan_epoch(rows, **arguments)  # type: ignore[arg-type]


def plan_by_shape(rows: Sequence[int], **others: int) -> EpochOrder:
    arguments = {"seed": 7, "epoch": 1, "readers": 3, "batch_size": 2, "window_groups": 2} | others
    shapes = [[shape_of(group, row) for row in range(count)] for group, count in enumerate(rows)]
    return plan_epoch(rows, shapes=shapes, **arguments)


def size_of(group: int, row: int) -> tuple[int, int]:
    stream = np.random.default_rng([group, row])
    height, width = stream.integers(300, 900, size=2)
    return int(height), int(width)


def sizes_of(places: Places) -> np.ndarray:
    return np.array([size_of(group, row) for group, row in places.tolist()], dtype=np.int64).reshape(-1, 2)


def plan_similar(rows: Sequence[int], *, served: Sequence[int] | None = None, **others: int) -> EpochOrder:
    arguments = {"seed": 7, "epoch": 1, "readers": 3, "batch_size": 2, "window_groups": 2} | others
    readers = range(arguments["readers"]) if served is None else served
    return plan_epoch(rows, similar=Similar(sizes_of, readers), **arguments)


def pixels_of_steps(order: EpochOrder) -> tuple[float, float, float]:
    """Pixels of all images, the same with padding, and what all readers would have if each had the largest's."""
    own = padded = slowest = 0.0
    for step in range(order.steps):
        sizes = [sizes_of(order.micro_batch(reader, step)) for reader in range(order.readers)]
        work = [float(len(one) * one.max(axis=0, initial=0).prod()) for one in sizes]
        own, padded = own + sum(float(one.prod(axis=1).sum()) for one in sizes), padded + sum(work)
        slowest += max(work) * len(work)
    return own, padded, slowest


def shape_of(group: int, row: int) -> tuple[int, int]:
    return SHAPES[(5 * group + row) % 3]


def steps_of(order: EpochOrder, reader: int) -> int:
    return len(order.bounds[reader]) - 1


def batches_of(order: EpochOrder, reader: int) -> list[Batch]:
    return [[(g, r) for g, r in order.micro_batch(reader, s).tolist()] for s in range(steps_of(order, reader))]


def images_of(order: EpochOrder, reader: int) -> Batch:
    return list(chain.from_iterable(batches_of(order, reader)))


def everything(order: EpochOrder) -> list[list[Batch]]:
    return [batches_of(order, reader) for reader in range(order.readers)]


@given(
    rows=ROWS,
    readers=st.integers(1, 9),
    batch=st.integers(1, 5),
    window=st.integers(1, 5),
    make=st.sampled_from([plan, plan_by_shape, plan_similar]),
)
@example(rows=[], readers=4, batch=2, window=1, make=plan_by_shape)
@example(rows=[1], readers=4, batch=2, window=1, make=plan)
@example(rows=[], readers=4, batch=2, window=1, make=plan_similar)
def test_an_epoch_has_every_image_once(
    rows: list[int], readers: int, batch: int, window: int, make: Callable[..., EpochOrder]
) -> None:
    order = make(rows, readers=readers, batch_size=batch, window_groups=window)

    taken = [images_of(order, reader) for reader in range(readers)]

    assert sorted(chain.from_iterable(taken)) == [(g, row) for g, count in enumerate(rows) for row in range(count)]
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


@given(rows=ROWS, readers=st.integers(1, 9), batch=st.integers(1, 5), window=st.integers(1, 5))
def test_only_the_last_micro_batch_of_a_reader_is_short(rows: list[int], readers: int, batch: int, window: int) -> None:
    order = plan(rows, readers=readers, batch_size=batch, window_groups=window)

    for reader in range(readers):
        lengths = [len(one) for one in batches_of(order, reader)]
        assert all(length == batch for length in lengths[:-1])
        assert all(1 <= length <= batch for length in lengths[-1:])
    assert order.steps == ceil(ceil(sum(rows) / readers) / batch)


@given(rows=ROWS, readers=st.integers(1, 4), batch=st.integers(1, 5), window=st.integers(1, 5))
def test_with_shapes_the_images_of_a_micro_batch_have_one(
    rows: list[int], readers: int, batch: int, window: int
) -> None:
    order = plan_by_shape(rows, readers=readers, batch_size=batch, window_groups=window)

    for one in chain.from_iterable(everything(order)):
        assert 1 <= len(one) <= batch
        assert len({shape_of(*place) for place in one}) == 1


def test_with_shapes_only_the_last_micro_batch_of_a_shape_in_a_window_is_short() -> None:
    shapes = [[(8, 8), (8, 8), (9, 9), (8, 8), (9, 9), (8, 8), (8, 8)]]

    order = plan_epoch([7], seed=0, epoch=0, readers=1, batch_size=2, window_groups=1, shapes=shapes)

    assert sorted(len(one) for one in batches_of(order, 0)) == [1, 2, 2, 2]


def test_with_shapes_the_micro_batches_of_a_window_come_in_any_order() -> None:
    order = plan_by_shape([30], readers=1)

    shapes = [shape_of(*one[0]) for one in batches_of(order, 0)]

    assert len(list(groupby(shapes))) > 3


@pytest.mark.parametrize("by_shape", [False, True])
def test_a_reader_is_done_with_a_window_before_it_begins_the_next(by_shape: bool) -> None:
    rows = [4] * 12
    make = plan_by_shape if by_shape else plan
    order = make(rows, readers=1, window_groups=3, batch_size=4)

    images = images_of(order, 0)
    windows = [images[start : start + 12] for start in range(0, 48, 12)]

    assert [len({group for group, _ in window}) for window in windows] == [3] * 4
    # shuffled within: the row groups of a window do not come one after the other
    assert all(len(list(groupby(group for group, _ in window))) > 3 for window in windows)


def test_row_groups_are_shuffled() -> None:
    order = plan([1] * 40, readers=1, window_groups=1)

    groups = [group for group, _ in images_of(order, 0)]

    assert groups != sorted(groups)


def test_epochs_and_seeds_give_other_orders_and_the_same_ones_the_same() -> None:
    rows = [4] * 10

    orders = [everything(plan(rows, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]

    assert all(orders[a] != orders[b] for a in range(4) for b in range(a))
    assert everything(plan(rows, seed=1, epoch=0)) == orders[2]


def test_the_order_is_the_same_on_every_machine() -> None:
    order = plan_epoch([3, 2, 4, 1], seed=7, epoch=1, readers=2, batch_size=2, window_groups=2)

    # written down once: a resumed run may be on another machine, with other versions
    assert everything(order) == [
        [[(0, 0), (0, 1)], [(0, 2), (3, 0)], [(2, 0)]],
        [[(1, 1), (2, 2)], [(1, 0), (2, 3)], [(2, 1)]],
    ]


@given(st.integers(1, 12), st.integers(1, 12))
def test_all_workers_together_serve_each_reader_once(workers: int, readers: int) -> None:
    if workers > readers:
        with pytest.raises(ValueError, match="lower --batch-size or raise --effective-batch"):
            served_readers(0, workers, readers)
        return

    served = [list(served_readers(worker, workers, readers)) for worker in range(workers)]

    assert sorted(chain.from_iterable(served)) == list(range(readers))
    assert max(map(len, served)) - min(map(len, served)) <= 1


def test_a_worker_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="worker 2 is not one of 2"):
        served_readers(2, 2, 4)


def test_a_reader_that_has_ended_has_empty_micro_batches() -> None:
    order = plan([3], readers=2, batch_size=1)

    assert (steps_of(order, 0), steps_of(order, 1), order.steps) == (1, 2, 2)
    assert order.micro_batch(0, 1).shape == (0, 2)


@pytest.mark.parametrize("name", ["readers", "batch_size", "window_groups", "seed", "epoch"])
def test_arguments_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name.split("_")[0]):
        plan([3], **{name: -1})


def test_rows_and_shapes_must_fit_each_other() -> None:
    with pytest.raises(ValueError, match="for each image of each row group"):
        plan_epoch([2], seed=0, epoch=0, readers=1, batch_size=1, window_groups=1, shapes=[[(8, 8)]])
    with pytest.raises(ValueError, match="images in a row group: -1"):
        plan([-1])


def test_an_order_travels() -> None:
    order = plan([4, 4])

    assert everything(pickle.loads(pickle.dumps(order))) == everything(order)  # noqa: S301 - our own bytes


def test_streams_of_chance_differ_by_every_number() -> None:
    streams = [
        step_stream(*numbers) for numbers in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    ]

    assert len({int(stream.integers(2**62)) for stream in streams}) == 5
    assert random_stream(3, 4, 5).integers(2**31) == random_stream(3, 4, 5).integers(2**31)


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**40))
def test_a_large_epoch_is_shuffled_evenly(seed: int) -> None:
    order = plan([32] * 500, seed=seed, readers=4, window_groups=8)

    # the mean row group of each reader's images is near the middle: 4 standard errors of 125 groups of 500
    means = [np.mean([group for group, _ in images_of(order, reader)]) for reader in range(4)]
    assert all(abs(mean - 249.5) < 60 for mean in means)


def test_similar_sizes_pad_little_and_leave_no_reader_far_behind() -> None:
    rows = [32] * 128
    settings = {"readers": 8, "batch_size": 4, "window_groups": 16}

    own, padded, slowest = pixels_of_steps(plan_similar(rows, **settings))
    _, mixed_padded, mixed_slowest = pixels_of_steps(plan(rows, **settings))

    assert padded / own < 1.15
    assert slowest / own < 1.25
    assert mixed_padded / own > 1.5  # as drawn
    assert mixed_slowest / own > 1.9


def test_similar_sizes_cut_the_same_micro_batches_for_whoever_serves_a_reader() -> None:
    rows = [7, 5, 9, 6, 8, 7]

    of_all = plan_similar(rows)
    of_one = plan_similar(rows, served=[1])

    assert batches_of(of_one, 1) == batches_of(of_all, 1)
    assert [steps_of(of_one, reader) for reader in range(3)] == [steps_of(of_all, reader) for reader in range(3)]


def test_similar_sizes_meet_other_images_in_another_epoch() -> None:
    rows = [8] * 12

    first, second = ({frozenset(one) for one in batches_of(plan_similar(rows, epoch=epoch), 0)} for epoch in (0, 1))

    assert len(first & second) < len(first) / 4


def test_one_shape_and_similar_sizes_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="either one shape or similar sizes"):
        plan_epoch(
            [1], seed=0, epoch=0, readers=1, batch_size=1, window_groups=1, shapes=[[(1, 1)]],
            similar=Similar(sizes_of, [0]),
        )  # fmt: skip
