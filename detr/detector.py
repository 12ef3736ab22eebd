"""Images in, detections out: the one object that a notebook, the labelling job and the evaluation share."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from detr.batching import order_batches, pad
from detr.checkpoint import load
from detr.folding import folded
from detr.hub_config import IMAGE_MEAN, IMAGE_STD
from detr.images import ImageError, decode, read_header, resize, resize_shape
from detr.model import Detr, outside
from detr.postprocess import Detections, class_thresholds, postprocess, select

Precision = Literal["auto", "fp32", "bf16", "fp16"]
AnyImage = bytes | str | Path | Image.Image | Tensor

WINDOW_IMAGES = 256  # images whose encoded bytes are held at once to be sorted by shape
_NOT_IN_TIFF = {"HSV": "RGB", "RGBa": "RGBA", "La": "LA"}  # modes of PIL images, and which holds the same colours
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image ready for the network: uint8 `(3, h, w)` after the size rule, and its upright (height, width) before."""

    pixels: Tensor
    height: int
    width: int


class Detector:
    """A DETR on a device: callable on one image or many.

    An image is encoded bytes, a path, a PIL image or a uint8 `(3, H, W)` RGB tensor. Encoded and PIL images are turned
    upright by their EXIF orientation; tensors are taken as they are. Images of one call are sorted by shape and padded
    exactly, so that an image gives the same detections alone and among others, to rounding. Safe to share between
    threads only for `prepare`; `detect` wants one thread at a time.
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
            precision: "auto" is bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs.
            threshold: the least score that is kept; 0 keeps all queries.
            classes: names of the classes that are wanted, each with its own threshold or None; None wants all.
            batch_size: images in a batch at most; None is 32 on a GPU and 4 on a CPU.
            name: what messages call the model; None is what it was loaded from.

        Raises:
            CheckpointError: the model cannot be loaded.
            ValueError: an unknown class name, precision or device, or a threshold outside 0..1.
        """
        network = model if isinstance(model, Detr) else load(model)
        self.name = name or ("the model" if isinstance(model, Detr) else str(model))
        self.config = network.config
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.batch_size = batch_size or (4 if self.device.type == "cpu" else 32)
        self.grid = 1 if self.device.type == "cpu" else 32
        self._thresholds = class_thresholds(self.config.categories, threshold, classes=classes, model=self.name)
        self._network = folded(network).to(self.device).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(IMAGE_MEAN, device=self.device).view(3, 1, 1) * 255
        self._std = torch.tensor(IMAGE_STD, device=self.device).view(3, 1, 1) * 255

    @overload
    def __call__(self, images: AnyImage) -> Detections: ...  # type: ignore[overload-overlap]  # bytes: a Sequence
    @overload
    def __call__(self, images: Sequence[AnyImage]) -> list[Detections]: ...
    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Detections | list[Detections]:
        """Return the detections of one image, or of several in the same order.

        Pixels of one batch and the encoded bytes of 256 images are held at a time.

        Raises:
            ImageError: an image cannot be read; its message says which.
        """
        if isinstance(images, (bytes, str, Path, Image.Image, Tensor)):
            return next(self._stream([images]))
        return list(self._stream(images))

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
        return resize_shape(height, width, shorter=self.config.shorter, longest=self.config.longest)

    @torch.inference_mode()
    def detect(self, batch: Sequence[Prepared], *, shape: tuple[int, int] | None = None) -> list[Detections]:
        """Run the network once on a batch, in order.

        Args:
            batch: at least one image.
            shape: (height, width) to pad to; None is the largest height and width of the batch.

        Raises:
            FloatingPointError: the network gave NaN or infinity, as half precision can.
        """
        shapes = [image.pixels.shape[1:] for image in batch]
        height, width = shape or (max(h for h, _ in shapes), max(w for _, w in shapes))
        pixels, extents = pad([image.pixels for image in batch], height, width)
        pixels = pixels.to(self.device, non_blocking=True)
        normalised = (pixels - self._mean) / self._std
        mask = None
        if any(own != (height, width) for own in shapes):
            mask = outside(extents.to(self.device), 1, height, width)
            normalised *= ~mask[:, None]
        with self._autocast():
            output = self._network(normalised, mask, padding="exact")
        sizes = torch.tensor([(image.height, image.width) for image in batch], device=self.device)
        scores, classes, boxes = (values.cpu() for values in postprocess(output, sizes))
        if not (scores.isfinite().all() and boxes.isfinite().all()):  # it would pass for "nothing found"
            raise FloatingPointError(f"{self.name} gives numbers that are none in {self.precision}; try fp32")
        return [
            select(*image, thresholds=self._thresholds, categories=self.config.categories)
            for image in zip(scores, classes, boxes, strict=True)
        ]

    def _stream(self, images: Sequence[AnyImage]) -> Iterator[Detections]:
        remaining = iter(images)
        while window := list(islice(remaining, WINDOW_IMAGES)):
            sources = [_encoded_or_tensor(image) for image in window]
            shapes = [self._shape_of(source, image) for source, image in zip(sources, window, strict=True)]
            found: dict[int, Detections] = {}
            for batch in order_batches(shapes, batch_size=self.batch_size, grid=self.grid):
                prepared = [self._prepare_any(sources[index], window[index]) for index in batch.indices]
                found.update(zip(batch.indices, self.detect(prepared, shape=(batch.height, batch.width)), strict=True))
            yield from (found[index] for index in range(len(window)))

    def _shape_of(self, source: bytes | Tensor, image: AnyImage) -> tuple[int, int]:
        with _naming(image):
            if isinstance(source, Tensor):
                return self.target_shape(source.shape[1], source.shape[2])
            header = read_header(source)
            return self.target_shape(header.height, header.width)

    def _prepare_any(self, source: bytes | Tensor, image: AnyImage) -> Prepared:
        with _naming(image):
            return self.prepare(source if isinstance(source, Tensor) else decode(source))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])


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
        raise ValueError(f"device: {device!r} is none of auto, cpu, cuda, cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} was asked for, but torch {torch.__version__} sees no GPU here")
    return chosen


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return what "auto" means on a device, or the precision that was asked for.

    Raises:
        ValueError: an unknown name.
    """
    if precision == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    for known in ("fp32", "bf16", "fp16"):
        if precision == known:
            return known
    raise ValueError(f"precision: {precision!r} is none of auto, fp32, bf16, fp16")


def _encoded_or_tensor(image: AnyImage) -> bytes | Tensor:
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _NOT_IN_TIFF:
            upright = upright.convert(_NOT_IN_TIFF[upright.mode])
        if upright.mode == "RGB":
            return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
        # other modes take the way of encoded images, which knows about depth, palettes and transparency
        buffer = io.BytesIO()
        upright.save(buffer, "TIFF")
        return buffer.getvalue()
    if isinstance(image, Tensor) and (image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3):
        raise ValueError(f"an image tensor is uint8 (3, H, W), not {image.dtype} {tuple(image.shape)}")
    return image


@contextmanager
def _naming(image: AnyImage) -> Iterator[None]:
    """Put the path of an image, where it has one, before the message of an `ImageError`."""
    try:
        yield
    except ImageError as error:
        if isinstance(image, (str, Path)):
            raise type(error)(f"{image}: {error}") from error
        raise
