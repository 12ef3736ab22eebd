"""Copies training batches to pinned memory in a separate thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from pipelines.training.batch import TrainBatch

STEPS_AHEAD: Final = 1  # that are pinned and not asked for yet
WAKE_SECONDS: Final = 0.1  # from one look whether the batches are still wanted to the next
CLOSE_SECONDS: Final = 5.0  # that closing waits for a thread that is reading; it ends by itself later

Batches = Generator[list[TrainBatch], None, None]


def pinned_batches(batches: Batches) -> Batches:
    """Yield the same batches, with pixels in pinned memory: a GPU copies from there while the host goes on.

    A thread takes `batches` and copies, one step ahead; what it raises is raised here, in its place. Only that thread
    uses `batches`, and it closes them, when they have ended or when this generator is closed.

    Raises:
        BaseException: what `batches` raise.
    """
    ready: queue.Queue[list[TrainBatch] | BaseException | None] = queue.Queue(STEPS_AHEAD)
    closed = threading.Event()

    def put(item: list[TrainBatch] | BaseException | None) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=WAKE_SECONDS)
                return

    def pin() -> None:
        try:
            for step in batches:
                put([replace(batch, pixels=batch.pixels.pin_memory()) for batch in step])
                if closed.is_set():
                    break
            batches.close()
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that trains
            put(error)

    thread = threading.Thread(target=pin, name="pin-batches", daemon=True)
    thread.start()
    try:
        while (step := ready.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        closed.set()
        thread.join(CLOSE_SECONDS)
