"""Images in, detections out: the one object that a notebook, the labelling job and the evaluation share."""

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import cast, overload

import torch
from torch import Tensor

from detr.batching import Batch, HostBatch, Prepared, ahead, order_batches
from detr.checkpoints.checkpoint import load
from detr.device import Download, float32_arithmetic, transfer_for
from detr.folding import folded
from detr.fused_cpu import fuse_convolutions
from detr.images.decoding import decode, read_header, resize
from detr.images.inputs import AnyImage, encoded_or_tensor, is_image, naming, not_an_image
from detr.model import Detr, outside
from detr.postprocess import Detections, class_thresholds, postprocess, rank, read_detections
from detr.precision import Precision, auto_precision

WINDOW_IMAGES = 256  # images whose encoded bytes are held at once to be sorted by shape
BATCHES_AHEAD = 2  # batches that are decoded while one is in the network
DECODE_THREADS = min(8, os.cpu_count() or 1)  # of `Detector.__call__`
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PendingDetections:
    """Detections of a batch that the device may still be computing."""

    def __init__(self, detector: "Detector", downloads: Sequence[Download], seconds: float) -> None:
        self._detector, self._downloads = detector, downloads
        self.seconds = seconds
        """Seconds of the calling threads: to submit the batch, and to wait for it and read the result."""

    def result(self) -> list[Detections]:
        """Wait for the device and return the detections of each image, in order.

        Raises:
            FloatingPointError: the network returned NaN or infinity, as half precision can.
        """
        started = time.perf_counter()
        found: list[Detections] = []
        for download in self._downloads:
            found += self._detector.read(download.result())
        self.seconds += time.perf_counter() - started
        return found


