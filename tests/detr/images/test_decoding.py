"""Bytes to upright RGB, and the size rule. Every file here is written by the test that reads it."""

import io
import math
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from safetensors.torch import load_file

from detr.images import pillow
from detr.images.decoding import (
    TooExtreme,
    TruncatedImage,
    UnreadableImage,
    UnsupportedImage,
    decode,
    read_header,
    resize,
    resize_shape,
)
from detr.images.results import Samples

GOLDEN = Path(__file__).parents[2] / "golden"
Pixels = NDArray[np.uint8]

# 48 x 64, smooth enough for lossy formats, and different in every corner: a wrong turn cannot go unseen
ROWS, COLUMNS = np.mgrid[0:48, 0:64]
PICTURE = np.stack([ROWS * 5, COLUMNS * 4, 255 - ROWS * 2 - COLUMNS * 2], axis=2).astype(np.uint8)
GREY = PICTURE[..., 1]


def encoded(image: Image.Image | Pixels, image_format: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    if image_format == "ICO":
        options = {"sizes": [image.size], **options}
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    """Return the decoded picture as (H, W, 3), having held it against its header."""
    image, header = decode(data), read_header(data)
    assert image.dtype == torch.uint8
    assert image.shape == (3, header.height, header.width)
    return image.permute(1, 2, 0).numpy()


def difference(data: bytes, picture: Pixels = PICTURE) -> float:
    """Return the mean difference in grey levels."""
    return float(np.abs(decoded(data).astype(float) - picture).mean())


def replicated(grey: NDArray[np.generic]) -> Pixels:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def stored_for(orientation: int) -> Image.Image:
    """Return the picture as a camera stores it that was held so: turned by `orientation` it is PICTURE again."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's Transpose: flips 0 and 1, left turns 2 to 4, 5, 6
    image = Image.fromarray(PICTURE)
    return image.transpose(Image.Transpose(undo[orientation])) if orientation in undo else image


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image_format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 1.5),
        ("PNG", {}, 0.0),
        ("WEBP", {"lossless": True}, 0.0),
        ("TIFF", {}, 0.0),
        ("TIFF", {"compression": "tiff_lzw"}, 0.0),
        ("AVIF", {"quality": 95, "speed": 10, "subsampling": "4:4:4"}, 1.5),
    ],
)
def test_every_format_stands_upright(
    image_format: str, options: dict[str, object], tolerance: float, orientation: int
) -> None:
    data = encoded(stored_for(orientation), image_format, exif=orientation_exif(orientation), **options)

    assert read_header(data).orientation == orientation
    assert difference(data) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image_format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 1.5),
        ("PNG", {}, 0.0),
        ("WEBP", {"lossless": True}, 0.0),
        ("TIFF", {}, 0.0),
        ("AVIF", {"quality": 95, "speed": 10, "subsampling": "4:4:4"}, 1.5),
    ],
)
def test_every_format_can_stay_as_it_is_stored(
    image_format: str, options: dict[str, object], tolerance: float, orientation: int
) -> None:
    stored = stored_for(orientation)
    data = encoded(stored, image_format, exif=orientation_exif(orientation), **options)

    image = decode(data, upright=False).permute(1, 2, 0).numpy()

    assert image.shape == np.asarray(stored).shape
    assert float(np.abs(image.astype(float) - np.asarray(stored)).mean()) <= tolerance


@pytest.mark.parametrize(
    ("image_format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 2.5),
        ("JPEG", {"quality": 95, "progressive": True}, 2.5),
        ("JPEG", {"quality": 95, "keep_rgb": True}, 1.5),
        ("JPEG", {"quality": 95, "subsampling": "4:1:1"}, 4.0),
        ("BMP", {}, 0.0),
        ("GIF", {}, 8.0),
        ("JPEG2000", {}, 0.0),
        ("JPEG2000", {"no_jp2": True}, 0.0),
        ("PPM", {}, 0.0),
        ("TIFF", {"compression": "jpeg", "quality": 95}, 2.5),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 0.0),
        ("TIFF", {"big_tiff": True}, 0.0),
        ("WEBP", {"quality": 95}, 3.5),
        ("ICO", {}, 0.0),
        ("ICO", {"bitmap_format": "bmp"}, 0.0),
    ],
)
def test_every_format_shows_its_picture(image_format: str, options: dict[str, object], tolerance: float) -> None:
    assert difference(encoded(PICTURE, image_format, **options)) <= tolerance


def test_an_icon_shows_its_largest_picture() -> None:
    assert decoded(encoded(PICTURE, "ICO", sizes=[(16, 16), (48, 48), (32, 32)])).shape == (36, 48, 3)


def test_an_icon_of_256_pixels_is_its_largest_although_it_says_0() -> None:
    icon = encoded(Image.new("RGB", (256, 256)), "ICO", sizes=[(16, 16), (256, 256), (128, 128)])

    assert decoded(icon).shape == (256, 256, 3)


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "WEBP", "TIFF"])
def test_the_first_frame_counts(image_format: str) -> None:
    second = Image.fromarray(255 - PICTURE)
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(PICTURE, image_format, save_all=True, append_images=[second], **options)

    assert difference(data) <= (8.0 if image_format == "GIF" else 0.0)


def test_the_first_jpeg_of_a_stereo_file_counts() -> None:
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[Image.fromarray(255 - PICTURE)], quality=95)

    assert read_header(data).format == "JPEG"
    assert difference(data) <= 2.5


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped_not_blended(image_format: str) -> None:
    image = Image.fromarray(PICTURE).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(ROWS < 24, 0, 255).astype(np.uint8)))
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}

    assert difference(encoded(image, image_format, **options)) == 0


def test_grey_with_alpha_is_grey() -> None:
    image = Image.fromarray(GREY).convert("LA")
    image.putalpha(100)

    assert difference(encoded(image, "PNG"), replicated(GREY)) == 0


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test_a_palette_shows_its_colours_whatever_is_transparent(transparency: object) -> None:
    image = Image.fromarray(PICTURE).quantize(64)
    options = {} if transparency is None else {"transparency": transparency}

    assert difference(encoded(image, "PNG", **options), np.asarray(image.convert("RGB"))) == 0


def test_a_transparent_colour_is_shown() -> None:
    assert difference(encoded(PICTURE, "PNG", transparency=tuple(PICTURE[0, 0].tolist()))) == 0


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_one_bit_becomes_black_and_white(image_format: str) -> None:
    bits = GREY > 100

    assert difference(encoded(Image.fromarray(bits), image_format), replicated(bits * 255)) == 0


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(image_format: str) -> None:
    sixteen = GREY.astype(np.uint16) * 257

    assert difference(encoded(Image.fromarray(sixteen), image_format), replicated(GREY)) == 0


def test_sixteen_bits_of_big_endian_tiff_are_scaled() -> None:
    image = Image.frombytes("I;16B", (64, 48), (GREY.astype(">u2") * 257).tobytes())

    assert difference(encoded(image, "TIFF"), replicated(GREY)) == 0


def significant_bits(png: bytes, bits: int) -> bytes:
    """The PNG with an sBIT chunk behind its header."""
    chunk = b"sBIT" + bytes([bits])
    return png[:33] + struct.pack(">L", 1) + chunk + struct.pack(">L", zlib.crc32(chunk)) + png[33:]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_values_of_fewer_bits_in_sixteen_are_scaled_by_what_the_file_says_is_white(bits: int) -> None:
    white = 2**bits - 1
    values = np.round(GREY.astype(np.float64) / 255 * white).astype(np.uint16)
    values[0, 0] = white
    tiff = encoded(Image.fromarray(values), "TIFF", tiffinfo={281: white})
    png = significant_bits(encoded(Image.fromarray(values), "PNG"), bits)
    scaled_up = significant_bits(encoded(Image.fromarray(values << (16 - bits)), "PNG"), bits)
    expected = GREY.copy()
    expected[0, 0] = 255

    assert difference(tiff, replicated(expected)) <= 1
    assert difference(png, replicated(expected)) <= 1
    assert difference(scaled_up, replicated(expected)) <= 1


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("white", [255, 1023, 4095])
def test_values_that_may_be_of_fewer_bits_and_do_not_say_so_are_unsupported(image_format: str, white: int) -> None:
    values = np.round(GREY.astype(np.float64) / GREY.max() * white).astype(np.uint16)

    with pytest.raises(
        UnsupportedImage, match=rf"its largest value is {white} of 65535.* set the TIFF's MaxSampleValue"
    ):
        decode(encoded(Image.fromarray(values), image_format))


def test_a_black_picture_of_sixteen_bits_is_black_and_a_dark_one_that_says_so_is_dark() -> None:
    black = np.zeros((48, 64), np.uint16)
    dark = encoded(Image.fromarray(black + 2570), "TIFF", tiffinfo={281: 65535})

    assert difference(encoded(Image.fromarray(black), "TIFF"), replicated(np.zeros((48, 64), np.uint8))) == 0
    assert difference(dark, replicated(np.full((48, 64), 10, np.uint8))) == 0
    grey = encoded(Image.fromarray(black + 2048), "TIFF", tiffinfo={281: 4095})
    assert difference(grey, replicated(np.full((48, 64), 128, np.uint8))) == 0


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_by_what_must_be_their_white(white: float) -> None:
    floats = (GREY / np.float32(255) * np.float32(white)).astype(np.float32)

    assert difference(encoded(Image.fromarray(floats), "TIFF"), replicated(GREY)) == 0


@pytest.mark.parametrize("value", [-1.0, 70000.0, math.nan])
def test_floats_of_no_known_scale_are_unsupported(value: float) -> None:
    floats = np.full((48, 64), 0.5, np.float32)
    floats[3, 4] = value

    with pytest.raises(UnsupportedImage, match=r"its values run from .*; scale them to 0\.\.65535"):
        decode(encoded(Image.fromarray(floats), "TIFF"))


@pytest.mark.parametrize(("image_format", "tolerance"), [("JPEG", 2.0), ("TIFF", 0.0)])
def test_cmyk_is_right(image_format: str, tolerance: float) -> None:
    options = {"quality": 95} if image_format == "JPEG" else {}

    assert difference(encoded(Image.fromarray(PICTURE).convert("CMYK"), image_format, **options)) <= tolerance


def test_a_grey_jpeg_has_three_equal_channels() -> None:
    picture = decoded(encoded(GREY, "JPEG", quality=95))

    assert np.abs(picture.astype(int) - replicated(GREY)).max() <= 6
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[..., 0] == picture[..., 2]).all()


def test_a_laboratory_colour_space_is_unsupported() -> None:
    with pytest.raises(UnsupportedImage, match="LAB"):
        decode(encoded(Image.merge("LAB", Image.fromarray(PICTURE).split()), "TIFF"))


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("AVIF", {"speed": 10}),
        ("ICO", {}),
        ("PPM", {}),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_file_is_truncated(image_format: str, options: dict[str, object], share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(noise, image_format, **options)

    with pytest.raises(TruncatedImage):
        decode(data[: int(len(data) * share)])


def test_a_jpeg_without_its_end_marker_is_truncated() -> None:
    with pytest.raises(TruncatedImage, match="the JPEG is truncated: its picture is incomplete"):
        decode(encoded(PICTURE, "JPEG")[:-2])


def test_a_jpeg_with_garbage_after_its_end_is_shown() -> None:
    assert difference(encoded(PICTURE, "JPEG", quality=95) + b"\xff\xd8garbage" * 100) <= 2.5


def test_a_jpeg_with_an_unknown_table_is_unreadable() -> None:
    data = bytearray(encoded(PICTURE, "JPEG"))
    scan = data.index(b"\xff\xda")
    data[scan + 6] = 0x77  # tables 7 and 7 of the four that there may be

    with pytest.raises(UnreadableImage, match="the JPEG is damaged"):
        decode(bytes(data))


def test_a_flipped_bit_in_a_png_is_unreadable_not_half_a_picture() -> None:
    data = bytearray(encoded(PICTURE, "PNG"))
    data[data.index(b"IDAT") + 60] ^= 4

    with pytest.raises(UnreadableImage, match="the checksum of the PNG's IDAT chunk"):
        decode(bytes(data))


def test_lack_of_memory_is_not_an_error_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*args: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")

    def allocate_in_libavif(self: object) -> None:
        raise RuntimeError("Failed to decode frame 0: Out of memory")

    jpeg, avif = encoded(PICTURE, "JPEG"), encoded(PICTURE, "AVIF", speed=10)
    monkeypatch.setattr(torch.ops.image, "decode_jpeg", allocate)
    monkeypatch.setattr(AvifImageFile, "load", allocate_in_libavif)

    for data in (jpeg, avif):
        with pytest.raises(MemoryError, match=r"(allocate|Out of) memory"):
            decode(data)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def with_chunk(png: bytes, name: bytes, content: bytes, *, before: bytes) -> bytes:
    place = png.index(before) - 4
    return png[:place] + png_chunk(name, content) + png[place:]


def test_damaged_png_data_with_a_right_checksum_is_unreadable() -> None:
    data = encoded(PICTURE, "PNG")
    start = data.index(b"IDAT") + 4
    content = bytearray(data[start:-16])
    content[50:90] = bytes(40)

    with pytest.raises(UnreadableImage, match="the pixels of the PNG are damaged"):
        decode(data[: start - 8] + png_chunk(b"IDAT", bytes(content)) + data[-12:])


def test_a_text_chunk_that_unpacks_to_megabytes_is_never_unpacked() -> None:
    bomb = b"Comment\0\0" + zlib.compress(bytes(1 << 23))

    assert difference(with_chunk(encoded(PICTURE, "PNG"), b"zTXt", bomb, before=b"IDAT")) == 0


def test_the_exif_of_a_png_counts_after_its_pixels_too() -> None:
    exif = orientation_exif(6).tobytes().removeprefix(b"Exif\0\0")
    data = with_chunk(encoded(stored_for(6), "PNG"), b"eXIf", exif, before=b"IEND")

    assert difference(data) == 0


def test_a_gif_frame_outside_its_screen_makes_the_picture_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encoded(GREY, "GIF"))
    data[6:10] = struct.pack("<HH", 10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow would warn when it makes the screen larger

    assert difference(bytes(data), replicated(GREY)) == 0


def test_a_tag_of_a_tiff_that_points_nowhere_does_not_matter_if_no_pixel_needs_it() -> None:
    data = bytearray(encoded(PICTURE, "TIFF", tiffinfo={270: "a description of the picture"}))
    entry = data.index(struct.pack("<HH", 270, 2))
    data[entry + 8 : entry + 12] = struct.pack("<L", 2**31)

    assert difference(bytes(data)) == 0


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "AVIF", "JPEG2000"])
def test_no_size_makes_pillow_warn(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PICTURE, image_format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # above this it warns, which is an error here

    assert decoded(data).shape == (48, 64, 3)


def test_threads_decode_at_once() -> None:
    files = [encoded(PICTURE, image_format) for image_format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")] * 20
    alone = [decode(data) for data in files]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, files))

    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_decoded_picture_is_in_the_memory_that_resizes_fastest() -> None:
    for orientation in (1, 6):
        image = decode(encoded(stored_for(orientation), "JPEG", exif=orientation_exif(orientation)))

        assert image.stride() == (1, 3 * 64, 3)


# the size rule

GOLDEN_RULES = {
    "val_800_1333": (800, 1333),
    "train_480_1333": (480, 1333),
    "train_640_1333": (640, 1333),
    "train_736_1333": (736, 1333),
    "crop_400": (400, None),
    "crop_500": (500, None),
    "crop_600": (600, None),
}


@pytest.mark.parametrize("name", GOLDEN_RULES)
def test_sizes_are_those_of_the_original(name: str) -> None:
    golden = np.load(GOLDEN / "resize_sizes.npz")  # made by running the original at 29901c51: exact
    shorter, longest = GOLDEN_RULES[name]
    refused = 0

    for (width, height), expected in zip(golden["wh"].tolist(), golden[name].tolist(), strict=True):
        if 0 in expected:
            refused += 1
            with pytest.raises(TooExtreme, match="too narrow"):
                resize_shape(height, width, shorter=shorter, longest=longest)
        else:
            assert list(resize_shape(height, width, shorter=shorter, longest=longest)) == expected, (width, height)

    assert refused == int((golden[name] == 0).any(axis=1).sum())
    assert len(golden["wh"]) == 3000


def original_rule(w: int, h: int, size: int, max_size: int | None) -> tuple[int, int]:
    """The formula of the original, as the paper's code has it."""
    s = size
    if max_size is not None and max(w, h) / min(w, h) * size > max_size:
        s = round(max_size * min(w, h) / max(w, h))
    if (w <= h and w == s) or (h <= w and h == s):
        return h, w
    if w < h:
        return int(s * h / w), s
    return s, int(s * w / h)


@given(
    st.integers(1, 70_000) | st.integers(1, 2000),
    st.integers(1, 70_000) | st.integers(1, 2000),
    st.integers(1, 1400),
    st.none() | st.integers(1, 2000),
)
def test_any_size_is_that_of_the_formula(width: int, height: int, shorter: int, longest: int | None) -> None:
    expected = original_rule(width, height, shorter, longest)

    if 0 in expected:
        with pytest.raises(TooExtreme):
            resize_shape(height, width, shorter=shorter, longest=longest)
    else:
        assert resize_shape(height, width, shorter=shorter, longest=longest) == expected


def test_known_sizes() -> None:
    assert resize_shape(480, 640) == (800, 1066)
    assert resize_shape(640, 480) == (1066, 800)
    assert resize_shape(600, 1334) == (600, 1334)  # the longer side may pass the limit: the shorter is rounded first
    assert resize_shape(1, 1) == (800, 800)
    assert resize_shape(1, 2665) == (1, 2665)
    with pytest.raises(TooExtreme, match=r"4000 x 1 pixels \(width x height\)"):
        resize_shape(1, 4000)


# pixels


@pytest.mark.parametrize("has_vector_instructions", [True, False])
def test_resized_pixels_are_torchvisions_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch, has_vector_instructions: bool
) -> None:
    from torchvision.transforms.v2 import functional  # here: it takes a second to import
    from torchvision.transforms.v2.functional import _geometry

    monkeypatch.setattr("detr.images.decoding._resizes_uint8", lambda: has_vector_instructions)
    monkeypatch.setattr(_geometry, "_do_native_uint8_resize_on_cpu", lambda _: has_vector_instructions)
    generator = torch.Generator().manual_seed(0)
    for height, width, new_height, new_width in [
        (48, 64, 30, 40), (48, 64, 96, 128), (1, 7, 3, 2), (61, 5, 61, 9), (33, 44, 33, 44), (200, 150, 17, 149),
    ]:  # fmt: skip
        picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)

        theirs = functional.resize(
            picture, [new_height, new_width], functional.InterpolationMode.BILINEAR, antialias=True
        )

        for image in (picture, picture.contiguous()):
            resized = resize(image, new_height, new_width)
            assert torch.equal(resized, theirs)
            assert resized.stride() == theirs.stride()


@pytest.mark.parametrize("case", [0, 1, 5])
def test_resized_pixels_are_those_of_the_original(case: int) -> None:
    golden = load_file(GOLDEN / "pixels.safetensors")  # resized by the original through Pillow 13: 1 grey level
    image, expected = golden[f"{case}/image_u8_hwc"], golden[f"{case}/resized_u8_hwc"]

    resized = resize(image.permute(2, 0, 1), *expected.shape[:2]).permute(1, 2, 0)

    assert resized.dtype == torch.uint8
    assert (resized.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("height", "width"), [(96, 128), (37, 50), (12, 16), (5, 7), (1, 64), (48, 3), (130, 20), (48, 64), (1, 1)]
)
def test_resized_pixels_are_pillows_up_and_down(height: int, width: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))

    for image in (torch.from_numpy(noise).permute(2, 0, 1), torch.from_numpy(noise).permute(2, 0, 1).contiguous()):
        resized = resize(image, height, width).permute(1, 2, 0).numpy()

        assert np.abs(resized.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", pillow.EIGHT_BITS)
def test_every_mode_of_eight_bits_becomes_rgb(mode: str) -> None:
    assert pillow.to_rgb(Image.new(mode, (3, 2)), Samples()).shape == (2, 3, 3)
