"""The interface of all detectors."""

from collections.abc import Sequence
from typing import Protocol, overload

import torch
from torch import Tensor

from detr.batching import Batch, HostBatch, Prepared
from detr.classes import Category
from detr.images.inputs import AnyImage
from detr.launcher import PendingDetections
from detr.postprocess import Detections
from detr.precision import Precision
from detr.size_rule import SizeRule


class DetectorLike(Protocol):
    """A model of any architecture on a device: the interface that labelling, `detect` and evaluation use.

    `detr.detector.Detector` documents the methods and their errors.
    """

    name: str
    """Name of the model in messages."""

    device: torch.device
    precision: Precision
    """The precision that it computes in, with "auto" resolved."""

    @property
    def identity(self) -> str | None:
        """The sha256, in hex, of everything that determines its detections; None for a network that was passed in."""
        ...

    @property
    def family(self) -> str:
        """`detr.families.NATIVE`, or the model type of a detector of `transformers`."""
        ...

    @property
    def categories(self) -> tuple[Category, ...]:
        """Its classes by index."""
        ...

    @property
    def size_rule(self) -> SizeRule | None:
        """How pictures are resized; None if only `prepare` can tell."""
        ...

    @property
    def batch_size(self) -> int:
        """Largest number of images in a batch; halved if the device runs out of memory."""
        ...

    @overload
    def __call__(self, images: AnyImage) -> Detections: ...  # type: ignore[overload-overlap]  # bytes: a Sequence
    @overload
    def __call__(self, images: Sequence[AnyImage]) -> list[Detections]: ...
    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Detections | list[Detections]:
        """Return the detections of one image, or of several in the same order."""
        ...

    def target_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that the network sees of an upright image of `height` x `width` pixels."""
        ...

    def prepare(self, image: Tensor) -> Prepared:
        """Make an upright uint8 `(3, H, W)` RGB image ready for the network."""
        ...

    def batches(self, shapes: Sequence[tuple[int, int]]) -> list[Batch]:
        """Group images into batches by the (height, width) that `target_shape` returns for each."""
        ...

    def host_batch(self, count: int, height: int, width: int) -> HostBatch:
        """Return host memory for a batch of `count` images padded to `height` x `width` pixels."""
        ...

    def submit(self, batch: HostBatch) -> PendingDetections:
        """Start the network on a batch; on a GPU, return before it finishes."""
        ...

    def detect(self, batch: Sequence[Prepared], *, shape: tuple[int, int] | None = None) -> list[Detections]:
        """Run the network once on a batch, in order."""
        ...

    def take_notes(self) -> tuple[str, ...]:
        """Return the warnings logged since the last call."""
        ...

    def take_busy_seconds(self) -> float:
        """Return the seconds that the device computed for batches whose detections were read since the last call."""
        ...
