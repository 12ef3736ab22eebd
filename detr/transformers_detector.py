"""A detector of `transformers` on a device, with the interface of `detr.detector.Detector`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from detr.batching import Batch, HostBatch, Prepared, equal_batches
from detr.detector import choose_device, choose_precision, not_finite
from detr.device import float32_arithmetic, transfer_for
from detr.image_stream import detect_batch, detect_images
from detr.images.inputs import AnyImage
from detr.launcher import Launcher, PendingDetections, ReadDetections
from detr.model import outside
from detr.onednn import use_onednn_layers
from detr.postprocess import Detections, class_thresholds
from detr.precision import Precision, family_precision
from detr.size_rule import SizeRule
from detr.transformers_model import TransformersModel

SHAPES_KEPT = 65_536  # picture sizes whose target shape is cached
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Parts of the names of modules that compute scores, boxes, and reference points of boxes, in every family.
_HEADS = ("bbox", "class", "score", "lqe", "integral", "ref_point", "reference_points", "decoder_input_proj")


class TransformersDetector:
    """A detector of `transformers` on a device: callable on one image or many, like `detr.detector.Detector`.

    The model's own image processor resizes, normalises and converts outputs to boxes. Only images of equal shape form a
    batch, without padding, so detections do not depend on the other images, up to rounding. Scores and boxes equal
    those of that library's `pipeline("object-detection")` in float32, before it rounds boxes to whole pixels.
    Thread-safe.
    """

    size_rule: SizeRule | None = None
    """None: only the image processor defines how pictures are resized."""

    def __init__(
        self,
        model: TransformersModel,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        threshold: float = 0.05,
        classes: Mapping[str, float | None] | None = None,
        batch_size: int | None = None,
        name: str | None = None,
    ) -> None:
        """Put a model on a device; it must not be used elsewhere afterwards.

        Args:
            model: of `detr.transformers_model.load_transformers_model`.
            device: as for `Detector`.
            precision: as for `Detector`, but "auto" is fp32 on every device. "bf16" and "fp16" compute products and
                convolutions in half precision (PyTorch's autocast), all heads in float32.
            threshold: the minimum score to keep; 0 keeps all results of the model's processor.
            classes: as for `Detector`.
            batch_size: as for `Detector`.
            name: name of the model in error messages; None is what it was loaded from.

        Raises:
            ValueError: an unknown class name, precision or device, a threshold outside 0..1, or a batch size below 1.
        """
        self.name = name or model.name
        self.identity, self.categories, self.family = model.identity, model.categories, model.family
        self.device = choose_device(device)
        self.precision = choose_precision(family_precision(precision), self.device)
        self._transfer = transfer_for(self.device)
        self._launcher = Launcher(
            self._transfer.release, device=self.device, precision=self.precision, batch_size=batch_size
        )
        self._thresholds = class_thresholds(model.categories, threshold, classes=classes, model=self.name)
        self._model = model
        self._network = model.network.to(self.device)
        self._memory_format = torch.contiguous_format
        if self.device.type == "cpu" and self.precision not in _HALVES and use_onednn_layers(self._network):
            self._memory_format = torch.channels_last
            self._network.to(memory_format=torch.channels_last)
        if self.precision in _HALVES:
            for head in {id(head): head for head in _heads(self._network)}.values():  # layers may share one
                _compute_in_float32(head, self.device.type)
        self._shapes: dict[tuple[int, int], tuple[int, int]] = {}

    @overload
    def __call__(self, images: AnyImage) -> Detections: ...  # type: ignore[overload-overlap]  # bytes: a Sequence
    @overload
    def __call__(self, images: Sequence[AnyImage]) -> list[Detections]: ...
    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Detections | list[Detections]:
        """Return the detections of one image, or of several in the same order; see `Detector.__call__`."""
        return detect_images(self, images)

    @property
    def batch_size(self) -> int:
        """Largest number of images in a batch; halved if the device runs out of memory."""
        return self._launcher.batch_size

    def batches(self, shapes: Sequence[tuple[int, int]]) -> list[Batch]:
        """Group images into batches of equal (height, width), as returned by `target_shape`."""
        return equal_batches(shapes, batch_size=self.batch_size)

    def target_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that the network sees of an upright image of `height` x `width` pixels.

        Raises:
            TooExtreme: a side would become 0 pixels.
        """
        found = self._shapes.get((height, width))
        if found is None:
            if len(self._shapes) >= SHAPES_KEPT:
                self._shapes = {}
            found = self._shapes[height, width] = self._model.shape(height, width)
        return found

    def prepare(self, image: Tensor) -> Prepared:
        """Resize and normalise an upright uint8 `(3, H, W)` RGB image; its pixels are float32.

        Raises:
            TooExtreme: a side would become 0 pixels.
        """
        return Prepared(self._model.process(image), *image.shape[1:])

    def host_batch(self, count: int, height: int, width: int) -> HostBatch:
        """Return host memory for a batch of `count` images padded to `height` x `width` pixels, of float32."""
        return HostBatch.allocate(count, height, width, self._transfer.memory, dtype=torch.float32)

    def detect(self, batch: Sequence[Prepared], *, shape: tuple[int, int] | None = None) -> list[Detections]:
        """Run the network once on a batch, in order; see `Detector.detect`."""
        if shape is None:  # not that of the pixels: some image processors pad every image to one size
            targets = [self.target_shape(image.height, image.width) for image in batch]
            shape = max(height for height, _ in targets), max(width for _, width in targets)
        return detect_batch(self, batch, shape)

    def submit(self, batch: HostBatch) -> PendingDetections:
        """Start the network on a batch; see `Detector.submit`."""
        return self._launcher.submit(batch, self._launch)

    def take_notes(self) -> tuple[str, ...]:
        """Return the warnings logged since the last call, for callers without access to the log."""
        return self._launcher.take_notes()

    def take_busy_seconds(self) -> float:
        """Return the seconds that the device computed; see `Launcher.take_busy_seconds`."""
        return self._launcher.take_busy_seconds()

    @torch.no_grad()
    def _launch(self, batch: HostBatch) -> ReadDetections:
        """Queue a batch on the device without waiting."""
        pixels, sizes = self._transfer.upload(batch.pixels, batch.sizes)
        inputs = {}
        padding = outside(sizes[:, :2], 1, *pixels.shape[2:]) if batch.is_padded else None
        if padding is not None:
            pixels = pixels.masked_fill(padding[:, None], 0.0)  # after normalisation, as in the processors
        if self._model.gives_mask:
            shape = (len(batch), *pixels.shape[2:])
            mask = torch.ones(shape, dtype=torch.int64, device=self.device) if padding is None else (~padding).long()
            inputs["pixel_mask"] = mask
        half = _HALVES.get(self.precision)
        with (
            float32_arithmetic(tf32=self.precision == "tf32"),
            torch.autocast(self.device.type, dtype=half, enabled=half is not None),
        ):
            output = self._network(pixel_values=pixels.contiguous(memory_format=self._memory_format), **inputs)
        download = self._transfer.download(torch.cat((output.logits, output.pred_boxes), dim=2))
        upright = batch.sizes[:, 2:].clone()
        return lambda: self._read(download.result(), upright)

    def _read(self, rows: Tensor, upright: Tensor) -> list[Detections]:
        """Return the detections of each image of the network's `(B, Q, K + 4)` logits and boxes."""
        if not rows.isfinite().all():  # would otherwise look like "nothing found"
            raise not_finite(self.name, self.precision)
        return [self._ranked(found) for found in self._model.postprocess(rows[..., :-4], rows[..., -4:], upright)]

    def _ranked(self, found: Mapping[str, Tensor]) -> Detections:
        """Return the detections that reach the threshold of their class, best first."""
        scores, classes, boxes = found["scores"], found["labels"], found["boxes"]
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self._thresholds[classes[order]]]
        kept = [self.categories[index] for index in classes[order].tolist()]
        return Detections(
            category_ids=torch.tensor([category.id for category in kept], dtype=torch.int64),
            labels=tuple(category.name for category in kept),
            scores=scores[order].clone(),
            boxes_xyxy=boxes[order].clone(),
        )


def _heads(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a network that compute scores and boxes, each once."""
    for name, part in network.named_children():
        if not any(word in name for word in _HEADS):
            yield from _heads(part)
        elif isinstance(part, nn.ModuleList):  # one for each decoder layer
            yield from part
        else:
            yield part


def _compute_in_float32(part: nn.Module, device_type: str) -> None:
    """Make a part of a network compute in float32 inside autocast."""
    compute = part.forward

    def exact(*values: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return compute(*(value.float() for value in values))

    part.forward = exact
