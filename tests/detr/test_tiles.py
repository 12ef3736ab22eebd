"""Where tiles lie: every pixel is in one, neighbours overlap as asked, and what cannot be cut is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detr.tiles import LEAST_SIDE, Tile, Tiling, tile_size

LENGTHS = st.integers(1, 30_000)
SIDES = st.integers(LEAST_SIDE, 2_000)


def test_a_picture_is_cut_row_by_row_into_tiles_of_one_size_that_end_where_it_does() -> None:
    assert Tiling(100, 80, 0.2).tiles(height=130, width=250) == [
        Tile(0, 0, 100, 80), Tile(75, 0, 175, 80), Tile(150, 0, 250, 80),
        Tile(0, 50, 100, 130), Tile(75, 50, 175, 130), Tile(150, 50, 250, 130),
    ]  # fmt: skip


def test_a_picture_that_is_larger_in_one_direction_only_is_cut_in_that_one() -> None:
    assert Tiling(100, 100, 0).tiles(height=70, width=200) == [Tile(0, 0, 100, 70), Tile(100, 0, 200, 70)]


@pytest.mark.parametrize(
    ("height", "width", "fits"), [(80, 100, True), (1, 1, True), (81, 100, False), (80, 101, False)]
)
def test_a_picture_fits_if_neither_side_is_longer_than_the_tile_s(height: int, width: int, fits: bool) -> None:
    assert Tiling(100, 80).fits(height, width) is fits


def test_a_12_megapixel_photograph_has_30_tiles_of_800_pixels() -> None:
    assert len(Tiling(800, 800).tiles(3000, 4000)) == 30


def test_a_tile_is_cut_from_the_memory_of_its_picture() -> None:
    picture = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 5, 7)

    cut = Tile(2, 1, 6, 4).cut(picture)

    assert cut.shape == (3, 3, 4)
    assert cut[0, 0, 0] == 1 * 7 + 2
    assert cut.untyped_storage().data_ptr() == picture.untyped_storage().data_ptr()


@given(LENGTHS, SIDES, st.floats(0, 0.5))
def test_every_pixel_is_in_a_tile_and_neighbours_overlap_as_asked(length: int, side: int, overlap: float) -> None:
    tiles = Tiling(side, LEAST_SIDE, overlap).tiles(height=1, width=length)

    assert (tiles[0].left, tiles[-1].right) == (0, length)
    assert {tile.width for tile in tiles} == {min(side, length)}
    for one, other in pairwise(tiles):
        assert one.left < other.left
        assert one.right - other.left >= side * overlap


@given(LENGTHS, SIDES, st.floats(0, 0.5))
def test_there_are_no_more_tiles_than_the_overlap_needs(length: int, side: int, overlap: float) -> None:
    count = len(Tiling(side, LEAST_SIDE, overlap).tiles(height=1, width=length))

    step = side - side * overlap
    assert count <= 2 + max(0, length - side) / (step - 1)


@pytest.mark.parametrize(
    ("text", "size"), [("800", (800, 800)), ("1024x768", (1024, 768)), ("64", (64, 64)), ("0800", (800, 800))]
)
def test_a_size_is_one_number_or_width_and_height(text: str, size: tuple[int, int]) -> None:
    assert tile_size(text) == size
    assert tile_size(str(Tiling(*size))) == size


@pytest.mark.parametrize("text", ["640x", "x640", "", "640X480", "-640", "640x480x3", "6.4e2", "640 x 480", "auto"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r" is not SIZE or WIDTHxHEIGHT in pixels, such as 800 or 1024x768$"):
        tile_size(text)


@pytest.mark.parametrize("text", ["0", "63", "640x63", "0x640"])
def test_a_tile_that_is_too_small_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text} is too small; give sides of 64 pixels or more$"):
        tile_size(text)


@pytest.mark.parametrize("overlap", [-0.1, 0.51, 1.0, float("nan"), float("inf")])
def test_an_overlap_outside_its_range_is_refused(overlap: float) -> None:
    with pytest.raises(ValueError, match=r"^overlap: .* is not in 0\.\.0\.5$"):
        Tiling(100, 100, overlap)
