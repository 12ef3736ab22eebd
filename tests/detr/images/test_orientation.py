"""Boxes turned back lie where Pillow took the picture's pixels from."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detr.images.orientation import to_stored_orientation

BOX = (5, 2, 11, 6)  # xyxy on the picture as stored, which is 20 wide and 12 high
ORIENTATION = 274


def stored_and_upright(orientation: int) -> tuple[Image.Image, Image.Image]:
    """A black picture with a white box, and what Pillow makes of it by its EXIF."""
    pixels = np.zeros((12, 20), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    stored = Image.open(file)
    return stored, ImageOps.exif_transpose(stored)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_the_upright_picture_is_found_again_on_the_stored_one(orientation: int) -> None:
    stored, upright = stored_and_upright(orientation)
    assert stored.getbbox() == BOX
    seen = torch.tensor([upright.getbbox()], dtype=torch.float64)

    turned = to_stored_orientation(seen, upright.height, upright.width, orientation)

    assert turned.tolist() == [list(BOX)]
    assert (upright.height, upright.width) == ((20, 12) if orientation >= 5 else (12, 20))


def test_boxes_may_be_none_and_may_reach_outside() -> None:
    assert to_stored_orientation(torch.empty(0, 4), 20, 12, 6).shape == (0, 4)
    # orientation 6: the stored picture was turned clockwise, so its left is the upright one's top
    assert to_stored_orientation(torch.tensor([-1.0, -2.0, 13.0, 21.0]), 20, 12, 6).tolist() == [-2.0, -1.0, 21.0, 13.0]


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_invalid_orientation_is_refused(orientation: int) -> None:
    with pytest.raises(ValueError, match=f"orientation {orientation} is not in 1..8"):
        to_stored_orientation(torch.zeros(1, 4), 20, 12, orientation)
