"""Measure listing in many places at once against listing in one, of a made-up bucket whose every page takes a while.

python -m scripts.measure_listing --keys 300000 --latency-ms 100
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipelines.lake.listing_ahead import LIST_THREADS, list_ahead
from pipelines.store import StoreEntry

PAGE_KEYS = 1_000


def main() -> None:
    """List buckets of several shapes both ways, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=300_000, metavar="N")
    parser.add_argument("--latency-ms", type=float, default=100.0, metavar="N", help="of every page (%(default)g)")
    parser.add_argument("--threads", type=int, default=LIST_THREADS, metavar="N")
    args = parser.parse_args()
    for name, make in SHAPES.items():
        bucket = Bucket(sorted(make(args.keys)), args.latency_ms / 1000)
        alone, one_keys, one_pages, _ = measure(bucket, bucket.list())
        ahead, keys, pages, most = measure(bucket, list_ahead(bucket, "", None, threads=args.threads))
        assert keys == one_keys, "the keys are others"
        print(
            f"{name:<22} {len(keys):,} keys: one by one {alone:5.1f} s, {one_pages} requests; "
            f"{args.threads} at once {ahead:5.1f} s, {pages} requests, up to {most} in flight: {alone / ahead:.1f} x",
            flush=True,
        )
    status = Path("/proc/self/status").read_text()
    print(next(line for line in status.splitlines() if line.startswith("VmHWM")))


def measure(bucket: Bucket, listed: Iterator[StoreEntry]) -> tuple[float, list[str], int, int]:
    """Return the seconds of a listing, its keys, the number of requested pages, and of concurrent ones."""
    bucket.pages = bucket.most = 0
    began = time.monotonic()
    keys = [entry.key for entry in listed]
    return time.monotonic() - began, keys, bucket.pages, bucket.most


class Bucket:
    """Keys that are listed page by page with a delay, by any number of threads."""

    def __init__(self, keys: list[str], latency_seconds: float) -> None:
        self._keys, self._latency_seconds = keys, latency_seconds
        self._lock = threading.Lock()
        self.pages = self.most = self._now = 0

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the keys greater than `after`."""
        assert not prefix
        place = bisect_right(self._keys, after or "")
        while True:
            self._wait()
            for key in self._keys[place : place + PAGE_KEYS]:
                yield StoreEntry(key, 150_000, "d41d8cd98f00b204e9800998ecf8427e")
            place += PAGE_KEYS
            if place >= len(self._keys):
                return

    def folders(self, folder: str, after: str) -> tuple[Sequence[str], bool]:
        """Return up to a thousand folders within a folder."""
        self._wait()
        found: list[str] = []
        place = bisect_right(self._keys, max(after, folder))
        while place < len(self._keys) and self._keys[place].startswith(folder) and len(found) < PAGE_KEYS:
            slash = self._keys[place].find("/", len(folder))
            if slash < 0:
                place += 1
                continue
            name = self._keys[place][: slash + 1]
            found.append(name)
            place = bisect_left(self._keys, name[:-1] + "0")
        return [name for name in found if not after.startswith(name)], len(found) < PAGE_KEYS

    def _wait(self) -> None:
        with self._lock:
            self.pages += 1
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self._latency_seconds)
        with self._lock:
            self._now -= 1


def stations(count: int) -> Iterator[str]:
    """Yield names in folders of ten thousand."""
    return (f"photographs/2026/station-{i // 10_000:06d}/camera-north/DSC_{i:010d}.JPG" for i in range(count))


def days(count: int) -> Iterator[str]:
    """Yield names in folders of a day, with cameras of different numbers of pictures in each."""
    draw = random.Random(1)  # noqa: S311 - names
    for i in range(count):
        yield f"{2020 + i % 7}/{1 + i % 12:02d}/{1 + i % 28:02d}/cam{int(draw.expovariate(0.05))}/IMG_{i:07d}.jpg"


def flat(count: int) -> Iterator[str]:
    """Yield names in one folder."""
    return (f"IMG_{i:08d}.JPG" for i in range(count))


def hashed(count: int) -> Iterator[str]:
    """Yield names by a hash of their content."""
    draw = random.Random(1)  # noqa: S311 - names
    return (f"{draw.getrandbits(128):032x}" for _ in range(count))


SHAPES: dict[str, Callable[[int], Iterator[str]]] = {
    "folders of 10,000": stations,
    "days and cameras": days,
    "one folder, numbered": flat,
    "hashes": hashed,
}


if __name__ == "__main__":
    main()
