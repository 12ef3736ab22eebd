"""HEIC: what its header tells, what is refused before libheif decodes it, and its picture."""

import io
import struct
import time
import tracemalloc
from datetime import datetime
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from detr.images import heic as image_heic
from detr.images.decoding import ImageError, decode, read_header
from detr.images.isobmff import read_meta
from tests.detr.images.heic_grid import coded, grid_heic, grid_of

PHOTO = Path(__file__).parents[4] / "shared" / "data" / "awkward" / "photo.heic"


def gradient(height: int = 96, width: int = 160, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1)
    return Image.fromarray(np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)).convert(mode)


def heic(image: Image.Image | None = None, **options: object) -> bytes:
    sink = io.BytesIO()
    pillow_heif.from_pillow(image or gradient()).save(sink, **{"quality": 90, **options})
    return sink.getvalue()


def camera_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    exif.get_ifd(34665)[36867] = "2026:05:06 12:00:00"
    return exif.tobytes()


def with_turn(data: bytes, quarters: int) -> bytes:
    """Give the file's first pixi property, which nobody needs, the meaning of a turn to the left."""
    place = data.index(b"pixi")
    size = int.from_bytes(data[place - 4 : place])
    content = bytes([quarters]) + bytes(size - 9)
    return data[:place] + b"irot" + content + data[place + size - 4 :]


def refusal(data: bytes, max_pixels: int = 10**8) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=max_pixels)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_picture_has_the_size_of_its_header_and_its_colours(mode: str) -> None:
    image = gradient(mode=mode)
    data = heic(image)

    header, pixels = read_header(data), decode(data)

    assert (header.format, header.height, header.width, header.orientation) == ("HEIC", 96, 160, 1)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)
    assert pixels.shape == (3, 96, 160)
    assert np.abs(pixels.numpy().astype(int) - expected).mean() < 4


def test_sides_that_are_not_whole_blocks_are_kept() -> None:
    assert decode(heic(gradient(37, 53))).shape == (3, 37, 53)


def test_the_primary_picture_is_taken() -> None:
    file = pillow_heif.from_pillow(gradient(96, 160))
    file.add_from_pillow(gradient(64, 64))
    sink = io.BytesIO()
    file.save(sink, primary_index=1)

    assert read_header(sink.getvalue()).height == 64
    assert decode(sink.getvalue()).shape == (3, 64, 64)


def test_a_turn_of_the_file_is_done_and_that_of_exif_is_not() -> None:
    data = heic(exif=camera_exif(6))
    header = read_header(data)
    assert header.taken_at == datetime.fromisoformat("2026-05-06T12:00:00")
    upright = decode(data)
    assert (header.height, header.width, header.orientation) == (upright.shape[1], upright.shape[2], 1)

    turned = with_turn(heic(), 1)
    assert (read_header(turned).height, read_header(turned).width) == (160, 96)
    expected = np.rot90(decode(heic()).numpy(), 1, axes=(1, 2)).astype(int)
    assert np.abs(decode(turned).numpy().astype(int) - expected).mean() < 4
    assert decode(turned, upright=False).shape == decode(turned).shape


def test_too_many_pixels_are_refused_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_heif, "open_heif", lambda *_, **__: pytest.fail("it was given to libheif"))
    data = heic()
    place = data.index(b"ispe") + 8

    large = data[:place] + struct.pack(">LL", 20_000, 20_000) + data[place + 8 :]

    assert refusal(large) == (
        "too_large",
        "20000 x 20000 pixels (width x height) are more than the limit of 100,000,000; scale the image down, or cut "
        "it into pieces",
    )


def test_a_small_claim_with_a_large_picture_behind_it_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pillow_heif, "open_heif", lambda *_, **__: pytest.fail("it was given to libheif"))
    data = heic(Image.new("RGB", (1600, 1200)))
    place = data.index(b"ispe") + 8
    small = data[:place] + struct.pack(">LL", 64, 48) + data[place + 8 :]

    kind, message = refusal(small)

    assert kind == "unreadable"
    assert "its header says 64 x 48 pixels (width x height), but its picture has 1600 x 1200" in message


def test_a_parameter_set_within_the_picture_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_heif, "open_heif", lambda *_, **__: pytest.fail("it was given to libheif"))
    large, small = heic(Image.new("RGB", (1600, 1200))), heic(gradient(64, 64))
    start = large.index(b"hvcC") + 4
    settings = large[start : start - 8 + int.from_bytes(large[start - 8 : start - 4])]
    (unit,) = [one for one in image_heic._units_of_settings(settings) if one[0] >> 1 & 63 == 33]
    meta = read_meta(small)
    ((offset, length),) = meta.places[meta.primary]
    hidden = struct.pack(">L", len(unit)) + unit
    assert length > len(hidden)  # it takes the place of what is coded there

    kind, message = refusal(small[:offset] + hidden + small[offset + len(hidden) :])

    assert (kind, "its picture has 1600 x 1200" in message) == ("unreadable", True)


