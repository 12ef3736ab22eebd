"""The detector that notebooks, the labelling job and the evaluation use: images in, detections out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from detr.batching import Batch, HostBatch, Prepared, order_batches
from detr.checkpoints.checkpoint import fingerprint, load
from detr.classes import Category
from detr.device import float32_arithmetic, transfer_for
from detr.families import NATIVE
from detr.folding import folded
from detr.image_stream import detect_batch, detect_images
from detr.images.decoding import resize
from detr.images.inputs import AnyImage
from detr.launcher import Launcher, PendingDetections, ReadDetections
from detr.model import Detr, outside
from detr.onednn import use_onednn
from detr.postprocess import Detections, class_thresholds, postprocess, rank, read_detections
from detr.precision import Precision, auto_precision
from detr.size_rule import SizeRule

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Detector:
    """A DETR on a device: callable on one image or many.

    An image is encoded bytes (`bytes`, `bytearray`, `memoryview`), a path, a binary file that is open for reading, a
    PIL image, a uint8 `(3, H, W)` RGB tensor or a uint8 `(H, W, 3)` RGB array of numpy. Encoded and PIL images are
    turned upright by their EXIF orientation; tensors and arrays are used unchanged. A file is read from its current
    position to its end, and not closed. Images of one call are sorted by shape and padded exactly, so that an image
    gives the same detections alone and among others, to rounding. Threads may share a detector.

    While the network computes, `float32_arithmetic` sets the precision of float32 for the whole process.
    """

    family = NATIVE

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
            threshold: the minimum score to keep; 0 keeps all queries.
            classes: names of the classes to keep, each with its own threshold or None; None keeps all.
            batch_size: largest number of images in a batch; None is 32 on a GPU and 1 on a CPU. If the device runs out
                of memory, the detector halves it permanently and logs a warning.
            name: name of the model in error messages; None is what it was loaded from.

        Raises:
            CheckpointError: the model cannot be loaded.
            ValueError: an unknown class name, precision or device, a threshold outside 0..1, or a batch size below 1.
        """
        network = model if isinstance(model, Detr) else load(model)
        self.name = name or ("the model" if isinstance(model, Detr) else str(model))
        self.config = network.config
        # hashing 160 MB takes 0.2 s, and evaluation during training does not need it
        self.identity = None if isinstance(model, Detr) else fingerprint(network)
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self._transfer = transfer_for(self.device)
        self._launcher = Launcher(
            self._transfer.release, device=self.device, precision=self.precision, batch_size=batch_size
        )
        self._thresholds = class_thresholds(self.config.categories, threshold, classes=classes, model=self.name).to(
            self.device
        )
        self._network = folded(network).to(self.device).to(memory_format=torch.channels_last)
        self._network.cast_weights(_DTYPES[self.precision])
        if self.device.type == "cpu":
            use_onednn(self._network)  # last, because its effect depends on the dtype of the weights
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

        Threads decode images ahead of the network. The pixels of a few batches and the encoded bytes of 256 images are
        in memory at a time.

        Raises:
            ImageError: an image cannot be read; its message says which.
            TypeError: an image is of an unsupported type.
            ValueError: a tensor or an array does not have the shape or dtype of an image.
        """
        return detect_images(self, images)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes of the model by their index in the network."""
        return self.config.categories

    @property
    def size_rule(self) -> SizeRule:
        """The size rule of `prepare`."""
        return self.config.size_rule

    @property
    def batch_size(self) -> int:
        """Largest number of images in a batch; halved if the device runs out of memory."""
        return self._launcher.batch_size

    @batch_size.setter
    def batch_size(self, images: int) -> None:
        self._launcher.batch_size = images

    def batches(self, shapes: Sequence[tuple[int, int]]) -> list[Batch]:
        """Group images into batches by the (height, width) that `target_shape` returns for each."""
        return order_batches(shapes, batch_size=self.batch_size)

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

        Decoding threads write their images to it, so that the device does not wait for copies.
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
        return detect_batch(self, batch, shape)

    def submit(self, batch: HostBatch) -> PendingDetections:
        """Start the network on a batch; on a GPU, return before it finishes.

        If the device runs out of memory, `batch_size` is halved until the batch fits in parts.

        Args:
            batch: made by `host_batch`, at least one image, every slot written. It must not be written again.

        Raises:
            torch.OutOfMemoryError: the device has too little memory for one image.
        """
        return self._launcher.submit(batch, self._launch)

    def take_notes(self) -> tuple[str, ...]:
        """Return the warnings logged since the last call, for callers without access to the log."""
        return self._launcher.take_notes()

    def take_busy_seconds(self) -> float:
        """Return the seconds that the device computed; see `Launcher.take_busy_seconds`."""
        return self._launcher.take_busy_seconds()

    def read(self, ranked: Tensor) -> list[Detections]:
        """Return the detections of each image of `detr.postprocess.rank`'s result.

        Raises:
            FloatingPointError: it holds NaN or infinity.
        """
        if not ranked.isfinite().all():  # would otherwise look like "nothing found"
            raise not_finite(self.name, self.precision)
        return read_detections(ranked, self.config.categories)

    @torch.no_grad()
    def _launch(self, batch: HostBatch) -> ReadDetections:
        """Queue a batch on the device without waiting."""
        pixels, sizes = self._transfer.upload(batch.pixels, batch.sizes)
        with float32_arithmetic(tf32=self.precision == "tf32"):
            extents = sizes[:, :2] if batch.is_padded else None
            output = self._network.detect(self._normalised(pixels, extents), extents, auxiliary=False)
            ranked = rank(*postprocess(output, sizes[:, 2:]), self._thresholds)
        download = self._transfer.download(ranked)
        return lambda: self.read(download.result())

    def _normalised(self, pixels: Tensor, extents: Tensor | None) -> Tensor:
        """Normalise uint8 pixels for the network: zero on padding, in its dtype and memory format."""
        normalised = torch.addcmul(self._shift, pixels, self._scale).to(_DTYPES[self.precision])
        if extents is not None:
            normalised *= ~outside(extents, 1, *pixels.shape[2:])[:, None]
        return normalised.contiguous(memory_format=torch.channels_last)


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device that a name means; a GPU with its number.

    Raises:
        ValueError: the name is not one of auto, cpu, cuda, cuda:N, or this machine has no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    unknown = f"device: {device!r} is not one of auto, cpu, cuda, cuda:N"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(unknown) from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(unknown)
    if chosen.type == "cpu":
        return chosen
    if not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} was requested, but torch {torch.__version__} finds no GPU")
    # with its number, because "cuda" means another GPU in a thread with another current device
    if chosen == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())
    last = torch.cuda.device_count() - 1
    if chosen.index > last:
        raise ValueError(f"device: {device!r} was requested, but the last GPU of this machine is cuda:{last}")
    return chosen


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return the precision that "auto" means on a device, or the requested precision.

    Raises:
        ValueError: an unknown name.
    """
    if precision == "auto":
        return auto_precision(device.type)
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision: tf32 needs a GPU, but the device is {device}; use fp32")
    for known in ("fp32", "tf32", "bf16", "fp16"):
        if precision == known:
            return known
    raise ValueError(f"precision: {precision!r} is not one of auto, fp32, tf32, bf16, fp16")


def not_finite(name: str, precision: Precision) -> FloatingPointError:
    """Return the error for NaN or infinite results in a precision."""
    advice = {
        "fp16": "use precision bf16 or fp32: its values may be too large for fp16",
        "bf16": "use precision fp32",
    }.get(precision, "its weights are damaged, or its training diverged")
    return FloatingPointError(f"{name} produced NaN or infinite values in {precision}; {advice}")
