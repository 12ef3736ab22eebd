"""Run batches on a device in order, and in smaller parts after it ran out of memory."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch

from detr.batching import HostBatch
from detr.device import DeviceClock
from detr.postprocess import Detections
from detr.precision import Precision

ReadDetections = Callable[[], list[Detections]]
"""Waits for the device and returns the detections of each image of a batch."""
LaunchBatch = Callable[[HostBatch], ReadDetections]
"""Queues a batch on the device; raises `torch.OutOfMemoryError`."""


class PendingDetections:
    """Detections of a batch that the device may still be computing."""

    def __init__(self, reads: Sequence[ReadDetections], seconds: float) -> None:
        self._reads = reads
        self.seconds = seconds
        """Seconds that the calling threads spent to submit the batch, and to wait for it and read the result."""

    def result(self) -> list[Detections]:
        """Wait for the device and return the detections of each image, in order.

        Raises:
            FloatingPointError: the network returned NaN or infinity, as half precision can.
        """
        started = time.perf_counter()
        found = [detections for read in self._reads for detections in read()]
        self.seconds += time.perf_counter() - started
        return found


class Launcher:
    """Runs a network on batches, and halves them permanently if the device runs out of memory. Thread-safe."""

    def __init__(
        self,
        release: Callable[[], None],
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int | None,
    ) -> None:
        """Start with the requested batch size.

        Args:
            release: releases cached memory of the device.
            device: for messages, and for the usual batch size.
            precision: for messages.
            batch_size: largest number of images in a batch; None is 32 on a GPU and 1 on a CPU.

        Raises:
            ValueError: the batch size is below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch size: {batch_size} is less than 1")
        self._release, self._device, self._precision = release, device, precision
        # on a CPU larger batches take more time per image, not less (docs/measurements.md)
        self.batch_size = batch_size or (1 if device.type == "cpu" else 32)
        self.most_images: int | None = None
        """Largest number of images in a batch, after the device ran out of memory with more."""
        self._notes: list[str] = []
        self._turn = threading.Lock()  # the network computes one batch at a time
        self._clock = DeviceClock(device)

    def submit(self, batch: HostBatch, launch: LaunchBatch) -> PendingDetections:
        """Start a network on a batch, in as few parts as the device's memory allows.

        Args:
            batch: at least one image, every slot written.
            launch: the detector's function. Not stored, so that the network's memory is freed with the detector.

        Raises:
            torch.OutOfMemoryError: the device has too little memory for one image.
        """
        with self._turn:
            started = time.perf_counter()
            return PendingDetections(self._launch_in_parts(batch, launch), time.perf_counter() - started)

    def take_notes(self) -> tuple[str, ...]:
        """Return the warnings logged since the last call, for callers without access to the log."""
        with self._turn:
            notes, self._notes = tuple(self._notes), []
        return notes

    def take_busy_seconds(self) -> float:
        """Return the seconds that the device computed for batches whose detections were read since the last call.

        On a GPU this is the time between two events of its stream: with what it waits there for an upload, or for the
        next kernel to be queued, and without the time between batches.
        """
        return self._clock.take()

    def _timed(self, launch: LaunchBatch, batch: HostBatch) -> ReadDetections:
        began = self._clock.mark()
        read = launch(batch)
        ended = self._clock.mark()

        def read_and_add() -> list[Detections]:
            found = read()
            self._clock.add(began, ended)
            return found

        return read_and_add

    def _launch_in_parts(self, batch: HostBatch, launch: LaunchBatch) -> list[ReadDetections]:
        reads: list[ReadDetections] = []
        start = 0
        while start < len(batch):
            part = batch.part(start, start + (self.most_images or len(batch)))
            try:
                reads.append(self._timed(launch, part))
            except torch.OutOfMemoryError as error:
                reason = str(error).partition(". ")[0]
            else:
                start += len(part)
                continue
            # outside the handler, because the error's traceback references the network's tensors
            self._release()
            self._halve(part, reason)
        return reads

    def _halve(self, batch: HostBatch, reason: str) -> None:
        """Halve the batch size because a batch does not fit into the device's memory."""
        height, width = batch.pixels.shape[2:]
        if len(batch) == 1:
            raise torch.OutOfMemoryError(
                f"{self._device} has too little memory for one image of {height} x {width} pixels in "
                f"{self._precision}: {reason}. End other processes that use it, or use a device with more memory."
            )
        self.most_images = len(batch) // 2
        self.batch_size = min(self.batch_size, self.most_images)
        note = (
            f"{self._device} has too little memory for {len(batch)} images of {height} x {width} pixels at once: "
            f"{reason}. The batch size is now {self.most_images}; a smaller --batch-size avoids the failed attempts."
        )
        logging.getLogger(__name__).warning("%s", note)
        self._notes.append(note)
