"""Convert boxes of an upright picture to the picture as stored, before its EXIF orientation is applied."""

import torch
from torch import Tensor


def to_stored_orientation(boxes_xyxy: Tensor, height: int, width: int, orientation: int) -> Tensor:
    """Convert boxes from the upright picture to the picture as stored: `(..., 4)` xyxy in pixels, both.

    From orientation 5 on, the stored picture is `width` high and `height` wide.

    Args:
        boxes_xyxy: on the upright picture; may reach outside it.
        height: height of the upright picture in pixels.
        width: width of the upright picture in pixels.
        orientation: EXIF's, 1..8, that makes the stored picture upright.

    Raises:
        ValueError: the orientation is not one of EXIF's eight.
    """
    if not 1 <= orientation <= 8:
        raise ValueError(f"orientation {orientation} is not in 1..8")
    xmin, ymin, xmax, ymax = boxes_xyxy.unbind(-1)
    # upright was: transpose (5..8), then flip vertically, then horizontally; this is the reverse order
    if orientation in (2, 3, 6, 7):
        xmin, xmax = width - xmax, width - xmin
    if orientation in (3, 4, 7, 8):
        ymin, ymax = height - ymax, height - ymin
    corners = (ymin, xmin, ymax, xmax) if orientation >= 5 else (xmin, ymin, xmax, ymax)
    return torch.stack(corners, dim=-1)
