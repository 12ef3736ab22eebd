"""HEIC files of tiles, as iPhones write them: a picture that only joins others, laid out box by box."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import pillow_heif
from PIL import Image

from detr.images.isobmff import read_meta

TILE = 64


def heic(image: Image.Image, **options: object) -> bytes:
    sink = io.BytesIO()
    pillow_heif.from_pillow(image).save(sink, **{"quality": 90, **options})
    return sink.getvalue()


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L4s", 8 + len(content), kind) + content


def coded(image: Image.Image) -> tuple[bytes, bytes]:
    """Return the settings (hvcC) of an encoded picture, and its units of HEVC."""
    data = heic(image)
    meta = read_meta(data)
    settings = next(content for kind, content in meta.properties_of(meta.primary) if kind == b"hvcC")
    return settings, b"".join(data[start : start + length] for start, length in meta.places[meta.primary])


def grid_heic(image: Image.Image, quarters: int = 0) -> bytes:
    """Return a file that holds a picture as tiles, the last ones cut, turned to the left by quarters when shown."""
    rows, columns = -(-image.height // TILE), -(-image.width // TILE)
    padded = Image.new("RGB", (columns * TILE, rows * TILE))
    padded.paste(image, (0, 0))
    tiles = [
        coded(padded.crop((x, y, x + TILE, y + TILE)))
        for y in range(0, padded.height, TILE)
        for x in range(0, padded.width, TILE)
    ]
    return grid_of(
        rows, columns, image.size, tiles[0][0], [unit for _, unit in tiles], list(range(len(tiles))), quarters=quarters
    )


def grid_of(
    rows: int,
    columns: int,
    size: tuple[int, int],
    settings: bytes,
    pieces: Sequence[bytes],
    places: Sequence[int],
    *,
    quarters: int = 0,
    extra: bytes = b"",
) -> bytes:
    """Return a grid of tiles, whose data are some of `pieces`: `places` has the index of each tile's, -1 for none.

    Args:
        rows: Of tiles.
        columns: Of tiles.
        size: Width and height of the picture.
        settings: The hvcC of each tile.
        pieces: Data that lie in the file one after the other.
        places: Of which tile is which piece.
        quarters: Turns to the left.
        extra: Further bytes in the file.
    """
    count = rows * columns
    grid = count + 1
    width, height = size
    properties = box(b"hvcC", settings) + box(b"ispe", struct.pack(">LLL", 0, TILE, TILE))
    properties += box(b"ispe", struct.pack(">LLL", 0, width, height)) + box(b"irot", bytes([quarters]))
    assigned = b"".join(struct.pack(">LBBB", item, 2, 0x81, 2) for item in range(1, count + 1))
    assigned += struct.pack(">LBBB", grid, 2, 3, 0x84)
    idat = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    kinds = [(item, b"hvc1", 1) for item in range(1, count + 1)] + [(grid, b"grid", 0)]
    entries = b"".join(
        box(b"infe", struct.pack(">BBHLH4sB", 3, 0, hidden, item, 0, kind, 0)) for item, kind, hidden in kinds
    )

    def meta(offsets: Sequence[int]) -> bytes:
        located = b"".join(
            struct.pack(">LHHHLL", item, 0, 0, 1, *((offsets[place], len(pieces[place])) if place >= 0 else (0, 0)))
            for item, place in enumerate(places, 1)
        )
        located += struct.pack(">LHHHLL", grid, 1, 0, 1, 0, len(idat))  # in the box idat
        return box(
            b"meta",
            bytes(4)
            + box(b"hdlr", bytes(8) + b"pict" + bytes(13))
            + box(b"pitm", bytes([1, 0, 0, 0]) + struct.pack(">L", grid))
            + box(b"iinf", bytes([1, 0, 0, 0]) + struct.pack(">L", len(kinds)) + entries)
            + box(
                b"iref", bytes([1, 0, 0, 0]) + box(b"dimg", struct.pack(f">LH{count}L", grid, count, *range(1, grid)))
            )
            + box(
                b"iprp",
                box(b"ipco", properties) + box(b"ipma", bytes([1, 0, 0, 0]) + struct.pack(">L", grid) + assigned),
            )
            + box(b"iloc", bytes([2, 0, 0, 0]) + b"\x44\0" + struct.pack(">L", grid) + located)
            + box(b"idat", idat),
        )

    head = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    begin = len(head) + len(meta([0] * len(pieces))) + 8
    offsets = [begin + sum(map(len, pieces[:number])) for number in range(len(pieces))]
    return head + meta(offsets) + box(b"mdat", b"".join(pieces) + extra)
