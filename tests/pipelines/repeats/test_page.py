"""The page of places that repeat: its pictures are large enough to judge by."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.finding import Seen
from pipelines.repeats.page import _view, part_budget

SIZE = (2048, 1536)


def photograph() -> Image.Image:
    """A picture with as much detail as a photograph: noise whose strength falls with its fineness."""
    random = np.random.default_rng(0)
    pixels = np.zeros((SIZE[1], SIZE[0], 3))
    for width, strength in ((8, 90), (32, 45), (128, 22), (512, 11), (2048, 5)):
        noise = random.normal(128, 40, (width * 3 // 4, width, 3)).clip(0, 255).astype(np.uint8)
        pixels += (
            (np.asarray(Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC), np.float64) - 128)
            * strength
            / 40
        )
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("is_whole", [True, False])
def test_with_the_default_number_of_places_each_picture_has_200_pixels(is_whole: bool) -> None:
    from torch import from_numpy

    config = RepeatsConfig("table")
    budget = part_budget([config.pictures] * config.most_places)
    pixels = from_numpy(np.array(photograph())).permute(2, 0, 1)

    view = _view(Seen("a.jpg", None, None, *SIZE, (900, 700, 1100, 850), 0.5), pixels, None, budget, is_whole=is_whole)

    assert view.source is not None
    with Image.open(io.BytesIO(base64.b64decode(view.source.partition(",")[2]))) as shown:
        assert max(shown.size) >= 200
    assert len(view.source) <= budget * (3 if is_whole else 1)
