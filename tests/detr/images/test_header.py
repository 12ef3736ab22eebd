"""Headers of images without decoding, and the kinds of errors for bytes that are not an image."""

import io
import struct
import zlib
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from detr.images import header as image_header
from detr.images.decoding import ImageError, decode, read_header

BLACK = Image.new("RGB", (64, 48))
NOON = datetime.fromisoformat("2026-05-06T12:00:00")


def encoded(image_format: str, image: Image.Image = BLACK, **options: object) -> bytes:
    buffer = io.BytesIO()
    if image_format == "ICO":
        options["sizes"] = [image.size]
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def camera_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    exif[271] = "a camera"
    exif.get_ifd(34665)[36867] = "2026:05:06 12:00:00"
    return exif


def kind_of(data: bytes) -> str:
    """Return the error kind of such bytes, or `ok`."""
    try:
        decode(data)
    except ImageError as error:
        return error.kind
    return "ok"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_header_tells_format_upright_size_turning_and_time(image_format: str) -> None:
    header = read_header(encoded(image_format, exif=camera_exif(6)))

    assert (header.format, header.height, header.width) == (image_format, 64, 48)
    assert (header.orientation, header.taken_at) == (6, NOON)


def test_a_tiff_tells_when_it_was_taken() -> None:
    data = encoded("TIFF", Image.new("L", (64, 48)), tiffinfo={274: 6, 34665: 8})
    text = b"2026:05:06 12:00:00\0"
    start = len(data)
    directory = struct.pack("<HHHLLL", 1, 36867, 2, len(text), start + 18, 0) + text
    entry = data.index(struct.pack("<HHL", 34665, 4, 1))
    data = data[: entry + 8] + struct.pack("<L", start) + data[entry + 12 :] + directory

    header = read_header(data)

    assert (header.height, header.width, header.orientation, header.taken_at) == (64, 48, 6, NOON)


