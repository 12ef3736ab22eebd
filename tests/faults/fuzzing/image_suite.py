"""Damaged images through all that a labeler does with one before the network: look at it, decode it, resize it."""

from __future__ import annotations

import torch

from detr.detector import Detector
from detr.images.decoding import ImageError
from pipelines.labelling.decoding import InProcessDecoder
from tests.faults.fuzzing.image_seeds import FORMATS, seeds
from tests.faults.fuzzing.mutations import mutate, random_of

MAX_PIXELS = 4_000_000  # RGB and a few copies of it fit into the memory that a case may take, and nothing larger


class ImageSuite:
    """Case i is of format i modulo 7: six of the common ones to one of the others."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._detector = Detector("scenes", device="cpu")
        self._decoder = InProcessDecoder(self._detector, max_pixels=MAX_PIXELS)

    def data(self, number: int) -> bytes:
        """Return a damaged image; -1 is a whole one."""
        if number < 0:
            return seeds()["JPEG"][0]
        of_format = seeds()[FORMATS[number % len(FORMATS)]]
        random = random_of(self._seed, number)
        return mutate(random, random.choice(of_format), [one for group in seeds().values() for one in group])

    def outcome(self, number: int) -> str:
        """Return `ok` or the error kind."""
        data = self.data(number)
        try:
            header = self._decoder.read_header(data)
            shape = self._detector.target_shape(header.height, header.width)
            prepared = self._decoder.prepare(data)
        except ImageError as error:
            return error.kind if str(error) else "an error without a sentence"
        assert (prepared.height, prepared.width) == (header.height, header.width)
        assert header.height * header.width <= MAX_PIXELS
        assert prepared.pixels.dtype is torch.uint8
        assert tuple(prepared.pixels.shape) == (3, *shape)
        return "ok"


SUITE = ImageSuite
