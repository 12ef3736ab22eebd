"""EXIF blocks, written by hand: what is read of them, and that whatever is broken in one is as none."""

import struct
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr.images.exif import read_exif

Tag = tuple[int, int, int | bytes]  # number, kind, value
SHORT, LONG, ASCII = 3, 4, 2
ORIENTATION, CAMERA, DATE_TIME, ORIGINAL, DIGITIZED = 274, 34665, 306, 36867, 36868
NOON, NOON_TEXT = datetime.fromisoformat("2026-05-06T12:00:00"), b"2026:05:06 12:00:00\0"
LATER, LATER_TEXT = datetime.fromisoformat("2026-05-06T12:00:01"), b"2026:05:06 12:00:01\0"


def exif(
    *entries: tuple[int, int, object], camera: tuple[tuple[int, int, object], ...] = (), order: str = "<"
) -> bytes:
    """Return an EXIF block of (tag, kind, number or text) entries; those of `camera` in the camera's directory."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    first = _directory(8, (*entries, (CAMERA, LONG, 0)) if camera else entries, order)
    if not camera:
        return head + first
    first = _directory(8, (*entries, (CAMERA, LONG, 8 + len(first))), order)
    return head + first + _directory(8 + len(first), camera, order)


def _directory(start: int, entries: tuple[Tag, ...], order: str) -> bytes:
    heap_start, heap, packed = start + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, value in entries:
        if isinstance(value, bytes):
            place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "L", heap_start + len(heap))
            heap += value if len(value) > 4 else b""
            packed += struct.pack(order + "HHL4s", tag, kind, len(value), place)
        else:
            number = struct.pack(order + ("H" if kind == SHORT else "L"), value)
            packed += struct.pack(order + "HHL4s", tag, kind, 1, number)
    return struct.pack(order + "H", len(entries)) + packed + b"\0\0\0\0" + heap


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [SHORT, LONG])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_in_both_byte_orders_as_short_and_long(order: str, kind: int, orientation: int) -> None:
    assert read_exif(exif((ORIENTATION, kind, orientation), order=order)) == (orientation, None)


@pytest.mark.parametrize("orientation", [0, 9, 99, 65535])
def test_an_orientation_that_does_not_exist_is_as_none(orientation: int) -> None:
    assert read_exif(exif((ORIENTATION, SHORT, orientation))) == (1, None)


def test_an_orientation_written_as_text_is_as_none() -> None:
    assert read_exif(exif((ORIENTATION, ASCII, b"6\0"))) == (1, None)


def test_of_two_orientations_the_first_counts() -> None:
    assert read_exif(exif((ORIENTATION, SHORT, 6), (ORIENTATION, SHORT, 3))) == (6, None)


def test_the_prefix_of_jpeg_may_stand_before_the_block() -> None:
    assert read_exif(b"Exif\0\0" + exif((ORIENTATION, SHORT, 6))) == (6, None)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_clock_is_that_of_the_exposure(order: str) -> None:
    block = exif((DATE_TIME, ASCII, LATER_TEXT), camera=((ORIGINAL, ASCII, NOON_TEXT),), order=order)

    assert read_exif(block) == (1, NOON)


def test_the_time_of_the_exposure_goes_before_that_of_digitising() -> None:
    both = exif(camera=((DIGITIZED, ASCII, LATER_TEXT), (ORIGINAL, ASCII, NOON_TEXT)))
    one = exif(camera=((DIGITIZED, ASCII, LATER_TEXT), (ORIGINAL, ASCII, b"0000:00:00 00:00:00\0")))

    assert read_exif(both) == (1, NOON)
    assert read_exif(one) == (1, LATER)


def test_the_time_of_the_last_change_is_not_the_time_of_exposure() -> None:
    assert read_exif(exif((DATE_TIME, ASCII, NOON_TEXT))) == (1, None)


@pytest.mark.parametrize(
    "text", [b"2026-05-06 12:00:00\0", b"2026/05/06 12:00:00\0", b"2026-05-06T12:00:00\0", b"2026:05:06 12:00:00.123\0"]
)
def test_clocks_of_careless_cameras_are_understood(text: bytes) -> None:
    assert read_exif(exif(camera=((ORIGINAL, ASCII, text),))) == (1, NOON)


@pytest.mark.parametrize("text", [b" " * 20, b"x" * 20, b"2026:13:06 12:00:00\0", b"2026:05:06 24:00:00\0"])
def test_an_impossible_clock_is_as_none(text: bytes) -> None:
    assert read_exif(exif((ORIENTATION, SHORT, 3), camera=((ORIGINAL, ASCII, text),))) == (3, None)


def test_what_stands_before_the_cut_is_still_read() -> None:
    block = exif((ORIENTATION, SHORT, 8), camera=((ORIGINAL, ASCII, NOON_TEXT),))

    assert read_exif(block[:-30]) == (8, None)
    assert read_exif(block[:9]) == (1, None)


def test_a_directory_that_is_its_own_camera_directory_ends() -> None:
    assert read_exif(exif((ORIENTATION, SHORT, 6), (CAMERA, LONG, 8))) == (6, None)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0\x08\0\0\0"])
)
def test_no_bytes_make_it_fail(noise: bytes, head: bytes) -> None:
    orientation, _ = read_exif(head + noise)

    assert 1 <= orientation <= 8