@pytest.mark.parametrize(
    "image_format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO"]
)
def test_a_header_is_read_without_decoding(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(image_format)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a pixel was decoded"))

    header = read_header(data)

    assert (header.format, header.height, header.width, header.taken_at) == (image_format, 48, 64, None)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_as_none(image_format: str) -> None:
    data = encoded(image_format, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\x7f" + b"\x12\x01\x03\0")

    assert read_header(data).orientation == 1
    assert kind_of(data) == "ok"


def test_exif_after_the_frame_header_of_a_jpeg_counts() -> None:
    data = encoded("JPEG", exif=camera_exif(6))
    start = data.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    scan = data.index(b"\xff\xda")

    moved = data[:start] + data[end:scan] + data[start:end] + data[scan:]

    assert read_header(moved).orientation == 6


def test_of_two_exif_blocks_the_first_counts() -> None:
    data = encoded("JPEG", exif=camera_exif(6))
    start = data.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    other = data[start:end].replace(struct.pack(">HHLH", 274, 3, 1, 6), struct.pack(">HHLH", 274, 3, 1, 3))
    assert other != data[start:end]

    assert read_header(data[:end] + other + data[end:]).orientation == 6
    assert read_header(data[:start] + other + data[start:]).orientation == 3


def test_fill_bytes_and_stray_bytes_between_the_segments_of_a_jpeg_do_not_matter() -> None:
    data = encoded("JPEG")
    frame = data.index(b"\xff\xc0")

    assert read_header(data[:frame] + b"\xff\xff\xff" + data[frame:]).width == 64
    assert read_header(data[:frame] + b"\0stray\0" + data[frame:]).width == 64
    assert read_header(data[:frame] + b"\xff\x01\xff\x00" + data[frame:]).width == 64  # markers without a length


# sizes


def claimed(image_format: str, width: int, height: int) -> bytes:
    """Return a small file whose header claims another size."""
    data = bytearray(encoded(image_format))
    if image_format == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif image_format == "PNG":
        data[16:24] = struct.pack(">LL", width, height)
        data[29:33] = struct.pack(">L", zlib.crc32(data[12:29]))
    elif image_format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif image_format == "BMP":
        data[18:26] = struct.pack("<ll", width, height)
    elif image_format == "WEBP":
        data[26:30] = struct.pack("<HH", width, height)
    elif image_format == "AVIF":
        place = data.index(b"ispe") + 8
        data[place : place + 8] = struct.pack(">LL", width, height)
    elif image_format == "JPEG2000":
        place = data.index(b"ihdr") + 4
        data[place : place + 8] = struct.pack(">LL", height, width)
        place = data.index(b"\xff\x51") + 6
        data[place : place + 8] = struct.pack(">LL", width, height)
    else:
        for tag, side in ((256, width), (257, height)):
            place = data.index(struct.pack("<HHL", tag, 4, 1)) + 8
            data[place : place + 4] = struct.pack("<L", side)
    return bytes(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000", "TIFF"])
def test_too_many_pixels_are_refused_by_the_header(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = claimed(image_format, 16_000, 16_000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a pixel was decoded"))

    with pytest.raises(ImageError, match=r"16000 x 16000 pixels \(width x height\) are more than the limit") as refused:
        read_header(data)

    assert refused.value.kind == "too_large"


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = encoded("JPEG")

    assert read_header(data, max_pixels=64 * 48).width == 64
    with pytest.raises(ImageError, match="limit of 3,071"):
        decode(data, max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_a_side_of_no_pixels_is_unreadable(image_format: str) -> None:
    assert kind_of(claimed(image_format, 0, 48)) == "unreadable"


# bytes that are not an image


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"\0", "not_an_image"),
        (b"\0" * 64 + encoded("JPEG"), "not_an_image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image"),
        (b"\xef\xbb\xbf\r\n<HTML></HTML>", "not_an_image"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%PDF-1.7\n", "not_an_image"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "not_an_image"),
        (b"PK\x03\x04....", "not_an_image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not_an_image"),
        (b'{"error": "forbidden"}', "not_an_image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "not_an_image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unreadable"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", "unsupported"),
        (b"\xff\x0a\0\0", "unsupported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported"),
        (b"8BPS\0\2" + bytes(20), "unsupported"),
        (b"FUJIFILMCCD-RAW 0201", "unsupported"),
        (b"\xff\xd8", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "truncated"),
        (b"II*\0\x08\0\0\0", "truncated"),
        (b"RIFF\x40\0\0\0WEBPVP8 ", "truncated"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "truncated"),
        (b"\0\0\1\0\1\0", "truncated"),
        (b"8BPS\0\1", "truncated"),
        (b"\xff\xd8\xff\xd9", "truncated"),
        (b"\xff\xd8\xff\xda\0\x08", "unreadable"),
        (b"\0\0\1\0\0\0", "unreadable"),
        (b"BM" + bytes(60), "unreadable"),
        (b"P6 64", "truncated"),
        (b"P2 3 2 255 1 2 3 4", "truncated"),
        (b"P2 3 2 255 1 2 3 4 5 6 ", "ok"),
    ],
)  # fmt: skip
def test_bytes_that_are_not_an_image_are_distinguished(data: bytes, kind: str) -> None:
    assert kind_of(data) == kind


@pytest.mark.parametrize(
    ("process", "precision", "components", "said"),
    [(0xC3, 8, 3, "lossless"), (0xC1, 12, 3, "12 bits"), (0xC0, 8, 2, "2 components"), (0xC7, 8, 3, "hierarchical")],
)
def test_jpegs_that_no_decoder_here_shows_are_unsupported(
    process: int, precision: int, components: int, said: str
) -> None:
    data = bytearray(encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4], data[frame + 9] = process, precision, components

    with pytest.raises(ImageError, match=said) as refused:
        decode(bytes(data))

    assert refused.value.kind == "unsupported"


def test_a_jpeg_that_tells_its_height_later_is_unsupported() -> None:
    assert kind_of(claimed("JPEG", 64, 0)) == "unsupported"


@pytest.mark.parametrize("tiffinfo", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}])
def test_the_thumbnail_of_a_raw_file_is_not_taken_for_the_photograph(tiffinfo: dict[int, object]) -> None:
    assert kind_of(encoded("TIFF", tiffinfo=tiffinfo)) == "unsupported"


def test_a_colour_type_that_does_not_exist_is_unreadable() -> None:
    data = bytearray(encoded("PNG"))
    data[25] = 9

    assert kind_of(bytes(data)) == "unreadable"


def test_a_file_that_gives_its_picture_two_sizes_is_unreadable() -> None:
    data = encoded("PNG")
    other = encoded("PNG", BLACK.crop((0, 0, 64, 40)))

    with pytest.raises(ImageError, match=r"64 x 48 pixels .* its picture has 64 x 40: the file is inconsistent"):
        decode(data[:33] + other[8:])


# Small files of noise, so that damage finds something to damage.
NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (24, 32, 3), dtype=np.uint8))
SEEDS = [
    encoded("JPEG", NOISE, exif=camera_exif(6)),
    encoded("PNG", NOISE, exif=camera_exif(6)),
    encoded("WEBP", NOISE, exif=camera_exif(6)),
    encoded("GIF", NOISE, comment=b"noise"),
    encoded("TIFF", NOISE, compression="tiff_lzw", tiffinfo={274: 6, 270: "a description"}),
    encoded("TIFF", NOISE, big_tiff=True),
    encoded("AVIF", NOISE, exif=camera_exif(6), speed=10),
    encoded("BMP", NOISE),
    encoded("ICO", NOISE, bitmap_format="bmp"),
    encoded("JPEG2000", NOISE),
]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    cut=st.integers(0, 4000),
    flips=st.lists(st.tuples(st.integers(0, 3000) | st.integers(0, 250), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_file_is_a_picture_or_an_image_error(seed: bytes, cut: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(seed)
    for place, byte in flips:
        data[place % len(data)] = byte

    # nothing else may be raised; warnings are errors here
    kind_of(bytes(data[: len(data) - cut]) if cut < len(data) // 2 else bytes(data))


def test_a_header_of_a_photograph_takes_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    class Counted(bytes):
        def find(self, *args: object) -> int:  # type: ignore[override]
            nonlocal steps
            steps += 1
            return super().find(*args)  # type: ignore[arg-type]

    image_header.read_header(Counted(encoded("JPEG", Image.effect_noise((640, 480), 50))))

    assert steps < 12  # one a segment: the scan itself, of some hundred kilobytes, is not walked
