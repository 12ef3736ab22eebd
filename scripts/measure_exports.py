"""Measure memory and CPU time of each export format over a table of many boxes.

    python scripts/measure_exports.py --images 100000 --boxes 100
    python scripts/measure_exports.py --images 65536 524288 --boxes 1

Each format is written by a process of its own; the table is made first, in a temporary folder. Each output is removed
when it is measured: for ten million boxes the largest, labelstudio, takes 4 GB. With --most-mb the exit code is 1 if a
format takes more memory. With two numbers of images each format is measured with both, and the difference of the peaks
is given as bytes an image. Files of a folder then have 1 MB instead of 64, so that the growth of their buffer is not
counted; the smaller table should have several files, one of which is in memory at a time.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipelines.exports.places import FILE_BYTES
from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

FORMATS = ("parquet", "jsonl", "csv", "coco", "coco-dataset", "yolo", "voc", "labelstudio", "megadetector")
FILE_ROWS = 32_768

CHILD = """
import resource, sys
from jobs.export import main
from pipelines.exports import places, trees
places.FILE_BYTES = trees.FILE_BYTES = int(sys.argv[1])
main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
# ru_maxrss would begin with that of the process that forked this one
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(f"{int(peak) / 1024:.0f} {used.ru_utime + used.ru_stime:.1f}")
"""


def write_table(folder: str, images: int, boxes: int) -> None:
    """Write a table in files of 32,768 rows, as a GPU run does."""
    random = np.random.default_rng(0)
    for number, first in enumerate(range(0, images, FILE_ROWS)):
        rows = []
        for image in range(first, min(first + FILE_ROWS, images)):
            low = random.uniform(0, 500, (boxes, 2)).astype(np.float32)
            ids = random.integers(1, 90, boxes)
            scores = np.sort(random.uniform(0.05, 1, boxes).astype(np.float32))[::-1]
            found = Detected(ids, [f"class {one}" for one in ids], scores, np.concatenate([low, low + 99], axis=1))
            rows.append(Row(f"s3://lake/{image // 1000}/{image:08d}.jpg", "etag", 1, 640, 640, detections=found))
        origin = Origin("detr@1", 0.05, "run-1", number, datetime(2026, 11, 28, tzinfo=UTC))
        data = encode(rows_to_table(rows, origin=origin))
        open_store(folder).put(f"data/run-1/{number:05d}.parquet", data)


def measure(table: str, out: Path, kind: str, file_bytes: int) -> tuple[int, float, int]:
    """Return peak memory in MB, CPU seconds and written MB of one export, and remove the output."""
    options = ["--table", table, "--to", kind, "--out", f"{out}/"]
    words = [sys.executable, "-c", CHILD, str(file_bytes), *options]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    megabytes, seconds = done.stdout.split()[-2:]
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return int(megabytes), float(seconds), written // 1_000_000


def main() -> None:
    """Write the table, measure each format, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[100_000], help="one number, or two in ascending order"
    )
    parser.add_argument("--boxes", type=int, default=100, help="of each image")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--most-mb", type=int, metavar="MB", help="exit with code 1 if a format takes more memory")
    args = parser.parse_args()
    above: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for images in args.images:
            write_table(str(Path(folder) / f"table-{images}"), images, args.boxes)
        sizes = ", then ".join(f"{images * args.boxes:,} boxes of {images:,} images" for images in args.images)
        print(f"{sizes}\n")
        growth = ["bytes an image"] if len(args.images) == 2 else []
        head = ["format", *["peak MB", "CPU s", "MB written"] * len(args.images), *growth]
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
        for kind in args.formats:
            file_bytes = 1_000_000 if growth else FILE_BYTES
            tables = (str(Path(folder) / f"table-{images}") for images in args.images)
            found = [measure(table, Path(folder) / kind, kind, file_bytes) for table in tables]
            cells = [cell for mb, seconds, written in found for cell in (str(mb), f"{seconds:.1f}", f"{written:,}")]
            if growth:
                grown = (found[1][0] - found[0][0]) * 2**20 / (args.images[1] - args.images[0])
                cells.append(f"{grown:.0f}")
            print(f"| {' | '.join([kind, *cells])} |", flush=True)
            if args.most_mb is not None and max(mb for mb, _, _ in found) > args.most_mb:
                above.append(kind)
    if above:
        sys.exit(f"error: more than {args.most_mb} MB of memory: {', '.join(above)}")


if __name__ == "__main__":
    main()