def test_a_file_that_is_cut_anywhere_is_an_image_error() -> None:
    data = heic()
    kinds = set()
    for end in range(16, len(data), 97):
        kinds.add(refusal(data[:end])[0])

    assert kinds <= {"truncated", "unreadable", "unsupported"}
    assert "truncated" in kinds


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr.images.heic.has_decoder", lambda: False)

    assert refusal(heic()) == (
        "unsupported",
        "HEIC needs the package pillow-heif: pip install 'ray-detr[heif]' on every node (then ray-detr label reads it "
        "again with --retry-errors all), or convert it to JPEG first",
    )


@pytest.mark.skipif(not PHOTO.exists(), reason=f"no {PHOTO}")
def test_a_photograph_of_another_encoder_is_read() -> None:
    assert decode(PHOTO.read_bytes()).shape == (3, 128, 128)


def test_tiles_are_joined_cut_and_turned_as_iphones_write_them() -> None:
    image = gradient(150, 200)  # 3 rows and 4 columns, of which the last are cut
    for quarters, size in ((0, (150, 200)), (1, (200, 150))):
        data = grid_heic(image, quarters)

        header, pixels = read_header(data), decode(data)

        assert (header.height, header.width) == size
        expected = np.rot90(np.asarray(image), quarters).transpose(2, 0, 1).astype(int)
        assert pixels.shape == (3, *size)
        assert np.abs(pixels.numpy().astype(int) - expected).mean() < 2


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("empty", "unreadable"),  # thousands of items that share an empty piece
        ("some empty", "unreadable"),  # libheif leaves these out, so half of a picture would be taken for all of it
        ("shared", "unreadable"),  # each tile would be read as the whole file: 30 gigabytes
        ("empty units", "unreadable"),
    ],
)
def test_tiles_that_cost_much_more_than_their_file_are_refused(file: str, kind: str) -> None:
    settings, units = coded(gradient(64, 64))
    files = {
        "empty": lambda: grid_of(60, 60, (3840, 3840), settings, [units], [-1] * 3600),
        "some empty": lambda: grid_of(4, 4, (256, 256), settings, [units], [0, *[-1] * 15]),
        "shared": lambda: grid_of(100, 100, (6400, 6400), settings, [units + bytes(3_000_000)], [0] * 10_000),
        "empty units": lambda: grid_of(1, 1, (64, 64), settings, [units + bytes(20_000_000)], [0]),
    }
    data = files[file]()
    began = time.process_time()

    assert refusal(data)[0] == kind
    assert time.process_time() - began < 2


def test_a_list_of_places_without_end_is_refused() -> None:
    data = heic()
    place = data.index(b"iloc")
    # numbers of 0 bytes, and 3 items of 65,535 pieces each, which so take no room in the file
    endless = data[: place + 4] + bytes(4) + b"\0\0" + b"\0\3" + (b"\0\1\0\0\xff\xff" * 3)
    endless += data[len(endless) :]

    assert refusal(endless) == ("unreadable", "the list of item locations (iloc) in the file is damaged")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L4s", 8 + len(content), kind) + content


def of_boxes(*others: bytes, pieces: bytes = struct.pack(">LL", 0, 8)) -> bytes:
    """Return a file whose item 1 has some pieces, a size, and settings without a unit of HEVC."""
    size = box(b"ispe", bytes(4) + struct.pack(">LL", 64, 64))
    settings = box(b"hvcC", bytes(21) + b"\3\0")
    assigned = box(b"ipma", bytes(4) + struct.pack(">LHBBB", 1, 1, 2, 1, 2))
    places = struct.pack(">HHHH", 1, 1, 0, len(pieces) // 8) + pieces
    meta = (
        box(b"pitm", bytes(4) + struct.pack(">H", 1)),
        box(b"iloc", bytes(4) + b"\x44\0" + places),
        box(b"iprp", box(b"ipco", size + settings) + assigned),
        *others,
    )
    return box(b"ftyp", b"heic" + bytes(4) + b"heic") + box(b"meta", bytes(4) + b"".join(meta))


def test_pieces_that_lie_on_one_another_are_refused_before_they_are_joined() -> None:
    whole = struct.pack(">LL", 0, 400_000)
    data = of_boxes(box(b"free", bytes(400_000)), pieces=whole * 5_000)  # two gigabytes
    tracemalloc.start()
    try:
        assert refusal(data)[0] == "truncated"
        assert tracemalloc.get_traced_memory()[1] < 10 * len(data)
    finally:
        tracemalloc.stop()


def test_a_long_chain_of_references_takes_no_long_time() -> None:
    chain = b"".join(box(b"dimg", struct.pack(">HHH", item, 1, item + 1)) for item in reversed(range(1, 30_000)))
    began = time.process_time()

    assert refusal(of_boxes(box(b"iref", bytes(4) + chain)))[0] == "unsupported"
    assert time.process_time() - began < 10


@pytest.mark.parametrize(("kind", "said"), [(b"mdat", "the file ends inside a box mdat"), (bytes(4), "inside a box")])
def test_a_file_that_ends_inside_a_box_says_so_in_words(kind: bytes, said: str) -> None:
    data = heic() + (1_000).to_bytes(4) + kind + bytes(20)

    error, sentence = refusal(data)

    assert (error, sentence.endswith(said)) == ("truncated", True)
