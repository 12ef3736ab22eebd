"""Whole images of many formats and modes, small enough that damage finds something to damage."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from tests.detr.images.heic_grid import grid_heic

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "HEIC", "others")


@cache
def seeds() -> dict[str, tuple[bytes, ...]]:
    """Return encoded pictures by format; the same ones in every process."""
    return {
        "JPEG": tuple(_jpegs()),
        "PNG": tuple(_pngs()),
        "WEBP": tuple(_webps()),
        "GIF": tuple(_gifs()),
        "TIFF": tuple(_tiffs()),
        "HEIC": tuple(_heics()),
        "others": tuple(_others()),
    }


def picture(mode: str = "RGB", height: int = 40, width: int = 56) -> Image.Image:
    """Return half noise, half plain colour: both the dense and the sparse paths of decoders have work."""
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[:, width // 2 :] = (200, 30, 90)
    image = Image.fromarray(noise)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def _encoded(image_format: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "a camera"
    exif.get_ifd(34665)[36867] = "2026:05:06 12:00:00"
    return exif


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _jpegs() -> list[bytes]:
    return [
        _encoded("JPEG", picture()),
        _encoded("JPEG", picture("L")),
        _encoded("JPEG", picture("CMYK")),
        _encoded("JPEG", picture(), progressive=True, exif=_exif()),
        _encoded("JPEG", picture("CMYK"), progressive=True),
        _encoded("JPEG", picture(), subsampling=2, optimize=True, restart_marker_blocks=2),
        _encoded("JPEG", picture(), subsampling=0, quality=100, icc_profile=_profile()),
        _encoded("JPEG", picture(height=8, width=200), subsampling=1, comment=b"a comment"),
    ]


def _pngs() -> list[bytes]:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("a", "text" * 20)
    texts.add_text("z", "text" * 200, zip=True)
    texts.add_itxt("i", "text" * 200, zip=True)
    return [
        *(_encoded("PNG", picture(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        _encoded("PNG", picture("P"), transparency=3, bits=8),
        _encoded("PNG", picture(), exif=_exif(), icc_profile=_profile(), dpi=(72, 72)),
        _encoded("PNG", picture(), pnginfo=texts, compress_level=0),
        _encoded("PNG", picture(), save_all=True, append_images=[picture("RGB"), picture("RGB").rotate(90)]),
    ]


def _webps() -> list[bytes]:
    return [
        _encoded("WEBP", picture()),
        _encoded("WEBP", picture(), lossless=True),
        _encoded("WEBP", picture("RGBA"), lossless=True, exact=True),
        _encoded("WEBP", picture("RGBA"), quality=20, alpha_quality=30),
        _encoded("WEBP", picture(), exif=_exif(), icc_profile=_profile()),
        _encoded("WEBP", picture(), save_all=True, append_images=[picture().rotate(180)], duration=100),
    ]


def _gifs() -> list[bytes]:
    more = [picture("P").rotate(90), picture("P").rotate(180)]
    return [
        _encoded("GIF", picture("P")),
        _encoded("GIF", picture("L"), interlace=0),
        _encoded("GIF", picture("1")),
        _encoded("GIF", picture("P"), transparency=5, comment=b"noise" * 60),
        _encoded("GIF", picture("P"), save_all=True, append_images=more, duration=50, loop=0, disposal=2),
    ]


def _tiffs() -> list[bytes]:
    plain = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")
    packed = [("RGB", name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")]
    packed += [("1", name) for name in ("group3", "group4", "tiff_ccitt")]
    packed += [("L", "tiff_lzw"), ("P", "tiff_lzw"), ("I;16", "tiff_adobe_deflate"), ("YCbCr", "jpeg"), ("L", "jpeg")]
    found = [_encoded("TIFF", picture(mode)) for mode in plain]
    found += [_encoded("TIFF", picture(mode), compression=name) for mode, name in packed]
    strips = TiffImagePlugin.ImageFileDirectory_v2()
    strips[278] = 3  # rows of a strip
    found.append(_encoded("TIFF", picture(), compression="tiff_lzw", tiffinfo=strips))
    found.append(_encoded("TIFF", picture(), big_tiff=True))
    found.append(_encoded("TIFF", picture(), save_all=True, append_images=[picture("L"), picture()]))
    found.append(_encoded("TIFF", picture(), tiffinfo={274: 6, 270: "a description"}))
    predicted = TiffImagePlugin.ImageFileDirectory_v2()
    predicted[317] = 2
    found.append(_encoded("TIFF", picture(), compression="tiff_lzw", tiffinfo=predicted))
    found.append(_tiled_tiff())
    return found


def _tiled_tiff() -> bytes:
    """Return a big-endian TIFF of four tiles, which Pillow reads but does not write."""
    side = 16
    tiles = [bytes([shade]) * (side * side) for shade in (0, 80, 160, 240)]
    start = 8 + sum(map(len, tiles))
    entries = [
        (256, 4, 1, 2 * side), (257, 4, 1, 2 * side), (258, 3, 1, 8 << 16), (259, 3, 1, 1 << 16),
        (262, 3, 1, 1 << 16), (277, 3, 1, 1 << 16), (322, 4, 1, side), (323, 4, 1, side),
        (324, 4, 4, start + 2 + 12 * 10 + 4), (325, 4, 4, start + 2 + 12 * 10 + 4 + 16),
    ]  # fmt: skip
    directory = len(entries).to_bytes(2) + b"".join(
        tag.to_bytes(2) + kind.to_bytes(2) + count.to_bytes(4) + value.to_bytes(4)
        for tag, kind, count, value in entries
    )
    offsets = b"".join((8 + index * side * side).to_bytes(4) for index in range(4))
    sizes = (side * side).to_bytes(4) * 4
    return b"MM\0*" + start.to_bytes(4) + b"".join(tiles) + directory + bytes(4) + offsets + sizes


def _heics() -> list[bytes]:
    return [
        _heic([picture()], exif=_exif().tobytes(), quality=50),
        _heic([picture("RGBA")], quality=90),
        _heic([picture("L")], chroma=444, quality=-1),
        _heic([picture(height=200, width=8)], quality=20),
        _heic([picture(), picture("RGBA").rotate(180)], primary_index=1),
        grid_heic(picture(height=100, width=130), quarters=3),  # tiles, as iPhones write them
    ]


def _heic(images: list[Image.Image], **options: object) -> bytes:
    file = pillow_heif.from_pillow(images[0])
    for image in images[1:]:
        file.add_from_pillow(image)
    sink = io.BytesIO()
    file.save(sink, **options)
    return sink.getvalue()


def _others() -> list[bytes]:
    return [
        _encoded("AVIF", picture(), exif=_exif(), speed=10),
        _encoded("BMP", picture()),
        _encoded("BMP", picture("P")),
        _encoded("ICO", picture(height=32, width=32), sizes=[(32, 32)], bitmap_format="bmp"),
        _encoded("ICO", picture(height=32, width=32), sizes=[(32, 32)]),
        _encoded("JPEG2000", picture()),
        _encoded("JPEG2000", picture(), no_jp2=True),
        _encoded("PPM", picture()),
    ]
