"""Decode and prepare images for the network, in this process."""

from dataclasses import dataclass
from typing import Protocol

from detr.batching import Prepared
from detr.detector_like import DetectorLike
from detr.images.decoding import Header, decode, read_header
from pipelines.labelling.process_time import DECODE_SECONDS

BYTES_A_PIXEL = 32
BASE_BYTES = 512 * 1024**2  # memory that does not depend on the picture's size, including the encoded bytes and a copy


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """Limits for decoding one image, far above the needs of any valid image.

    Args:
        memory_bytes: of a process that decodes nothing else, in addition to its memory without an image.
        cpu_seconds: CPU time.
        asleep_seconds: seconds in which no thread runs or is ready to run; waiting for a busy core does not count.
    """

    memory_bytes: int
    cpu_seconds: float = DECODE_SECONDS
    asleep_seconds: float = DECODE_SECONDS


def limits_for(max_pixels: int, seconds: float) -> DecodingLimits:
    """Return the limits for an image of up to `max_pixels` and this many seconds of CPU time, or asleep."""
    return DecodingLimits(BASE_BYTES + BYTES_A_PIXEL * max_pixels, cpu_seconds=seconds, asleep_seconds=seconds)


class ImageDecoder(Protocol):
    """A decoder that prepares encoded images for the network. Thread-safe."""

    def read_header(self, data: bytes) -> Header:
        """Return the header of an image that can be decoded.

        Raises:
            ImageError: it cannot.
        """
        ...

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized.

        Raises:
            ImageError: what is wrong with it.
        """
        ...


class InProcessDecoder:
    """Decodes in the calling thread: the fastest way, but an image that crashes the decoder ends this process."""

    def __init__(self, detector: DetectorLike, *, max_pixels: int) -> None:
        """Prepare images for a detector, and refuse those with more pixels than the limit."""
        self._detector, self._max_pixels = detector, max_pixels

    def read_header(self, data: bytes) -> Header:
        """Return the header of an image that can be decoded."""
        return read_header(data, max_pixels=self._max_pixels)

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized."""
        return self._detector.prepare(decode(data, max_pixels=self._max_pixels))


class ClosableDecoder(ImageDecoder, Protocol):
    """A decoder with resources to release, such as processes."""

    def close(self) -> None:
        """Release the resources."""
        ...


class PreparedHere:
    """Prepares images in this process that another decoder has decoded: for models that must resize themselves."""

    def __init__(self, decoder: ClosableDecoder, detector: DetectorLike) -> None:
        """Combine a decoder that does not resize with the detector that prepares the images."""
        self._decoder, self._detector = decoder, detector

    def read_header(self, data: bytes) -> Header:
        """Return the header of an image that can be decoded."""
        return self._decoder.read_header(data)

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and prepared by the detector."""
        return self._detector.prepare(self._decoder.prepare(data).pixels)

    def close(self) -> None:
        """Close the other decoder."""
        self._decoder.close()
