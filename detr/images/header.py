"""Read format, upright size, orientation and time of exposure from an image's header, without decoding pixels."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detr.images import MAX_PIXELS
from detr.images.avif import read_avif
from detr.images.gif import SIGNATURES as GIF_SIGNATURES
from detr.images.gif import read_gif
from detr.images.heic import BRANDS as HEIC_BRANDS
from detr.images.heic import read_heic
from detr.images.icon import SIGNATURE as ICON_SIGNATURE
from detr.images.icon import read_icon
from detr.images.pillow import open_picture
from detr.images.png import SIGNATURE as PNG_SIGNATURE
from detr.images.png import read_png
from detr.images.results import (
    EmptyImage,
    Header,
    ImageTooLarge,
    NotAnImage,
    TruncatedImage,
    UnreadableImage,
    UnsupportedImage,
    upright_header,
)
from detr.images.tiff import SIGNATURES as TIFF_SIGNATURES
from detr.images.tiff import read_tiff

if TYPE_CHECKING:
    from collections.abc import Callable


_JPEG_SIGNATURE = b"\xff\xd8"
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15; the others are tables
_DECODABLE_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # sequential or progressive, Huffman or arithmetic
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})

_JPEG2000_SIGNATURES = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_PPM_SIGNATURES = tuple(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \t\r\n#")
_PSD_MODES = {(0, 1), (0, 8), (1, 8), (2, 8), (3, 8), (4, 8), (7, 8), (8, 8)}  # colour mode and bits that Pillow knows

# Image formats that are not supported.
_UNSUPPORTED = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"BPG\xfb": "BPG",
    b"FLIF": "FLIF",
    b"qoif": "QOI",
    b"DDS ": "DirectDraw",
    b"icns": "Apple icon",
    b"gimp xcf": "GIMP",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"#?RGBE": "Radiance HDR",
    b"AT&TFORM": "DjVu",
    b"SIMPLE  =": "FITS",
    b"IIRO": "camera raw (Olympus)",
    b"IIRS": "camera raw (Olympus)",
    b"MMOR": "camera raw (Olympus)",
    b"IIU\0": "camera raw (Panasonic)",
    b"FUJIFILMCCD-RAW": "camera raw (Fujifilm)",
    b"FOVb": "camera raw (Sigma)",
    b"\0\0\2\0": "Windows cursor or Targa",
}
_UNSUPPORTED_BRANDS = {b"crx ": "camera raw (Canon)"}
# Other contents that files with an image's name often have.
_OTHERS = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
    b"\x1f\x8b": "a gzip archive (an object stored with Content-Encoding: gzip must be unpacked first)",
    b"PK\x03\x04": "a ZIP archive",
    b"PK\x05\x06": "an empty ZIP archive",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"(\xb5/\xfd": "a zstd archive",
    b"version https://git-lfs": "a Git LFS pointer; fetch the image itself with git lfs pull",
    b"\x1aE\xdf\xa3": "a video",
    b"PAR1": "a Parquet file",
    b"{": "JSON",
}


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Return format, upright size, orientation and time of exposure of an encoded image, without decoding it.

    A COCO photograph takes 7 microseconds, a camera's with EXIF 20 to 35. Damaged EXIF is ignored.

    Raises:
        ImageError: a subclass names the problem. Damaged pixels are detected by `decode` only.
    """
    if not data:
        raise EmptyImage("the file is empty; upload it again")
    header = _reader(data)(data)
    if header.height * header.width > max_pixels:
        raise ImageTooLarge(
            f"{header.width} x {header.height} pixels (width x height) are more than the limit of {max_pixels:,}; "
            "scale the image down, or cut it into pieces"
        )
    return header


def _reader(data: bytes) -> Callable[[bytes], Header]:
    """Return the header reader for a file, chosen by its first bytes."""
    if data.startswith(_JPEG_SIGNATURE):
        return _read_jpeg
    if data.startswith(PNG_SIGNATURE):
        return read_png
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _read_webp
    if data.startswith(GIF_SIGNATURES):
        return read_gif
    if data.startswith(TIFF_SIGNATURES):
        return read_tiff
    if data[4:8] == b"ftyp":
        return _box_reader(data)
    if data.startswith(ICON_SIGNATURE):
        return read_icon
    if data.startswith(b"BM"):
        return _read_bitmap
    if data.startswith(b"8BPS"):
        return _read_psd
    if data.startswith(_JPEG2000_SIGNATURES):
        return _read_jpeg2000
    if data.startswith(_PPM_SIGNATURES):
        return _read_ppm
    raise _stranger(data)


def _box_reader(data: bytes) -> Callable[[bytes], Header]:
    """Return the reader of AVIF or HEIC; raw files and videos have the same container."""
    end = min(int.from_bytes(data[:4]), 256)
    brands = [data[start : start + 4] for start in (8, *range(16, end, 4))]
    if b"avif" in brands or b"avis" in brands:
        return read_avif
    if not HEIC_BRANDS.isdisjoint(brands):
        return read_heic
    for brand in brands:
        if brand in _UNSUPPORTED_BRANDS:
            raise UnsupportedImage(f"{_UNSUPPORTED_BRANDS[brand]} cannot be decoded here; convert it to JPEG first")
    raise NotAnImage("the file is a video (MP4 or QuickTime); extract its frames first")


