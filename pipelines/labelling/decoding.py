"""Encoded images made ready for the network, in this process."""

from typing import Protocol

from detr.detector import Detector, Prepared
from detr.images import Header, decode, read_header


class Decoder(Protocol):
    """What makes encoded images ready for the network; called from many threads at once."""

    def look(self, data: bytes) -> Header:
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


class DecoderHere:
    """Decodes in the calling thread: fastest, and an image that crashes its decoder takes this process along."""

    def __init__(self, detector: Detector, *, max_pixels: int) -> None:
        """Take the detector that images are made ready for, and above how many pixels they are refused."""
        self._detector, self._max_pixels = detector, max_pixels

    def look(self, data: bytes) -> Header:
        """Return what the header says of an image that can be decoded and resized."""
        header = read_header(data, max_pixels=self._max_pixels)
        self._detector.target_shape(header.height, header.width)
        return header

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized."""
        return self._detector.prepare(decode(data, max_pixels=self._max_pixels))