class Detector:
    """A DETR on a device: callable on one image or many.

    An image is encoded bytes (`bytes`, `bytearray`, `memoryview`), a path, a binary file that is open for reading, a
    PIL image, a uint8 `(3, H, W)` RGB tensor or a uint8 `(H, W, 3)` RGB array of numpy. Encoded and PIL images are
    turned upright by their EXIF orientation; tensors and arrays are taken as they are. A file is read from where it
    stands to its end, and not closed. Images of one call are sorted by shape and padded
    exactly, so that an image gives the same detections alone and among others, to rounding. Threads may share a
    detector.

    While a batch is in the network, `float32_arithmetic` sets how exact float32 is, for the whole process.
    """

    def __init__(
        self,
        model: Detr | str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        threshold: float = 0.05,
        classes: Mapping[str, float | None] | None = None,
        batch_size: int | None = None,
        name: str | None = None,
    ) -> None:
        """Put a model on a device.

        Args:
            model: a network, or anything that `detr.load` takes.
            device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1" ...
            precision: "auto" is fp16 on GPUs and fp32 on CPUs. "fp32" is exact float32; "tf32" lets a GPU round the
                operands of convolutions and matrix products to 10 bits of mantissa. "bf16" and "fp16" compute all but
                the heads in half precision. bf16 rounds 8 times as coarsely as fp16 and cannot overflow.
            threshold: the least score that is kept; 0 keeps all queries.
            classes: names of the classes that are wanted, each with its own threshold or None; None wants all.
            batch_size: images in a batch at most; None is 32 on a GPU and 1 on a CPU. Where the device's memory is too
                small for it, the detector halves it for good, and logs a warning.
            name: what messages call the model; None is what it was loaded from.

        Raises:
            CheckpointError: the model cannot be loaded.
            ValueError: an unknown class name, precision or device, a threshold outside 0..1, or a batch size below 1.
        """
        network = model if isinstance(model, Detr) else load(model)
        self.name = name or ("the model" if isinstance(model, Detr) else str(model))
        self.config = network.config
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch size: {batch_size} is less than 1")
        # on a CPU larger batches take more time an image, not less (docs/measurements.md)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 32)
        self.grid = 1 if self.device.type == "cpu" else 32
        self._thresholds = class_thresholds(self.config.categories, threshold, classes=classes, model=self.name).to(
            self.device
        )
        self._network = folded(network).to(self.device).to(memory_format=torch.channels_last)
        self._network.cast_weights(_DTYPES[self.precision])
        if self.device.type == "cpu":
            fuse_convolutions(self._network)  # last: what it does depends on the dtype of the weights
        self._transfer = transfer_for(self.device)
        self._notes: list[str] = []
        self._most_images: int | None = None  # in a batch, once the device's memory was too small for more
        self._turn = threading.Lock()  # the network computes one batch after the other
        mean, std = (
            torch.tensor(values).view(3, 1, 1) * 255 for values in (self.config.image_mean, self.config.image_std)
        )
        self._scale, self._shift = (1 / std).to(self.device), (-mean / std).to(self.device)

    @overload
    def __call__(self, images: AnyImage) -> Detections: ...  # type: ignore[overload-overlap]  # bytes: a Sequence
    @overload
    def __call__(self, images: Sequence[AnyImage]) -> list[Detections]: ...
    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Detections | list[Detections]:
        """Return the detections of one image, or of several in the same order.

        Images are decoded in threads, ahead of the network. The pixels of a few batches and the encoded bytes of 256
        images are held at a time.

        Raises:
            ImageError: an image cannot be read; its message says which.
            TypeError: an image is of a type that is not taken.
            ValueError: a tensor or an array has another shape or type than those of an image.
        """
        if is_image(images):
            return self.detect([self._prepare_any(encoded_or_tensor(images), images)])[0]
        if not isinstance(images, Iterable):
            raise not_an_image(images)
        return list(self._stream(cast("Iterable[AnyImage]", images)))

    def prepare(self, image: Tensor) -> Prepared:
        """Resize an upright uint8 `(3, H, W)` RGB image by the size rule of the model.

        Raises:
            TooExtreme: a side would become 0 pixels.
        """
        height, width = image.shape[1:]
        return Prepared(resize(image, *self.target_shape(height, width)), height, width)

    def target_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that the network sees of an upright image of `height` x `width` pixels.

        Raises:
            TooExtreme: a side would become 0 pixels.
        """
        return self.config.size_rule.shape(height, width)

    def host_batch(self, count: int, height: int, width: int) -> HostBatch:
        """Return host memory for a batch of `count` images padded to `height` x `width` pixels.

        Threads that decode write their images there, so that nothing is copied while the device waits.
        """
        return HostBatch.allocate(count, height, width, self._transfer.memory)

    def detect(self, batch: Sequence[Prepared], *, shape: tuple[int, int] | None = None) -> list[Detections]:
        """Run the network once on a batch, in order.

        Args:
            batch: at least one image.
            shape: (height, width) to pad to; None is the largest height and width of the batch.

        Raises:
            FloatingPointError: the network returned NaN or infinity, as half precision can.
            torch.OutOfMemoryError: as `submit`.
        """
        shapes = [image.pixels.shape[1:] for image in batch]
        height, width = shape or (max(h for h, _ in shapes), max(w for _, w in shapes))
        host = self.host_batch(len(batch), height, width)
        for place, image in enumerate(batch):
            host.write(place, image)
        return self.submit(host).result()

    def submit(self, batch: HostBatch) -> PendingDetections:
        """Start the network on a batch; on a GPU, return before it is done.

        Where the device has too little memory, `batch_size` is halved until the batch fits in parts.

        Args:
            batch: of `host_batch`, at least one image, every place written. It must not be written again.

        Raises:
            torch.OutOfMemoryError: the device has too little memory for one image.
        """
        with self._turn:
            started = time.perf_counter()
            return PendingDetections(self, self._launch_in_parts(batch), time.perf_counter() - started)

    def take_notes(self) -> tuple[str, ...]:
        """Return the warnings that were logged since the last call of this, for whoever does not see the log."""
        with self._turn:
            notes, self._notes = tuple(self._notes), []
        return notes

    def read(self, ranked: Tensor) -> list[Detections]:
        """Return the detections of each image of `detr.postprocess.rank`'s result.

        Raises:
            FloatingPointError: it holds NaN or infinity.
        """
        if not ranked.isfinite().all():  # it would pass for "nothing found"
            advice = {
                "fp16": "use precision bf16 or fp32: its values may be too large for fp16",
                "bf16": "use precision fp32",
            }.get(self.precision, "its weights are damaged, or its training diverged")
            raise FloatingPointError(f"{self.name} produced NaN or infinite values in {self.precision}; {advice}")
        return read_detections(ranked, self.config.categories)

    def _launch_in_parts(self, batch: HostBatch) -> list[Download]:
        """Queue a batch in as few parts as the device's memory allows."""
        downloads: list[Download] = []
        start = 0
        while start < len(batch):
            part = batch.part(start, start + (self._most_images or len(batch)))
            try:
                downloads.append(self._launch(part))
            except torch.OutOfMemoryError as error:
                reason = str(error).partition(". ")[0]
            else:
                start += len(part)
                continue
            # outside of the handler, because the error's traceback holds the network's tensors
            self._transfer.release()
            self._halve(part, reason)
        return downloads

    def _halve(self, batch: HostBatch, reason: str) -> None:
        """Remember that a batch does not fit into the device's memory."""
        height, width = batch.pixels.shape[2:]
        if len(batch) == 1:
            raise torch.OutOfMemoryError(
                f"{self.device} has too little memory for one image of {height} x {width} pixels in {self.precision}: "
                f"{reason}. End other processes that use it, or use a device with more memory."
            )
        self._most_images = len(batch) // 2
        self.batch_size = min(self.batch_size, self._most_images)
        note = (
            f"{self.device} has too little memory for {len(batch)} images of {height} x {width} pixels at once: "
            f"{reason}. The batch size is now {self._most_images}; a smaller --batch-size avoids the failed attempts."
        )
        logging.getLogger(__name__).warning("%s", note)
        self._notes.append(note)

    @torch.no_grad()
    def _launch(self, batch: HostBatch) -> Download:
        """Queue a batch on the device. The calling thread waits for nothing."""
        pixels, sizes = self._transfer.upload(batch.pixels, batch.sizes)
        with float32_arithmetic(tf32=self.precision == "tf32"):
            extents = sizes[:, :2] if batch.is_padded else None
            normalised = torch.addcmul(self._shift, pixels, self._scale).to(_DTYPES[self.precision])
            if extents is not None:
                normalised *= ~outside(extents, 1, *pixels.shape[2:])[:, None]
            normalised = normalised.contiguous(memory_format=torch.channels_last)
            output = self._network.detect(normalised, extents, auxiliary=False)
            ranked = rank(*postprocess(output, sizes[:, 2:]), self._thresholds)
        return self._transfer.download(ranked)

    def _stream(self, images: Iterable[AnyImage]) -> Iterator[Detections]:
        remaining = iter(images)
        with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode") as decoders:
            while window := list(islice(remaining, WINDOW_IMAGES)):
                yield from self._detect_window(window, decoders)

    def _detect_window(self, window: Sequence[AnyImage], decoders: ThreadPoolExecutor) -> list[Detections]:
        """Return the detections of images that are sorted by shape together; decoding runs ahead of the network."""
        sources = [encoded_or_tensor(image) for image in window]
        shapes = [self._shape_of(source, image) for source, image in zip(sources, window, strict=True)]

        def write(host: HostBatch, place: int, index: int) -> None:
            host.write(place, self._prepare_any(sources[index], window[index]))

        def begin_decoding(batch: Batch) -> tuple[Batch, HostBatch, list[Future[None]]]:
            host = self.host_batch(len(batch.indices), batch.height, batch.width)
            written = [decoders.submit(write, host, place, index) for place, index in enumerate(batch.indices)]
            return batch, host, written

        def begin_detecting(
            decoded: tuple[Batch, HostBatch, list[Future[None]]],
        ) -> tuple[Sequence[int], PendingDetections]:
            batch, host, written = decoded
            for future in written:
                future.result()
            return batch.indices, self.submit(host)

        batches = order_batches(shapes, batch_size=self.batch_size, grid=self.grid)
        found: dict[int, Detections] = {}
        for indices, pending in ahead(ahead(batches, begin_decoding, BATCHES_AHEAD), begin_detecting, 1):
            found.update(zip(indices, pending.result(), strict=True))
        return [found[index] for index in range(len(window))]

    def _shape_of(self, source: bytes | Tensor, image: AnyImage) -> tuple[int, int]:
        with naming(image):
            if isinstance(source, Tensor):
                return self.target_shape(source.shape[1], source.shape[2])
            header = read_header(source)
            return self.target_shape(header.height, header.width)

    def _prepare_any(self, source: bytes | Tensor, image: AnyImage) -> Prepared:
        with naming(image):
            return self.prepare(source if isinstance(source, Tensor) else decode(source))


def choose_device(device: str) -> torch.device:
    """Return the device that a name means.

    Raises:
        ValueError: the name is no device, or there is none of its kind.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is not one of auto, cpu, cuda, cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} was asked for, but torch {torch.__version__} finds no GPU")
    return chosen


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return what "auto" means on a device, or the precision that was asked for.

    Raises:
        ValueError: an unknown name.
    """
    if precision == "auto":
        return auto_precision(device.type)
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision: only GPUs have tf32, the device is {device}; use fp32")
    for known in ("fp32", "tf32", "bf16", "fp16"):
        if precision == known:
            return known
    raise ValueError(f"precision: {precision!r} is not one of auto, fp32, tf32, bf16, fp16")