def _stranger(data: bytes) -> NotAnImage | UnsupportedImage:
    """Return the error that best describes the bytes."""
    for signature, name in _UNSUPPORTED.items():
        if data.startswith(signature):
            return UnsupportedImage(f"{name} cannot be decoded here; convert it to JPEG or PNG first")
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<?xml", b"<svg", b"<!doctype", b"<html", b"<!--", b"<error", b"<head", b"<body")):
        if b"<svg" in start:
            return NotAnImage("the file is a drawing (SVG), not pixels; render it to PNG first")
        if b"<html" in start or b"<!doctype html" in start:
            return NotAnImage("the file is a web page: the server sent a page, perhaps an error message")
        return NotAnImage(
            "the file is XML, perhaps an object store's error message that was saved under the name of an image"
        )
    for signature, name in _OTHERS.items():
        if data.startswith(signature):
            return NotAnImage(f"the file is {name}")
    return NotAnImage(f"the file begins with {data[:8]!r}, which is not a known image format")


def _read_jpeg(data: bytes) -> Header:
    """Read the markers up to the first scan: EXIF may be before or after the frame header."""
    frame: tuple[int, int, int, int, int] | None = None
    exif: bytes | None = None
    position = 2
    while True:
        position = data.find(b"\xff", position)  # libjpeg skips stray bytes between segments, too
        while position >= 0 and data[position : position + 1] == b"\xff":  # any number of them may fill up
            position += 1
        if position < 0 or position + 3 > len(data):
            raise TruncatedImage("the JPEG ends before its first scan")
        marker = data[position]
        if marker == _START_OF_SCAN:
            break
        if marker == _END_OF_IMAGE:
            raise UnreadableImage("the JPEG has no scan")
        if marker in _WITHOUT_LENGTH:
            position += 1
            continue
        start, end = position + 3, position + 1 + int.from_bytes(data[position + 1 : position + 3])
        if marker in _FRAMES and frame is None:
            if start + 6 > len(data):
                raise TruncatedImage("the JPEG ends inside its frame header")
            frame = (marker, *struct.unpack_from(">BHHB", data, start))
        elif marker == _APP1 and exif is None and data.startswith(b"Exif\0", start):
            exif = data[start:end]
        position = max(end, start)
    if frame is None:
        raise UnreadableImage("the JPEG has no frame header before its first scan")
    process, precision, height, width, components = frame
    if process not in _DECODABLE_FRAMES:
        raise UnsupportedImage(
            "lossless and hierarchical JPEGs cannot be decoded here; convert it to a baseline JPEG first"
        )
    if precision != 8:
        raise UnsupportedImage(
            f"JPEGs with {precision} bits per sample cannot be decoded here; convert it to 8 bits first"
        )
    if components not in (1, 3, 4):
        raise UnsupportedImage(f"the JPEG has {components} components, which fit no colour space")
    if height == 0:
        raise UnsupportedImage(
            "the JPEG stores its height after the first scan (DNL), which cannot be decoded here; save it again"
        )
    return upright_header("JPEG", height, width, exif=exif)


def _read_webp(data: bytes) -> Header:
    if len(data) < 30:
        raise TruncatedImage(f"a WebP of {len(data)} bytes ends inside its header")
    riff_end = 8 + int.from_bytes(data[4:8], "little")
    if riff_end > len(data):
        raise TruncatedImage(f"the WebP ends after {len(data):,} of {riff_end:,} bytes")
    kind = data[12:16]
    if kind == b"VP8 ":
        return upright_header("WEBP", *(side & 0x3FFF for side in struct.unpack_from("<HH", data, 26)[::-1]))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return upright_header("WEBP", 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
    if kind != b"VP8X":
        raise UnreadableImage(f"the WebP begins with a chunk {kind!r}, which is not a picture")
    width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
    exif, start = None, 12
    while start + 8 <= riff_end and exif is None:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        if data[start : start + 4] == b"EXIF":
            exif = data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2
    return upright_header("WEBP", height, width, exif=exif)


def _read_psd(data: bytes) -> Header:
    if len(data) < 26:
        raise TruncatedImage("the Photoshop file ends inside its header")
    version, height, width, depth, mode = struct.unpack_from(">4xH6x2xLLHH", data)
    if version != 1 or (mode, depth) not in _PSD_MODES:
        raise UnsupportedImage(
            "this kind of Photoshop file (large, 16-bit or unusual) cannot be decoded here; save it as 8-bit RGB"
        )
    return upright_header("PSD", height, width)


def _read_bitmap(data: bytes) -> Header:
    return _opened("BMP", data)


def _read_jpeg2000(data: bytes) -> Header:
    return _opened("JPEG2000", data)


def _read_ppm(data: bytes) -> Header:
    return _opened("PPM", data)


def _opened(image_format: str, data: bytes) -> Header:
    """Return the header as Pillow reads it on opening."""
    width, height = open_picture(image_format, data).size
    return upright_header(image_format, height, width)
