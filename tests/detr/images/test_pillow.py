"""The scale of values of 16 and 32 bits, in files written tag by tag: Pillow writes no colours of 16 bits."""

import io
import struct
import zlib
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detr.images.decoding import UnsupportedImage, decode

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint16)
COLOURS[0, 0] = 255
GREY = COLOURS[..., 0]
DARK = "so it is nearly black .*or it has fewer than 16 bits"
Order = Literal["<", ">"]


def tiff(
    values: NDArray[np.generic], photometric: int, order: Order = "<", more: dict[int, tuple[int, ...]] | None = None
) -> bytes:
    """Return an uncompressed TIFF of `(H, W)` or `(H, W, N)` values, in their own number of bits."""
    height, width, samples = (*values.shape, 1)[:3]
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: (width,), 257: (height,), 258: (8 * values.itemsize,) * samples, 259: (1,), 262: (photometric,)}
    tags |= {273: (8,), 277: (samples,), 278: (height,), 279: (len(pixels),), **(more or {})}
    heap_start, heap, entries = 8 + len(pixels) + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        value = packed if len(packed) <= 4 else struct.pack(order + "L", heap_start + len(heap))
        heap += packed if len(packed) > 4 else b""
        entries += struct.pack(order + "HHL4s", tag, 3, len(numbers), value)
    signature = {"<": b"II*\0", ">": b"MM\0*"}[order]
    head = signature + struct.pack(order + "L", 8 + len(pixels)) + pixels
    return head + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0" + heap


