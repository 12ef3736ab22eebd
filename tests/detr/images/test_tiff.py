"""TIFF files written tag by tag: the damage that Pillow would warn of, or show half of."""

import struct
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from detr.images.decoding import ImageError, decode, read_header

SHORT, LONG = 3, 4
PIXELS = bytes(range(0, 240, 5))  # 8 x 6, grey
START = 8  # where the pixels stand

# width, height, bits, compression (none), photometric (black is 0), strip offsets, rows a strip, strip byte counts
GREY = {256: (8,), 257: (6,), 258: (8,), 259: (1,), 262: (1,), 273: (START,), 278: (6,), 279: (48,)}


def tiff(tags: dict[int, tuple[int, ...]], *, places: dict[int, int] | None = None, tail: bytes = b"") -> bytes:
    """Return a TIFF of these tags; `places` says where the values of a tag are claimed to stand."""
    head = b"II*\0" + struct.pack("<L", START + len(PIXELS)) + PIXELS
    heap_start, heap, entries = len(head) + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}L", *values)
        place = (places or {}).get(tag)
        if place is not None or len(packed) > 4:
            value = struct.pack("<L", heap_start + len(heap) if place is None else place)
            heap += packed if place is None else b""
        else:
            value = packed
        entries += struct.pack("<HHL4s", tag, LONG, len(values), value)
    return head + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + heap + tail


def kind_of(data: bytes) -> str:
    try:
        decode(data)
    except ImageError as error:
        return error.kind
    return "ok"


def test_the_plain_picture_is_shown() -> None:
    data = tiff(GREY)

    assert read_header(data).format == "TIFF"
    assert np.array_equal(decode(data)[0], np.frombuffer(PIXELS, np.uint8).reshape(6, 8))


@pytest.mark.parametrize("tag", [256, 259, 277, 278])
def test_several_values_where_there_is_one_are_unreadable(tag: int) -> None:
    assert kind_of(tiff({**GREY, tag: (8, 8)})) == "unreadable"


def test_several_values_of_a_tag_that_no_pixel_needs_do_not_matter() -> None:
    assert kind_of(tiff({**GREY, 282: (72, 1, 72, 1), 296: (2, 2)})) == "ok"


def test_values_after_the_end_are_truncated() -> None:
    assert kind_of(tiff({**GREY, 258: (8, 8)}, places={258: 10_000})) == "truncated"


def test_pixels_after_the_end_are_truncated() -> None:
    assert kind_of(tiff({**GREY, 273: (10_000,)})) == "truncated"
    assert kind_of(tiff({**GREY, 273: (10_000,), 259: (5,)})) == "truncated"


def test_pixels_cut_in_their_last_strip_are_truncated() -> None:
    data = tiff(GREY)

    assert kind_of(tiff({**GREY, 273: (len(data) - 20,)})) == "truncated"


def test_tags_that_claim_the_same_bytes_over_and_over_are_unreadable() -> None:
    many = (0,) * 40  # 160 bytes each, of a file of fewer than 320

    assert kind_of(tiff({**GREY, 320: many, 339: many, 532: many}, places={320: 0, 339: 0, 532: 0})) == "unreadable"


def test_tiles_larger_than_any_picture_are_unreadable() -> None:
    assert kind_of(tiff({**GREY, 322: (100_000,), 323: (100_000,), 324: (START,)})) == "unreadable"


@pytest.mark.parametrize("tags", [{262: (32803,)}, {258: (13,)}, {259: (60_000,)}])
def test_pixels_of_an_unknown_layout_are_unsupported(tags: dict[int, tuple[int, ...]]) -> None:
    assert kind_of(tiff({**GREY, **tags})) == "unsupported"


@pytest.mark.parametrize("missing", [256, 257])
def test_a_picture_without_a_side_is_unreadable(missing: int) -> None:
    assert kind_of(tiff({tag: values for tag, values in GREY.items() if tag != missing})) == "unreadable"


def test_a_side_that_is_text_is_unreadable() -> None:
    data = tiff(GREY).replace(struct.pack("<HHL", 256, LONG, 1), struct.pack("<HHL", 256, 2, 1))

    assert kind_of(data) == "unreadable"


def test_a_canon_raw_file_is_unsupported() -> None:
    data = bytearray(tiff(GREY))
    data[8:10] = b"CR"

    assert kind_of(bytes(data)) == "unsupported"


@pytest.mark.parametrize(
    ("mode", "premultiplied", "colours"), [("LA", (64, 128), 127.5), ("RGBA", (64, 64, 64, 128), 127.5)]
)
def test_colours_that_are_premultiplied_by_alpha_are_divided_by_it(
    mode: str, premultiplied: tuple[int, ...], colours: float
) -> None:
    file = BytesIO()
    Image.new(mode, (4, 4), premultiplied).save(file, "TIFF")
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, value, 0) for value in (2, 1))  # tag ExtraSamples
    assert file.getvalue().count(unassociated) == 1

    decoded = decode(file.getvalue().replace(unassociated, associated))

    assert torch.allclose(decoded.float(), torch.tensor(colours), atol=1)
    assert decode(file.getvalue())[0, 0, 0] == 64
