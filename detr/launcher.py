"""Batches on a device: one after the other, and in smaller parts once its memory was too small."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch

from detr.batching import HostBatch
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
        """Seconds of the calling threads: to submit the batch, and to wait for it and read the result."""

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
    """Gives batches to a network, and halves them for good where the device has too little memory. Thread-safe."""

    def __init__(
        self,
        release: Callable[[], None],
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int | None,
    ) -> None:
        """Begin with the batch size that was asked for.

        Args:
            release: gives unused memory back to the device.
            device: for messages, and for the usual batch size.
            precision: for messages.
            batch_size: images in a batch at most; None is 32 on a GPU and 1 on a CPU.

        Raises:
            ValueError: the batch size is below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch size: {batch_size} is less than 1")
        self._release, self._device, self._precision = release, device, precision
        # on a CPU larger batches take more time an image, not less (docs/measurements.md)
        self.batch_size = batch_size or (1 if device.type == "cpu" else 32)
        self.most_images: int | None = None
        """Images in a batch, once the device's memory was too small for more."""
        self._notes: list[str] = []
        self._turn = threading.Lock()  # the network computes one batch after the other

    def submit(self, batch: HostBatch, launch: LaunchBatch) -> PendingDetections:
        """Start a network on a batch, in as few parts as the device's memory allows.

        Args:
            batch: at least one image, every place written.
            launch: of the detector. Not kept, so that the network's memory is freed with the detector.

        Raises:
            torch.OutOfMemoryError: the device has too little memory for one image.
        """
        with self._turn:
            started = time.perf_counter()
            return PendingDetections(self._launch_in_parts(batch, launch), time.perf_counter() - started)

    def take_notes(self) -> tuple[str, ...]:
        """Return the warnings that were logged since the last call, for callers that do not see the log."""
        with self._turn:
            notes, self._notes = tuple(self._notes), []
        return notes

    def _launch_in_parts(self, batch: HostBatch, launch: LaunchBatch) -> list[ReadDetections]:
        reads: list[ReadDetections] = []
        start = 0
        while start < len(batch):
            part = batch.part(start, start + (self.most_images or len(batch)))
            try:
                reads.append(launch(part))
            except torch.OutOfMemoryError as error:
                reason = str(error).partition(". ")[0]
            else:
                start += len(part)
                continue
            # outside of the handler, because the error's traceback holds the network's tensors
            self._release()
            self._halve(part, reason)
        return reads

    def _halve(self, batch: HostBatch, reason: str) -> None:
        """Remember that a batch does not fit into the device's memory."""
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
