"""Measure memory and CPU time of each export format over a table of many boxes.

    python scripts/measure_exports.py --images 100000 --boxes 100

Each format is written by a process of its own; the table is made first, in a temporary folder. Each output is removed
when it is measured: for ten million boxes the largest, labelstudio, takes 4 GB. With --most-mb the exit code is 1 if a
format takes more memory.
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

from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

FORMATS = ("parquet", "jsonl", "csv", "coco", "coco-dataset", "yolo", "voc", "labelstudio", "megadetector")
FILE_ROWS = 32_768

CHILD = """
import resource, sys
from jobs.export import main
main(sys.argv[1:])
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


def measure(table: str, out: Path, kind: str) -> tuple[int, float, int]:
    """Return peak memory in MB, CPU seconds and written MB of one export, and remove the output."""
    options = ["--table", table, "--to", kind, "--out", f"{out}/"]
    done = subprocess.run([sys.executable, "-c", CHILD, *options], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    megabytes, seconds = done.stdout.split()[-2:]
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return int(megabytes), float(seconds), written // 1_000_000


def main() -> None:
    """Write the table, measure each format, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=100, help="of each image")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--most-mb", type=int, metavar="MB", help="exit with code 1 if a format takes more memory")
    args = parser.parse_args()
    above: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        table = str(Path(folder) / "table")
        write_table(table, args.images, args.boxes)
        print(f"{args.images * args.boxes:,} boxes of {args.images:,} images\n")
        print("| format | peak MB | CPU s | MB written |\n|---|---|---|---|", flush=True)
        for kind in args.formats:
            megabytes, seconds, written = measure(table, Path(folder) / kind, kind)
            print(f"| {kind} | {megabytes} | {seconds:.1f} | {written:,} |", flush=True)
            if args.most_mb is not None and megabytes > args.most_mb:
                above.append(kind)
    if above:
        sys.exit(f"error: more than {args.most_mb} MB of memory: {', '.join(above)}")


if __name__ == "__main__":
    main()
