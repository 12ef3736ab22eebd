"""Small files that claim or unpack to gigabytes: refused by their header, or read without what is packed in them."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parents[2]
MEGABYTE = 1024**2
GIGABYTE = 1024**3
SMALL = 48 * MEGABYTE  # beside the file itself; what a photograph of 12 megapixels takes


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, *others: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *others, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def packed(size: int) -> bytes:
    """Zeros that take a thousandth of their size."""
    packer, block = zlib.compressobj(9), bytes(MEGABYTE)
    return b"".join(packer.compress(block) for _ in range(size // MEGABYTE)) + packer.flush()


def drawn(image_format: str, **options: object) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(sink, image_format, **options)
    return sink.getvalue()


@cache
def heic(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (width, height), (200, 30, 30))).save(sink, quality=10)
    return sink.getvalue()


def animated(image_format: str, frames: int) -> bytes:
    sink = io.BytesIO()
    pictures = [Image.new("RGB", (64, 64), (number % 256, number // 256, 0)) for number in range(frames)]
    pictures[0].save(sink, image_format, save_all=True, append_images=pictures[1:])
    return sink.getvalue()


def claiming(data: bytes, at: int, form: str, *values: int) -> bytes:
    """The file with other numbers at one place."""
    return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


def jpeg(width: int, height: int, *segments: bytes) -> bytes:
    data = drawn("JPEG")
    data = claiming(data, data.index(b"\xff\xc0") + 5, ">HH", height, width)
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def tiff(width: int, height: int, strip: bytes, *, compression: int) -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
               (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(strip))]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + bytes(4)


def exif_of_many_entries() -> bytes:
    entries = b"".join(struct.pack("<HHII", 0x9003, 2, 0xFFFFFFFF, 8) for _ in range(5000))
    return segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 0xFFFF) + entries[:65000])


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    # the header says it
    "png": (lambda: png(50_000, 50_000, packed(2 * GIGABYTE)), "too_large"),
    "jpeg": (lambda: jpeg(65_500, 65_500), "too_large"),
    "gif": (lambda: claiming(drawn("GIF"), 6, "<HH", 65_500, 65_500), "too_large"),
    "webp": (lambda: b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<IB", 10, 0) + bytes(3) + b"\xff" * 6,
             "too_large"),
    "tiff": (lambda: tiff(60_000, 60_000, packed(GIGABYTE), compression=8), "too_large"),
    "bmp": (lambda: claiming(drawn("BMP"), 18, "<ii", 60_000, 60_000), "too_large"),
    "ppm": (lambda: b"P6 60000 60000 255\n" + bytes(100), "too_large"),
    "psd": (lambda: b"8BPS" + struct.pack(">H6xHLLHH", 1, 3, 30_000, 30_000, 8, 3) + bytes(100), "too_large"),
    "heic": (lambda: claiming(heic(8, 8), heic(8, 8).index(b"ispe") + 8, ">LL", 60_000, 60_000), "too_large"),
    # the header says little, and what is packed in it is much
    "heic of a larger picture": (
        lambda: claiming(heic(8_000, 6_000), heic(8_000, 6_000).index(b"ispe") + 8, ">LL", 8, 8), "unreadable"),
    "png of a longer picture": (lambda: png(8, 8, packed(GIGABYTE)), "(3, 8, 8)"),
    "png of a packed text": (lambda: png(8, 8, zlib.compress(bytes(72)), chunk(b"zTXt", b"a\0\0" + packed(GIGABYTE))),
                             "(3, 8, 8)"),
    "png of an international text": (
        lambda: png(8, 8, zlib.compress(bytes(72)), chunk(b"iTXt", b"a\0\x01\0\0\0" + packed(GIGABYTE))), "(3, 8, 8)"),
    "png of a packed profile": (
        lambda: png(8, 8, zlib.compress(bytes(72)), chunk(b"iCCP", b"a\0\0" + packed(GIGABYTE))), "(3, 8, 8)"),
    "png of many texts": (
        lambda: png(8, 8, zlib.compress(bytes(72)), *[chunk(b"tEXt", b"a\0b")] * 200_000), "(3, 8, 8)"),
    "tiff of a longer strip": (lambda: tiff(8, 8, packed(GIGABYTE), compression=8), "(3, 8, 8)"),
    "jpeg of much exif": (lambda: jpeg(8, 8, *[exif_of_many_entries()] * 100), "(3, 8, 8)"),
    "jpeg of a large profile": (
        lambda: jpeg(8, 8, *[segment(0xE2, b"ICC_PROFILE\0\x01\xff" + bytes(65_000))] * 255), "(3, 8, 8)"),
    # thousands of pictures of which one is looked at
    "gif of many frames": (lambda: animated("GIF", 3000), "(3, 64, 64)"),
    "png of many frames": (lambda: animated("PNG", 3000), "(3, 64, 64)"),
    "webp of many frames": (lambda: animated("WEBP", 1000), "(3, 64, 64)"),
}  # fmt: skip


@pytest.mark.slow
def test_no_small_file_takes_much_memory(tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(drawn("PNG"))
    sizes = {}
    for name, (make, _) in BOMBS.items():
        data = make()
        sizes[name] = len(data)
        (tmp_path / name).write_bytes(data)
    assert max(sizes.values()) < 20 * MEGABYTE

    done = subprocess.run(
        [sys.executable, "-m", "tests.security.decoding_peaks", *(str(tmp_path / name) for name in ("first", *BOMBS))],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name: outcome for name, outcome, _ in found} == {name: outcome for name, (_, outcome) in BOMBS.items()}
    assert {name: peak for name, _, peak in found if peak > SMALL + 3 * sizes[name]} == {}


def test_pillow_itself_would_unpack_the_texts() -> None:
    data = png(8, 8, zlib.compress(bytes(72)), chunk(b"zTXt", b"a\0\0" + packed(2 * MEGABYTE)))

    with pytest.raises(ValueError, match="Decompressed data too large"):
        PngImagePlugin.PngImageFile(io.BytesIO(data)).load()
