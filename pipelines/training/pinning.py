"""Copies training batches to pinned memory in a separate thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from pipelines.training.batch import TrainBatch

STEPS_AHEAD: Final = 1  # steps that are pinned in advance
WAKE_SECONDS: Final = 0.1  # between two checks whether the batches are still needed
CLOSE_SECONDS: Final = 5.0  # time that closing waits for a thread that is reading; the thread ends later

Batches = Generator[list[TrainBatch], None, None]


def pinned_batches(batches: Batches) -> Batches:
    """Yield the same batches with pixels in pinned memory, so that copies to a GPU do not block the host.

    A thread reads and copies `batches` one step ahead. Its errors are raised here. Only that thread uses `batches`; it
    closes them at their end, or when this generator is closed.

    Raises:
        BaseException: the errors of `batches`.
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