def png(
    values: NDArray[np.uint16], colour_type: int, significant_bits: int | None = None, *, interlaced: bool = False
) -> bytes:
    """Return a PNG of `(H, W, N)` values of 16 bits, with an sBIT chunk if the significant bits are given."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    height, width, samples = values.shape
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [values[y::dy, x::dx] for x, y, dx, dy in passes if x < width] if interlaced else [values]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts for row in part)
    bits = b"" if significant_bits is None else chunk(b"sBIT", bytes([significant_bits] * samples))
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 16, colour_type, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + bits + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def colours(data: bytes) -> NDArray[np.uint8]:
    return decode(data).permute(1, 2, 0).numpy()


def with_alpha(values: NDArray[np.uint16], alpha: int) -> NDArray[np.uint16]:
    return np.dstack([values, np.full(values.shape[:2], alpha, np.uint16)])


@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_of_sixteen_bits_are_scaled(order: Order) -> None:
    opaque = with_alpha(COLOURS * 257, 65535)

    assert np.array_equal(colours(tiff(COLOURS * 257, 2, order)), COLOURS)
    assert np.array_equal(colours(tiff(opaque, 2, order, {338: (2,)})), COLOURS)
    assert np.array_equal(colours(tiff(opaque, 2, order, {338: (0,)})), COLOURS)
    assert np.array_equal(colours(png(COLOURS * 257, 2)), COLOURS)
    assert np.array_equal(colours(png(opaque, 6)), COLOURS)


@pytest.mark.parametrize("alpha", [4095, 65535])
@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_of_fewer_bits_in_sixteen_that_do_not_say_so_are_unsupported(order: Order, alpha: int) -> None:
    twelve = COLOURS * 16
    files = [tiff(twelve, 2, order), png(twelve, 2), png(with_alpha(twelve, alpha), 6)]
    files += [tiff(with_alpha(twelve, alpha), 2, order, {338: (extra,)}) for extra in (0, 2)]
    files += [tiff(with_alpha(twelve, 0), 5, order), tiff(twelve, 2, order, {281: (4095, 4095, 4095)})]
    files += [png(np.dstack([twelve[..., 0], np.full((6, 8), alpha, np.uint16)]), 4)]

    for data in files:
        with pytest.raises(UnsupportedImage, match=DARK):
            decode(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_of_eight_bits_in_sixteen_are_unsupported(order: Order) -> None:
    one = np.zeros((6, 8, 3), np.uint16)
    one[5, 7, 2] = 1  # the last byte of the picture
    grey = with_alpha(COLOURS[..., :1], 65535)
    files = [tiff(COLOURS, 2, order), png(COLOURS, 2), png(COLOURS, 2, 8), png(with_alpha(COLOURS, 65535), 6)]
    files += [tiff(with_alpha(COLOURS, 65535), 2, order, {338: (2,)}), tiff(with_alpha(COLOURS, 0), 5, order)]
    files += [png(one, 2), tiff(one, 2, order), png(grey, 4), icon(png(COLOURS, 2)), png(one, 2, interlaced=True)]
    files += [png(one[:, -1:], 2, interlaced=True), png(np.tile(one, (9000, 1, 1)), 2)]

    for data in files:
        with pytest.raises(UnsupportedImage, match="its largest value is at most 255 of 65535"):
            decode(data)


def test_black_with_any_alpha_is_black() -> None:
    black = np.zeros((6, 8, 3), np.uint16)
    opaque = with_alpha(black, 65535)
    files = [png(black, 2), png(opaque, 6), png(opaque[..., 2:], 4), icon(png(black, 2))]
    files += [png(opaque, 6, interlaced=True), png(np.tile(opaque, (9000, 1, 1)), 6)]
    files += [tiff(black, 2), tiff(opaque, 2, more={338: (2,)}), tiff(opaque, 2, more={338: (0,)})]

    for data in files:
        assert not colours(data).any()


def icon(picture: bytes) -> bytes:
    """Return an icon with two pictures, the first of 8 x 6 pixels; the second is said to have 16 colours."""
    head = struct.pack("<HHHBBBBHHLL", 0, 1, 2, 8, 6, 0, 0, 1, 48, len(picture), 38)
    return head + struct.pack("<BBBBHHLL", 1, 1, 16, 0, 1, 4, 10, 38) + picture


def test_black_and_what_says_that_it_is_dark_are_shown() -> None:
    dark = COLOURS * 16

    assert not colours(png(COLOURS * 0, 2)).any()
    assert np.array_equal(colours(png(dark, 2, 16)), COLOURS >> 4)
    assert np.array_equal(colours(png(dark << 2, 2, 14)), COLOURS >> 2)  # 14 bits, at most a quarter of white
    assert np.array_equal(colours(tiff(dark, 2, "<", {281: (65535, 65535, 65535)})), COLOURS >> 4)
    assert np.array_equal(
        colours(png((COLOURS >> 6) * 257, 2, 8)), COLOURS >> 6
    )  # 8 bits, scaled up as the standard asks


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_32_bits_up_to_4095_need_their_white(dtype: type[np.generic]) -> None:
    def written(values: NDArray[np.generic], **options: object) -> bytes:
        file = io.BytesIO()
        Image.fromarray(values.astype(dtype)).save(file, "TIFF", **options)
        return file.getvalue()

    with pytest.raises(UnsupportedImage, match=r"its largest value is 4080 of 65535, .* set the TIFF's MaxSampleValue"):
        decode(written(GREY * 16))
    assert np.array_equal(colours(written(GREY * 16, tiffinfo={281: 4080}))[..., 0], GREY)
    assert np.array_equal(colours(written(GREY.astype(np.int32) * 257))[..., 0], GREY)


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_in_which_0_is_white_is_inverted(order: Order) -> None:
    full, floats = GREY * 257, (GREY / 255).astype(np.float32)

    assert np.array_equal(colours(tiff((255 - GREY).astype(np.uint8), 0, order))[..., 1], GREY)
    assert np.array_equal(colours(tiff(65535 - full, 0, order))[..., 1], GREY)
    assert np.array_equal(colours(tiff(4080 - GREY * 16, 0, order, {281: (4080,)}))[..., 1], GREY)
    assert np.array_equal(colours(tiff(1 - floats, 0, order, {339: (3,)}))[..., 1], GREY)
    assert np.array_equal(colours(tiff(full, 1, order))[..., 1], GREY)


def test_compressed_grey_in_which_0_is_white_is_inverted() -> None:
    file = io.BytesIO()
    Image.fromarray(65535 - GREY * 257).save(file, "TIFF", compression="tiff_lzw")
    black_is_zero, white_is_zero = (struct.pack("<HHLHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert file.getvalue().count(black_is_zero) == 1

    assert np.array_equal(colours(file.getvalue().replace(black_is_zero, white_is_zero))[..., 1], GREY)
