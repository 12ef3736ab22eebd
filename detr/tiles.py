"""Tiles: overlapping rectangles that large pictures are cut into. Does not import torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

LEAST_SIDE: Final = 64
"""Shortest side of a tile in pixels. With smaller tiles, a picture has thousands that rarely show a whole object."""

MOST_OVERLAP: Final = 0.5
"""Largest overlap. At 0.5, the network sees each pixel four times."""

OVERLAP: Final = 0.2
"""Default overlap."""

_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of an upright picture in whole pixels; `right` and `bottom` are the first ones outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.right - self.left

    def cut(self, picture: Tensor) -> Tensor:
        """Return this rectangle of a `(3, H, W)` picture, in the picture's memory."""
        return picture[:, self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How pictures are cut into tiles.

    Attributes:
        width: width of a tile in pixels of the upright picture.
        height: height of a tile in pixels of the upright picture.
        overlap: smallest share of a tile's width and height that it has in common with its neighbour, in
            0..`MOST_OVERLAP`.
    """

    width: int
    height: int
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        if min(self.width, self.height) < LEAST_SIDE:
            raise ValueError(
                f"tiles: {self.width}x{self.height} is too small; give sides of {LEAST_SIDE} pixels or more"
            )
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise ValueError(f"overlap: {self.overlap:g} is not in 0..{MOST_OVERLAP:g}")

    def __str__(self) -> str:
        """Return `WIDTHxHEIGHT`, as `tile_size` reads it."""
        return f"{self.width}x{self.height}"

    def fits(self, height: int, width: int) -> bool:
        """Return whether a picture of `height` x `width` pixels fits in one tile, and is not cut then."""
        return height <= self.height and width <= self.width

    def tiles(self, height: int, width: int) -> list[Tile]:
        """Return the tiles of a picture of `height` x `width` pixels, row by row.

        All have the same size: the tiling's, or the picture's where that is smaller. They are spread evenly, so that
        the last ones end at the picture's edge and the overlap is a little larger than requested.
        """
        tall, wide = min(self.height, height), min(self.width, width)
        return [
            Tile(left, top, left + wide, top + tall)
            for top in _starts(height, self.height, self.overlap)
            for left in _starts(width, self.width, self.overlap)
        ]


def tile_size(text: str) -> tuple[int, int]:
    """Return (width, height) in pixels of `SIZE` or `WIDTHxHEIGHT`.

    Raises:
        ValueError: it is neither, or a side is shorter than `LEAST_SIDE`.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not SIZE or WIDTHxHEIGHT in pixels, such as 800 or 1024x768")
    width = int(found[1])
    height = width if found[2] is None else int(found[2])
    if min(width, height) < LEAST_SIDE:
        raise ValueError(f"{text} is too small; give sides of {LEAST_SIDE} pixels or more")
    return width, height


def make_tiling(tiles: tuple[int, int] | None, overlap: float | None) -> Tiling | None:
    """Return the tiling for tiles of (width, height) pixels; None without tiles.

    Raises:
        ValueError: an overlap without tiles, a tile that is too small, or an overlap that is too large.
    """
    if tiles is not None:
        return Tiling(*tiles, OVERLAP if overlap is None else overlap)
    if overlap is not None:
        raise ValueError("overlap: only tiles overlap; give their size with --tiles, or omit --overlap.")
    return None


def _starts(length: int, size: int, overlap: float) -> list[int]:
    """Return the offsets of tiles of `size` along a side of `length` pixels."""
    if length <= size:
        return [0]
    step = size - math.ceil(size * overlap)
    gaps = -(-(length - size) // step)
    return [(length - size) * number // gaps for number in range(gaps + 1)]
