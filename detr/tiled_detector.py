"""A detector that processes large pictures as a whole and tile by tile."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from detr.batching import Batch, HostBatch, Prepared
from detr.classes import Category
from detr.detector_like import DetectorLike
from detr.image_stream import detect_images
from detr.images.inputs import AnyImage
from detr.launcher import PendingDetections
from detr.postprocess import Detections
from detr.seams import join_views
from detr.size_rule import SizeRule
from detr.tiles import Tile, Tiling


class LargeShape(tuple[int, int]):
    """The (height, width) for the network of the whole view of a picture that is also cut into tiles."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class LargePicture(Prepared):
    """A picture that is cut into tiles: its pixels are uint8 and not resized yet."""


@dataclass(slots=True)
class _TiledHostBatch(HostBatch):
    """A batch of pictures that fit in a tile, or one large picture, which is not resized."""

    picture: Tensor | None = None

    def write(self, place: int, image: Prepared) -> None:
        """Copy an image into its slot; store a large picture, which is alone in its batch."""
        if isinstance(image, LargePicture):
            self.picture = image.pixels
        else:
            HostBatch.write(self, place, image)  # super() does not work in a dataclass with slots

    def part(self, start: int, stop: int) -> HostBatch:
        """Return slots `start` to `stop` (exclusive) as a view of the same memory."""
        return self if self.picture is not None else HostBatch.part(self, start, stop)

    def only(self, places: Sequence[int]) -> HostBatch:
        """Return these slots, given in ascending order, moved to the front of the same memory."""
        return self if self.picture is not None else HostBatch.only(self, places)


class TiledDetector:
    """Another detector that also sees the tiles of pictures that do not fit in one, at the picture's resolution.

    A picture that fits in a tile is passed to the detector unchanged, in batches of such pictures. Of any other picture
    the detector processes the whole and each tile, each resized by the detector's size rule, and
    `detr.seams.join_views` merges the detections of these views. Such a picture is a batch of its own; its views form
    batches among themselves. One copy of its pixels and a few batches of views are in memory.
    """

    size_rule: SizeRule | None = None
    """None, because `prepare` needs the picture at its own size."""

    def __init__(self, detector: DetectorLike, tiling: Tiling) -> None:
        """Wrap a detector, which can still be used elsewhere, with a tiling of pictures."""
        self._detector, self._tiling = detector, tiling
        self.name, self.device, self.precision = detector.name, detector.device, detector.precision

    @overload
    def __call__(self, images: AnyImage) -> Detections: ...  # type: ignore[overload-overlap]  # bytes: a Sequence
    @overload
    def __call__(self, images: Sequence[AnyImage]) -> list[Detections]: ...
    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Detections | list[Detections]:
        """Return the detections of one image, or of several in the same order; see `Detector.__call__`."""
        return detect_images(self, images)

    @property
    def identity(self) -> str | None:
        """Identity of the wrapped detector. Rows with tiles differ by their settings."""
        return self._detector.identity

    @property
    def family(self) -> str:
        """Family of the wrapped detector."""
        return self._detector.family

    @property
    def categories(self) -> tuple[Category, ...]:
        """Classes of the wrapped detector, by index."""
        return self._detector.categories

    @property
    def batch_size(self) -> int:
        """Largest number of images or views in a batch; halved if the device runs out of memory."""
        return self._detector.batch_size

    def target_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) for the network of the whole view of a picture of `height` x `width` pixels.

        Raises:
            ImageError: the whole or a tile cannot be resized.
        """
        shape = self._detector.target_shape(height, width)
        if self._tiling.fits(height, width):
            return shape
        self._detector.target_shape(min(height, self._tiling.height), min(width, self._tiling.width))
        return LargeShape(shape)

    def prepare(self, image: Tensor) -> Prepared:
        """Make an upright uint8 `(3, H, W)` RGB image ready for the network, unless it is cut into tiles first."""
        height, width = image.shape[1:]
        if self._tiling.fits(height, width):
            return self._detector.prepare(image)
        return LargePicture(image, height, width)

    def batches(self, shapes: Sequence[tuple[int, int]]) -> list[Batch]:
        """Group images into batches by the shape that `target_shape` returns for each; large ones are alone."""
        fitting = [index for index, shape in enumerate(shapes) if not isinstance(shape, LargeShape)]
        batches = [
            Batch(tuple(fitting[index] for index in batch.indices), batch.height, batch.width)
            for batch in self._detector.batches([shapes[index] for index in fitting])
        ]
        large = [Batch((index,), *shape) for index, shape in enumerate(shapes) if isinstance(shape, LargeShape)]
        return batches + large

    def host_batch(self, count: int, height: int, width: int) -> HostBatch:
        """Return host memory for a batch of `count` images padded to `height` x `width` pixels."""
        batch = self._detector.host_batch(count, height, width)
        return _TiledHostBatch(batch.pixels, batch.sizes)

    def detect(self, batch: Sequence[Prepared], *, shape: tuple[int, int] | None = None) -> list[Detections]:
        """Return the detections of images that `prepare` returned, in order.

        Args:
            batch: at least one image.
            shape: (height, width) to pad pictures to that fit in a tile; None is their largest.
        """
        fitting = [one for one in batch if not isinstance(one, LargePicture)]
        found = iter(self._detector.detect(fitting, shape=shape) if fitting else ())
        return [self._detect_large(one.pixels) if isinstance(one, LargePicture) else next(found) for one in batch]

    def submit(self, batch: HostBatch) -> PendingDetections:
        """Start the network on a batch; for a large picture, return after all its views."""
        picture = batch.picture if isinstance(batch, _TiledHostBatch) else None
        if picture is None:
            return self._detector.submit(batch)
        started = time.perf_counter()
        found = self._detect_large(picture)
        return PendingDetections([lambda: [found]], time.perf_counter() - started)

    def take_notes(self) -> tuple[str, ...]:
        """Return the warnings logged since the last call."""
        return self._detector.take_notes()

    def take_busy_seconds(self) -> float:
        """Return the seconds that the device computed; see `Launcher.take_busy_seconds`."""
        return self._detector.take_busy_seconds()

    def _detect_large(self, picture: Tensor) -> Detections:
        """Return the detections of a uint8 `(3, H, W)` picture, merged from the whole picture and its tiles."""
        height, width = picture.shape[1:]
        views = [Tile(0, 0, width, height), *self._tiling.tiles(height, width)]
        found = self._detector([view.cut(picture) for view in views])
        return join_views(views, found)
