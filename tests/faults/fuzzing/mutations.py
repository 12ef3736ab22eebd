"""Damage to bytes, drawn by a seed: what transfers, disks and people who mean harm do to files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)


def random_of(seed: int, number: int) -> Random:
    """Return the numbers that a case draws: the same wherever it runs."""
    return Random(f"{seed}/{number}")  # noqa: S311 - to be predicted is the point


def mutate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return `data` damaged in one to four ways; `others` give what is spliced in."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        data = random.choice(_WAYS)(random, data, others)
    # a checksum guards all of a PNG: with it left wrong, nothing behind the check would ever see the damage
    if data.startswith(PNG_SIGNATURE) and random.random() < 0.8:
        data = mend_png(data)
    if data[:4] == b"RIFF" and random.random() < 0.5:
        data = data[:4] + struct.pack("<L", max(0, len(data) - 8)) + data[8:]
    return data


def mend_png(data: bytes) -> bytes:
    """Return a PNG with the checksums that its chunks should have, as far as they can be followed."""
    parts, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if end > len(data):
            break
        parts += [data[start : end - 4], zlib.crc32(data[start + 4 : end - 4]).to_bytes(4)]
        start = end
    return b"".join((*parts, data[start:]))


def _place(random: Random, data: bytes) -> int:
    """Return a place, mostly where headers are."""
    if not data:
        return 0
    return random.randrange(min(len(data), random.choice((32, 128, 512, len(data)))))


def _truncate(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: random.choice((random.randint(0, len(data)), max(0, len(data) - random.randint(1, 16))))]


def _flip_bits(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16, 64)) if changed else 0):
        changed[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _set_field(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Write an extreme number of 1 to 8 bytes over what may be a length, a count or an offset."""
    width = random.choice((1, 2, 2, 4, 4, 4, 8))
    number = random.choice((*_EXTREMES, len(data), len(data) - 1, random.getrandbits(8 * width))) & (
        2 ** (8 * width) - 1
    )
    place = _place(random, data)
    return data[:place] + number.to_bytes(width, random.choice(("big", "little"))) + data[place + width :]


def _splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Put the head of one file before the rest of another."""
    other = random.choice(others)
    head, tail = (data, other) if random.random() < 0.5 else (other, data)
    cut = _place(random, head)
    return head[:cut] + tail[random.choice((cut, _place(random, tail))) :]


def _repeat(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    first = _place(random, data)
    block = data[first : first + random.choice((1, 4, 12, 64, 256))]
    return data[:first] + block * random.choice((2, 2, 3, 50)) + data[first + len(block) :]


def _remove(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    first = _place(random, data)
    return data[:first] + data[first + random.choice((1, 2, 4, 12, 64)) :]


def _fill(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    first, count = _place(random, data), random.choice((4, 16, 64, 512))
    filler = random.choice((b"\0", b"\xff", b"\x80", random.randbytes(1)))
    return data[:first] + filler * min(count, len(data) - first) + data[first + count :]


def _append(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data + random.choice((random.randbytes(64), bytes(4096), random.choice(others)))


_WAYS: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _truncate, _flip_bits, _flip_bits, _set_field, _set_field, _set_field, _splice, _repeat, _remove, _fill, _append,
)  # fmt: skip
