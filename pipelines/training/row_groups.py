"""The row groups of all training shards, numbered consecutively."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from pipelines.clock import Clock
from pipelines.errors import RayDetrError
from pipelines.shards.reader import ShardIndex, ShardReader, TrainingImage
from pipelines.store import Store, StoreError, is_transient, join_uri
from pipelines.store.retry import retry

# beyond the retries of the store's client: a restarted store costs time, but not the run
OUTAGE_SECONDS: Final = 300.0


class RowGroups:
    """All row groups of the shards, numbered file by file. Can be used by several threads.

    Args:
        store: The store of the shards.
        index: The index of the shards.
        outage_seconds: How long to retry if the store does not answer, before the run stops.
    """

    def __init__(self, store: Store, index: ShardIndex, *, outage_seconds: float = OUTAGE_SECONDS) -> None:
        self.rows: Final = tuple(rows for file in index.files for rows in file.row_groups)
        self._uri, self._index, self._outage_seconds = store.uri, index, outage_seconds
        self._reader = ShardReader(store, index)
        self._places = [
            (number, group) for number, file in enumerate(index.files) for group in range(len(file.row_groups))
        ]

    def name(self, number: int) -> str:
        """Return the URI of a row group's shard, for messages."""
        return join_uri(self._uri, self._index.files[self._places[number][0]].key)

    def sizes(self) -> list[list[tuple[int, int]]]:
        """Return (height, width) of every image of every row group, without reading images.

        Raises:
            RayDetrError: a shard is damaged, or reading failed.
        """
        try:
            return retry(self._reader.read_sizes, budget_seconds=self._outage_seconds, is_retryable=is_transient)
        except StoreError as error:
            raise RayDetrError(_unreadable(error)) from error

    def image_ids(self) -> list[list[int]]:
        """Return the id of every image of every row group, without reading images.

        Raises:
            RayDetrError: a shard is damaged, or reading failed.
        """
        try:
            return retry(self._reader.read_image_ids, budget_seconds=self._outage_seconds, is_retryable=is_transient)
        except StoreError as error:
            raise RayDetrError(_unreadable(error)) from error

    def read(self, number: int, *, clock: Clock | None = None) -> list[TrainingImage]:
        """Read the images of a row group in one request or a few; transient errors are retried.

        Raises:
            RayDetrError: the shard is damaged, or reading failed.
        """
        file, group = self._places[number]
        try:
            return retry(
                lambda: self._reader.read_group(file, group),
                budget_seconds=self._outage_seconds,
                is_retryable=is_transient,
                clock=clock,
            )
        except StoreError as error:
            raise RayDetrError(_unreadable(error)) from error


def evaluation_images(groups: RowGroups, worker: int, workers: int) -> Generator[TrainingImage, None, None]:
    """Yield the images of this worker in whole row groups, so that all workers together read each image once.

    Memory: two row groups, because the next one is read while one is used.

    Raises:
        RayDetrError: a shard is damaged, or reading failed.
        ValueError: there is no such worker.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} is not one of {workers}")
    ahead: deque[Future[list[TrainingImage]]] = deque()
    with ThreadPoolExecutor(1, "read") as pool:
        for number in range(worker, len(groups.rows), workers):
            ahead.append(pool.submit(groups.read, number))
            if len(ahead) == 2:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _unreadable(error: StoreError) -> str:
    """Return a sentence; the store's message has the shard's name."""
    return f"{str(error).rstrip('.')}. Run the same command again to resume from the newest checkpoint."
