"""HEIC and HEIF: read the size without decoding, and decode with the package pillow-heif if it is installed.

libheif applies the file's rotation, mirroring and cropping while it decodes, so decoded pixels are upright.
"""

from __future__ import annotations

import struct
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from detr.images.isobmff import Meta, exif_of, read_meta
from detr.images.results import (
    Header,
    ImageError,
    ImageTooLarge,
    TruncatedImage,
    UnreadableImage,
    UnsupportedImage,
    upright_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"))
"""Brands in the first box of such a file."""
INSTALL = (
    "HEIC needs the package pillow-heif: pip install 'ray-detr[heif]' on every node (then ray-detr label reads it "
    "again with --retry-errors all), or convert it to JPEG first"
)

_PARAMETER_SET = 33  # the type of the HEVC unit that contains the size of pictures (SPS)
_ROUNDING = 128  # pixels: a coded picture ends at a whole block, at most this far beyond the picture
_SPARE_PIXELS = 4 * 1024**2  # that tiles may have beyond the picture, besides a share
_MOST_SHARED = 2  # times the length of the file: the most that all items of a picture may take from it
_MOST_UNITS = 10_000  # of one item; encoders make some ten for a picture
_MOST_SHARE = 8  # of the pixels of the picture that all its tiles, depths and masks may have together
# What pillow-heif 1.8 was seen to raise on damaged bytes. Not MemoryError: that is the machine's fault.
_DAMAGE = (OSError, ValueError, RuntimeError, SyntaxError, EOFError, LookupError, TypeError)


def read_heic(data: bytes) -> Header:
    """Return the upright header of the primary picture. Requires pillow-heif, although only `decode_heic` uses it.

    The size that libheif would decode, from the HEVC parameter sets, is compared with the size that the file claims: a
    large picture with a small claim is refused here.

    Raises:
        ImageError: pillow-heif is missing, there is no such picture, or the file is truncated or inconsistent.
    """
    if not has_decoder():
        raise UnsupportedImage(INSTALL)
    meta = read_meta(data)
    height, width = _size_of(meta, meta.primary)
    claimed = height * width
    joining = {source for kind, source, _ in meta.references if kind == b"dimg"}
    items = _decoded_with(meta, meta.primary)
    # before items are joined: they may share bytes, and each of thousands may cover the whole file
    taken = (sum(length for _, length in meta.places.get(item, ())) for item in items)
    if sum(min(length, len(data)) for length in taken) > _MOST_SHARED * len(data):
        raise UnreadableImage("the parts of the HEIC overlap in the file")
    coded = 0
    for item in items:
        coded += _check_item(data, meta, item, is_joining=item in joining)
    if coded > _MOST_SHARE * claimed + _SPARE_PIXELS:
        raise UnreadableImage(
            f"its header says {claimed:,} pixels, but its parts have {coded:,}: the file is inconsistent"
        )
    for kind, content in meta.properties_of(meta.primary):
        if kind == b"clap" and len(content) >= 16:
            crop_width, by, crop_height, by_height = struct.unpack_from(">LLLL", content)
            if not by or not by_height:
                raise UnreadableImage("the crop of the HEIC has a denominator of 0")
            width, height = min(width, crop_width // by), min(height, crop_height // by_height)
        elif kind == b"irot" and content and content[0] & 1:
            height, width = width, height
    return upright_header("HEIC", height, width, exif=exif_of(data, meta), orientation=1)


def decode_heic(data: bytes, header: Header) -> NDArray[np.uint8]:
    """Return `(H, W, 3)` RGB, upright: alpha dropped, more than 8 bits scaled to 8.

    Args:
        data: the encoded file.
        header: of `read_heic`; a picture of another size is not decoded.

    Raises:
        ImageError: the picture is truncated, damaged, or of a kind that libheif cannot decode.
    """
    heif = import_module("pillow_heif")
    try:
        picture = heif.open_heif(data, convert_hdr_to_8bit=True)
        width, height = picture.size
        if (height, width) == (header.height, header.width):
            image = picture.to_pillow()
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except _DAMAGE as error:
        raise _verdict(error) from error
    raise UnreadableImage(
        f"its header says {header.width} x {header.height} pixels (width x height), but its picture has "
        f"{width} x {height}: the file is inconsistent"
    )


@cache
def has_decoder() -> bool:
    """Return whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def load_decoder() -> None:
    """Import pillow-heif if it is installed, so that forked processes do not have to."""
    if has_decoder():
        import_module("pillow_heif")


def _verdict(error: Exception) -> ImageError | MemoryError:
    text = str(error)
    lower = text.lower()
    if "security limit" in lower:
        return ImageTooLarge(f"libheif rejects it: {text}")
    if "memory" in lower:
        return MemoryError(text)
    if "unsupported" in lower:
        return UnsupportedImage(f"libheif cannot decode it ({text}); convert it to JPEG first")
    if "end of file" in lower or "end of data" in lower or "truncated" in lower:
        return TruncatedImage("the file is truncated: its picture is incomplete")
    return UnreadableImage(f"the HEIC is damaged: {text}")


def _size_of(meta: Meta, item: int) -> tuple[int, int]:
    """Return the height and width of an item according to the file, before rotation and cropping."""
    for kind, content in meta.properties_of(item):
        if kind == b"ispe" and len(content) >= 12:
            width, height = struct.unpack_from(">LL", content, 4)
            return height, width
    raise UnreadableImage("the HEIC does not contain its picture size")


def _decoded_with(meta: Meta, primary: int) -> set[int]:
    """Return the items that are decoded for a picture: itself, its tiles, and auxiliary items such as its mask."""
    linked: dict[int, list[int]] = {}
    for kind, item, to in meta.references:
        if kind == b"dimg":
            linked.setdefault(item, []).append(to)
        elif kind == b"auxl":
            linked.setdefault(to, []).append(item)
    found, left = {primary}, [primary]
    while left:
        more = set(linked.get(left.pop(), ())) - found
        found |= more
        left += more
    return found


def _check_item(data: bytes, meta: Meta, item: int, *, is_joining: bool) -> int:
    """Return the number of coded pixels of an item; 0 for one that only combines others.

    Raises:
        ImageError: it is not HEVC, or the size in its parameter sets differs from the file's.
    """
    settings = next((content for kind, content in meta.properties_of(item) if kind == b"hvcC"), None)
    if settings is None:
        if is_joining:
            return 0
        raise UnsupportedImage(
            "HEIF pictures that are not coded in HEVC cannot be decoded here; convert it to JPEG first"
        )
    height, width = _size_of(meta, item)
    for unit in (*_units_of_settings(settings), *_units_of_item(data, meta, item, settings)):
        if len(unit) > 2 and unit[0] >> 1 & 63 == _PARAMETER_SET:
            coded_height, coded_width = _coded_size(unit)
            if coded_height > height + _ROUNDING or coded_width > width + _ROUNDING:
                raise UnreadableImage(
                    f"its header says {width} x {height} pixels (width x height), but its picture has "
                    f"{coded_width} x {coded_height}: the file is inconsistent"
                )
    return height * width


def _units_of_settings(settings: bytes) -> Iterator[bytes]:
    """Yield the HEVC units that precede a picture (hvcC)."""
    if len(settings) < 23:
        raise UnreadableImage("the HEVC settings of the HEIC are truncated")
    position = 23
    for _ in range(settings[22]):
        count = int.from_bytes(settings[position + 1 : position + 3])
        position += 3
        for _ in range(count):
            length = int.from_bytes(settings[position : position + 2])
            yield settings[position + 2 : position + 2 + length]
            position += 2 + length
            if position > len(settings):
                raise UnreadableImage("the HEVC settings of the HEIC are truncated")


def _units_of_item(data: bytes, meta: Meta, item: int, settings: bytes) -> Iterator[bytes]:
    """Yield the beginnings of the HEVC units inside a picture, which may include parameter sets."""
    width = 1 + (settings[21] & 3)
    if item not in meta.places:
        raise UnsupportedImage(
            "the HEIC stores its picture in an unusual place, which cannot be decoded here; convert it to JPEG first"
        )
    # checked first: pieces may overlap, and their sum may be much larger than the file
    if sum(length for _, length in meta.places[item]) > len(data):
        raise TruncatedImage("the file is truncated: its picture is incomplete")
    coded = b"".join(data[start : start + length] for start, length in meta.places[item])
    if sum(length for _, length in meta.places[item]) > len(coded):
        raise TruncatedImage("the file is truncated: its picture is incomplete")
    if not coded:  # libheif leaves such a tile out, and the rest of the picture would count as all of it
        raise UnreadableImage("a part of the HEIC has no data")
    position, left = 0, _MOST_UNITS
    while position + width <= len(coded):
        left -= 1  # a unit may be empty
        if left < 0:
            raise UnreadableImage("the HEIC has too many units of HEVC")
        length = int.from_bytes(coded[position : position + width])
        position += width
        yield coded[position : position + min(length, 256)]
        position += length


def _coded_size(unit: bytes) -> tuple[int, int]:
    """Return height and width in pixels of a sequence parameter set (ITU-T H.265, 7.3.2.2)."""
    bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1)
    bits.take(96)  # profile, tier and level
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
    bits.exponential()  # its number
    if bits.exponential() == 3:  # the chroma format
        bits.take(1)
    width, height = bits.exponential(), bits.exponential()
    return height, width


class _Bits:
    """Sequential reader of bits."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def take(self, count: int) -> int:
        """Return the next bits as an integer."""
        end = self._position + count
        if end > 8 * len(self._data):
            raise UnreadableImage("a parameter set of the HEVC is truncated")
        first, last = self._position // 8, -(-end // 8)
        value = int.from_bytes(self._data[first:last]) >> (8 * last - end)
        self._position = end
        return value & ((1 << count) - 1)

    def exponential(self) -> int:
        """Return the next number in the Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise UnreadableImage("a parameter set of the HEVC is damaged")
        return (1 << zeros) - 1 + self.take(zeros)
