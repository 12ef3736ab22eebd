"""Encoded images made ready for the network, in this process."""

from dataclasses import dataclass
from typing import Protocol

from detr.batching import Prepared
from detr.detectors import DetectorLike
from detr.images.decoding import Header, decode, read_header
from pipelines.labelling.process_time import DECODE_SECONDS

BYTES_A_PIXEL = 32
BASE_BYTES = 512 * 1024**2  # what does not grow with the picture, the encoded bytes and a copy of them among it


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """What one image may take, far beyond what any that is not broken does.

    Args:
        memory_bytes: of a process that decodes nothing else, beyond what that takes without an image.
        cpu_seconds: on a core.
        asleep_seconds: without doing anything or wanting to; waiting for a busy core does not count.
    """

    memory_bytes: int
    cpu_seconds: float = DECODE_SECONDS
    asleep_seconds: float = DECODE_SECONDS


def limits_for(max_pixels: int, seconds: float) -> DecodingLimits:
    """Return what an image of up to `max_pixels` may take: so many seconds of CPU time, or asleep."""
    return DecodingLimits(BASE_BYTES + BYTES_A_PIXEL * max_pixels, cpu_seconds=seconds, asleep_seconds=seconds)


class ImageDecoder(Protocol):
    """What makes encoded images ready for the network; called from many threads at once."""

    def read_header(self, data: bytes) -> Header:
        """Return what the header says of an image that can be decoded and resized.

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
    """Decodes in the calling thread: fastest, and an image that crashes its decoder takes this process along."""

    def __init__(self, detector: DetectorLike, *, max_pixels: int) -> None:
        """Take the detector that images are made ready for, and above how many pixels they are refused."""
        self._detector, self._max_pixels = detector, max_pixels

    def read_header(self, data: bytes) -> Header:
        """Return what the header says of an image that can be decoded and resized."""
        header = read_header(data, max_pixels=self._max_pixels)
        self._detector.target_shape(header.height, header.width)
        return header

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized."""
        return self._detector.prepare(decode(data, max_pixels=self._max_pixels))


class ClosableDecoder(ImageDecoder, Protocol):
    """A decoder that runs something of its own, such as processes."""

    def close(self) -> None:
        """End it."""
        ...


class PreparedHere:
    """Prepares in this process what another decoder has decoded: for models whose size rule only they know."""

    def __init__(self, decoder: ClosableDecoder, detector: DetectorLike) -> None:
        """Take a decoder that does not resize, and the detector that images are made ready for."""
        self._decoder, self._detector = decoder, detector

    def read_header(self, data: bytes) -> Header:
        """Return what the header says of an image that can be decoded and resized."""
        header = self._decoder.read_header(data)
        self._detector.target_shape(header.height, header.width)
        return header

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and prepared by the detector."""
        return self._detector.prepare(self._decoder.prepare(data).pixels)

    def close(self) -> None:
        """End what the other decoder runs."""
        self._decoder.close()
