"""Detect objects in images with any detector, decoding in threads ahead of the network."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import cast

from torch import Tensor

from detr.batching import Batch, HostBatch, Prepared, ahead
from detr.detector_like import DetectorLike
from detr.images.decoding import decode, read_header
from detr.images.inputs import AnyImage, encoded_or_tensor, is_image, naming, not_an_image
from detr.launcher import PendingDetections
from detr.postprocess import Detections

WINDOW_IMAGES = 256  # images whose encoded bytes are in memory at a time, to be sorted by shape
BATCHES_AHEAD = 2  # batches that are decoded while one is in the network
DECODE_THREADS = min(8, os.cpu_count() or 1)


def detect_images(detector: DetectorLike, images: AnyImage | Sequence[AnyImage]) -> Detections | list[Detections]:
    """Return the detections of one image, or of several in the same order.

    The pixels of a few batches and the encoded bytes of 256 images are in memory at a time.

    Raises:
        ImageError: an image cannot be read; its message says which.
        TypeError: an image is of an unsupported type.
        ValueError: a tensor or an array does not have the shape or dtype of an image.
    """
    if is_image(images):
        return detector.detect([_prepare(detector, encoded_or_tensor(images), images)])[0]
    if not isinstance(images, Iterable):
        raise not_an_image(images)
    return list(_stream(detector, cast("Iterable[AnyImage]", images)))


def detect_batch(
    detector: DetectorLike, batch: Sequence[Prepared], shape: tuple[int, int] | None = None
) -> list[Detections]:
    """Run a detector's network once on images that it has prepared.

    Args:
        detector: the detector whose `prepare` made the images.
        batch: at least one image.
        shape: (height, width) to pad to; None is the largest height and width of the batch.
    """
    shapes = [image.pixels.shape[1:] for image in batch]
    height, width = shape or (max(h for h, _ in shapes), max(w for _, w in shapes))
    host = detector.host_batch(len(batch), height, width)
    for place, image in enumerate(batch):
        host.write(place, image)
    return detector.submit(host).result()


def _stream(detector: DetectorLike, images: Iterable[AnyImage]) -> Iterator[Detections]:
    remaining = iter(images)
    with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode") as decoders:
        while window := list(islice(remaining, WINDOW_IMAGES)):
            yield from _detect_window(detector, window, decoders)


def _detect_window(
    detector: DetectorLike, window: Sequence[AnyImage], decoders: ThreadPoolExecutor
) -> list[Detections]:
    """Return the detections of images that are sorted by shape together; decoding runs ahead of the network."""
    sources = [encoded_or_tensor(image) for image in window]
    shapes = [_shape_of(detector, source, image) for source, image in zip(sources, window, strict=True)]

    def write(host: HostBatch, place: int, index: int) -> None:
        host.write(place, _prepare(detector, sources[index], window[index]))

    def begin_decoding(batch: Batch) -> tuple[Batch, HostBatch, list[Future[None]]]:
        host = detector.host_batch(len(batch.indices), batch.height, batch.width)
        written = [decoders.submit(write, host, place, index) for place, index in enumerate(batch.indices)]
        return batch, host, written

    def begin_detecting(
        decoded: tuple[Batch, HostBatch, list[Future[None]]],
    ) -> tuple[Sequence[int], PendingDetections]:
        batch, host, written = decoded
        for future in written:
            future.result()
        return batch.indices, detector.submit(host)

    found: dict[int, Detections] = {}
    for indices, pending in ahead(ahead(detector.batches(shapes), begin_decoding, BATCHES_AHEAD), begin_detecting, 1):
        found.update(zip(indices, pending.result(), strict=True))
    return [found[index] for index in range(len(window))]


def _shape_of(detector: DetectorLike, source: bytes | Tensor, image: AnyImage) -> tuple[int, int]:
    with naming(image):
        if isinstance(source, Tensor):
            return detector.target_shape(source.shape[1], source.shape[2])
        header = read_header(source)
        return detector.target_shape(header.height, header.width)


def _prepare(detector: DetectorLike, source: bytes | Tensor, image: AnyImage) -> Prepared:
    with naming(image):
        return detector.prepare(source if isinstance(source, Tensor) else decode(source))
