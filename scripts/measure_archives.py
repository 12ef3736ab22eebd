"""Measure how a large file of images is listed and labelled: requests, bytes, CPU seconds, peak of memory.

python -m scripts.measure_archives --gigabytes 1 10 --image-kilobytes 1000
python -m scripts.measure_archives --gigabytes 1 5 --parquet

Each image is a small JPEG followed by zeros. A tar archive is sparse: the zeros are read but take no room on the disk.
A Parquet file has row groups of 100 images and takes its whole size. The network is a tiny one, so that reading is what
is measured. Every case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from detr.config import BackboneConfig, DetrConfig
from detr.detector import Detector
from detr.model import Detr
from pipelines.clock import SystemClock
from pipelines.labelling.decoding import InProcessDecoder
from pipelines.labelling.fetching import Fetcher
from pipelines.labelling.labeler import Labeler
from pipelines.labelling.plan import GPU_SHARD_IMAGES, write_plan
from pipelines.lake.images import ImageStores
from pipelines.lake.listing import list_objects
from pipelines.lake.member_files import MemberIndexes
from pipelines.store import Store, open_store

BLOCK = tarfile.BLOCKSIZE
GROUP_ROWS = 100
RUN = "run"
TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 8, (8, 16), (1, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=16,
    queries=5,
    shorter=32,
    longest=64,
)


def main() -> None:
    """Run every case in a child and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[1.0, 10.0], metavar="N")
    parser.add_argument("--image-kilobytes", type=int, default=1_000, metavar="N")
    parser.add_argument("--parquet", action="store_true", help="a Parquet file instead of a tar archive")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # of a child: the folder, and the measured case
    args = parser.parse_args()
    if args.case:
        folder, kind = json.loads(args.case)
        print(json.dumps(measure(Path(folder), kind)))
        return
    for size in args.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            make, name = (make_parquet, "a.parquet") if args.parquet else (make_archive, "a.tar")
            count = make(Path(folder) / name, int(size * 1e9), args.image_kilobytes * 1_000)
            for kind in ("list", "label"):
                command = [sys.executable, "-m", "scripts.measure_archives", "--case", json.dumps([folder, kind])]
                done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
                print(json.dumps({"gigabytes": size, "images": count, **json.loads(done.stdout)}), flush=True)


def make_archive(path: Path, size: int, image_bytes: int) -> int:
    """Write a sparse archive of about this size in bytes; return its number of images."""
    jpeg = _jpeg()
    count = size // (image_bytes + BLOCK)
    with path.open("wb") as file:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:08d}.jpg")
            info.size = image_bytes
            file.write(info.tobuf() + jpeg)
            file.seek(-(-(file.tell() - len(jpeg) + image_bytes) // BLOCK) * BLOCK)
        file.truncate(file.tell() + 2 * BLOCK)
    return count


def make_parquet(path: Path, size: int, image_bytes: int) -> int:
    """Write a Parquet file of about this size in bytes; return its number of images."""
    jpeg = _jpeg()
    group = pa.table({"image": pa.array([jpeg + bytes(image_bytes - len(jpeg))] * GROUP_ROWS)})
    count = 0
    with pq.ParquetWriter(path, group.schema, compression="none", use_dictionary=False) as writer:
        while count * image_bytes < size:
            writer.write_table(group)
            count += GROUP_ROWS
    return count


def _jpeg() -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(sink, "JPEG")
    return sink.getvalue()


class Counting:
    """A store that counts requests for ranges and their bytes."""

    def __init__(self, store: Store) -> None:
        """Wrap a store."""
        self._store, self.uri, self.requests, self.read = store, store.uri, 0, 0

    def __getattr__(self, name: str) -> Any:
        """Forward everything else to the store."""
        return getattr(self._store, name)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Read, and count."""
        data = self._store.get_range(key, start, length, if_match=if_match)
        self.requests, self.read = self.requests + 1, self.read + len(data)
        return data


def measure(folder: Path, kind: str) -> dict[str, object]:
    """Plan the archive, and label it where `kind` is "label"."""
    table = open_store(str(folder / "table"))
    lake = Counting(open_store("file:///"))
    before = _peak_megabytes()
    began, cpu = time.monotonic(), time.process_time()
    (source,) = (folder / name for name in ("a.tar", "a.parquet") if (folder / name).exists())
    listing = list_objects(
        [str(source)],
        image_column="image" if source.suffix == ".parquet" else None,
        indexes=MemberIndexes(table, keep=True),
        open_root=lambda _: lake,  # type: ignore[arg-type, return-value]
    )
    run = f"{RUN}-{kind}"
    segments = list(write_plan(table, run, listing, _none, shard_images=GPU_SHARD_IMAGES))
    images = sum(segment.images for segment in segments)
    if kind == "label":
        labeler = _labeler(table, run)
        before = _peak_megabytes()
        began, cpu = time.monotonic(), time.process_time()
        reports = [labeler.label(shard) for segment in segments for shard in segment.shards]
        assert sum(report.images for report in reports) == images
        assert not any(report.errors for report in reports)
        lake.requests = sum(report.requests for report in reports)
        lake.read = sum(report.size_bytes for report in reports)
    return {
        "what": kind,
        "planned": images,
        "requests": lake.requests,
        "megabytes_read": round(lake.read / 1e6, 1),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_megabytes": _peak_megabytes(),
        "megabytes_before": before,
    }


def _none(objects: object) -> Iterator[bool]:
    assert isinstance(objects, list)
    return iter([False] * len(objects))


def _labeler(table: Store, run: str) -> Labeler:
    torch.set_num_threads(1)
    detector = Detector(Detr(TINY).eval(), device="cpu", threshold=0.5, batch_size=32)
    return Labeler(
        table=table,
        fetcher=Fetcher(ImageStores(), SystemClock()),
        decoder=InProcessDecoder(detector, max_pixels=10_000),
        detector=detector,
        run_id=run,
        model_id="tiny@0123456789ab",
        threshold=0.5,
        settings="{}",
        decode_threads=1,
    )


def _peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
