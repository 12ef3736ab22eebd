"""Training batches from shards, read, decoded and augmented by threads of the worker."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np

from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError
from pipelines.shards.reader import TrainingImage
from pipelines.training.batch import Preparation, TrainBatch, UnusableImage
from pipelines.training.order import EpochOrder, Places
from pipelines.training.row_groups import RowGroups

FETCH_THREADS: Final = 4  # row groups to fetch concurrently
# steps that are fetched before they are decoded, because a new window begins with many new row groups
FETCH_AHEAD_STEPS: Final = 8

_Fetched = Future[dict[int, TrainingImage]]


def train_batches(
    groups: RowGroups,
    order: EpochOrder,
    preparation: Preparation,
    *,
    epoch: int,
    readers: Sequence[int],
    first_step: int = 0,
    end_step: int | None = None,
    threads: int = 1,
    prefetch_steps: int = 2,
) -> Generator[list[TrainBatch], None, None]:
    """Yield, step by step, the micro-batches of the given readers. Readers that have ended are omitted.

    The result is determined by order, preparation and epoch. Each reader reads a row group once and releases images
    after use. Memory: for each reader the encoded images of a window of row groups, and the decoded images of
    `prefetch_steps` + 1 steps. Threads run until the iterator ends or is closed; `close` may wait for a store that does
    not answer until its client gives up.

    Args:
        groups: Row groups of the shards for which the order was planned.
        order: Order of this epoch.
        preparation: How images are prepared.
        epoch: Number of the epoch.
        readers: Virtual readers of this worker.
        first_step: First step; earlier images are not read.
        end_step: Step before which to end; None means the end of the epoch.
        threads: Threads that decode and augment.
        prefetch_steps: Steps to prepare ahead.

    Raises:
        RayDetrError: reading failed, a shard is damaged, or an image cannot be used.
        ValueError: `threads` or `prefetch_steps` is out of range.
    """
    if threads < 1 or prefetch_steps < 0:
        raise ValueError(f"{threads} threads and {prefetch_steps} steps of prefetch: give at least 1 and 0")
    end_step = order.steps if end_step is None else end_step
    clock = _Closable()
    fetchers = ThreadPoolExecutor(FETCH_THREADS, "ingest-fetch")
    preparers = ThreadPoolExecutor(threads, "ingest-prepare")
    windows = [_Window(groups, order, reader, first_step, end_step, fetchers, clock) for reader in readers]

    def prepare(images: Sequence[tuple[_Fetched, int]], places: Places, reader: int, step: int) -> TrainBatch:
        taken = [fetched.result().pop(row) for fetched, row in images]  # popped: it is used once in an epoch
        try:
            return preparation.prepare(taken, epoch=epoch, step=step, reader=reader)
        except UnusableImage as error:
            raise RayDetrError(f"{groups.name(int(places[error.index, 0]))}: {error.message}") from error

    def ask(step: int) -> list[Future[TrainBatch]]:
        batches = []
        for window in windows:
            window.fetch_until(step + FETCH_AHEAD_STEPS)
            places = order.micro_batch(window.reader, step)
            if len(places):
                batches.append(preparers.submit(prepare, window.take(places), places, window.reader, step))
        return batches

    try:
        asked: deque[list[Future[TrainBatch]]] = deque()
        for step in range(first_step, end_step):
            asked.append(ask(step))
            if len(asked) > prefetch_steps:
                yield [batch.result() for batch in asked.popleft()]
        while asked:
            yield [batch.result() for batch in asked.popleft()]
    finally:
        clock.close()
        fetchers.shutdown(wait=False, cancel_futures=True)  # first: threads that prepare may be waiting for it
        preparers.shutdown(cancel_futures=True)
        fetchers.shutdown()


class _Window:
    """The row groups that a reader uses at present: requested before their first use, released after the last."""

    def __init__(
        self,
        groups: RowGroups,
        order: EpochOrder,
        reader: int,
        first_step: int,
        end_step: int,
        fetchers: ThreadPoolExecutor,
        clock: _Closable,
    ) -> None:
        self.reader = reader
        self._groups, self._order, self._fetchers, self._clock = groups, order, fetchers, clock
        self._next_step = first_step
        self._end_step = end_step
        self._fetched: dict[int, _Fetched] = {}
        self._wanted = _rows_by_group(order, reader, first_step, end_step)
        self._left = {group: len(rows) for group, rows in self._wanted.items()}

    def fetch_until(self, step: int) -> None:
        """Request the row groups of all steps up to this one."""
        for wanted in range(self._next_step, min(step + 1, self._end_step)):
            for group in self._order.micro_batch(self.reader, wanted)[:, 0].tolist():
                if group in self._wanted:
                    self._fetched[group] = self._fetchers.submit(self._fetch, group, self._wanted.pop(group))
            self._next_step = wanted + 1

    def take(self, places: Places) -> list[tuple[_Fetched, int]]:
        """Return the future row group of each image, and its row in it."""
        images = []
        for group, row in places.tolist():
            images.append((self._fetched[group], row))
            self._left[group] -= 1
            if not self._left[group]:
                del self._fetched[group]
        return images

    def _fetch(self, group: int, rows: Places) -> dict[int, TrainingImage]:
        images = self._groups.read(group, clock=self._clock)
        return {row: images[row] for row in rows.tolist()}  # other rows belong to another reader, or are used already


def _rows_by_group(order: EpochOrder, reader: int, first_step: int, end_step: int) -> dict[int, Places]:
    """Return the rows that a reader needs within these steps, by row group."""
    bounds = order.bounds[reader]
    last = len(bounds) - 1
    places = order.places[bounds[min(first_step, last)] : bounds[min(end_step, last)]]
    places = places[np.argsort(places[:, 0], kind="stable")]
    groups, starts = np.unique(places[:, 0], return_index=True)
    return dict(zip(groups.tolist(), np.split(places[:, 1], starts[1:]), strict=True)) if len(groups) else {}


class _Closed(Exception):
    """The iterator is being closed, so that this thread must stop waiting."""


class _Closable(SystemClock):
    """A clock whose sleeping threads can be woken, after which it does not sleep any more."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()

    def sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise _Closed
