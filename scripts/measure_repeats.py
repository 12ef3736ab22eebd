"""Measure CPU time and memory of `ray-detr repeats` over a table of many boxes, and of readers with and without marks.

    python scripts/measure_repeats.py --images 100000 --boxes 10
    python scripts/measure_repeats.py --images 80000 --crowded

The table has cameras of 1,000 pictures with four stones each; the other boxes lie anywhere. Each command is a process
of its own; the table is made first, in a temporary folder. With --crowded there is one camera, whose pictures have one
large object each, around the middle: no box is at a place that repeats, and each has many others near it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

FILE_ROWS = 32_768
STONES = 4
LABELS = ("animal", "person", "vehicle")

CHILD = """
import importlib, resource, sys
command = importlib.import_module(f"jobs.{sys.argv[1]}")
command.main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
# ru_maxrss would begin with that of the process that forked this one
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(f"{int(peak) / 1024:.0f} {used.ru_utime + used.ru_stime:.1f}")
"""


def write_table(folder: str, images: int, boxes: int, pictures: int) -> None:
    """Write a table in files of 32,768 rows, as a GPU run does."""
    random = np.random.default_rng(0)
    for number, first in enumerate(range(0, images, FILE_ROWS)):
        rows = []
        for image in range(first, min(first + FILE_ROWS, images)):
            camera = image // pictures
            low = random.uniform(0, 500, (boxes, 2))
            sides = np.concatenate([low, low + random.uniform(20, 130, (boxes, 2))], axis=1)
            labels = random.integers(0, 3, boxes)
            stones = np.random.default_rng(camera).uniform(0, 500, (STONES, 2))
            sides[:STONES] = np.concatenate([stones, stones + 60], axis=1) + random.normal(0, 0.8, (STONES, 4))
            labels[:STONES] = 0
            scores = np.sort(random.uniform(0.3, 1, boxes).astype(np.float32))[::-1]
            order = random.permutation(boxes)
            names = tuple(LABELS[label] for label in labels[order])
            found = Detected(labels[order] + 1, names, scores, sides[order].astype(np.float32))
            rows.append(Row(f"s3://lake/{camera:05}/{image:08}.jpg", "etag", 1, 640, 640, detections=found))
        origin = Origin("detr@1", 0.05, "run-1", number, datetime(2026, 11, 29, tzinfo=UTC), "{}")
        open_store(folder).put(f"data/run-1-{number:05}.parquet", encode(rows_to_table(rows, origin=origin)))


def write_crowded_table(folder: str, images: int) -> None:
    """Write a table of one camera with an object of a quarter to a half of the picture in each image."""
    random = np.random.default_rng(0)
    for number, first in enumerate(range(0, images, FILE_ROWS)):
        count = min(FILE_ROWS, images - first)
        sizes, middles = random.uniform(0.25, 0.45, (count, 2)), random.normal(0.5, 0.12, (count, 2))
        sides = 640 * np.clip(np.concatenate([middles - sizes / 2, middles + sizes / 2], axis=1), 0, 1)
        rows = [
            Row(
                f"s3://lake/camera/{image:08}.jpg", "etag", 1, 640, 640,
                detections=Detected([1], ("animal",), [0.9], sides[image - first, None].astype(np.float32)),
            )
            for image in range(first, first + count)
        ]  # fmt: skip
        origin = Origin("detr@1", 0.05, "run-1", number, datetime(2026, 11, 29, tzinfo=UTC), "{}")
        open_store(folder).put(f"data/run-1-{number:05}.parquet", encode(rows_to_table(rows, origin=origin)))


def measure(*words: str) -> tuple[str, int, float]:
    """Return the last line of a command's output, peak memory in MB, and CPU seconds."""
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True)  # noqa: S603
    *printed, last = done.stdout.splitlines()
    megabytes, seconds = last.split()
    return " / ".join(printed[-2:]), int(megabytes), float(seconds)


def main() -> None:
    """Write the table, measure each command, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=10, help="of each image")
    parser.add_argument("--pictures", type=int, default=1000, help="of each camera")
    parser.add_argument("--crowded", action="store_true", help="one camera, one box of each image, around the middle")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = str(Path(folder) / "table")
        if args.crowded:
            write_crowded_table(table, args.images)
            print(f"{args.images:,} boxes of {args.images:,} images, 1 camera\n")
        else:
            write_table(table, args.images, args.boxes, args.pictures)
            print(
                f"{args.images * args.boxes:,} boxes of {args.images:,} images, "
                f"{args.images // args.pictures:,} cameras\n"
            )
        print("| command | MB at most | CPU s | printed |\n|---|---|---|---|", flush=True)
        count = "SELECT count(*), count(repeat) FROM detections"
        commands: tuple[tuple[str, ...], ...] = (
            ("export", "--out", "FOLDER/1.csv"),
            ("query", "SELECT count(*) FROM detections"),
            ("repeats", "--accept-all"),
            ("export", "--out", "FOLDER/2.csv"),
            ("query", "SELECT count(*) FROM detections"),
            ("query", count),
            ("repeats", "--accept-all"),
        )
        for number, words in enumerate(commands[2:3] if args.crowded else commands):
            given = [word.replace("FOLDER", folder) for word in words]
            printed, megabytes, seconds = measure(given[0], "--table", table, *given[1:])
            print(f"| {number + 1}: {' '.join(words)} | {megabytes} | {seconds:.1f} | {printed} |", flush=True)


if __name__ == "__main__":
    main()
