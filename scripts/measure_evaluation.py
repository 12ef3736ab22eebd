"""Measure what evaluating a data set of the size of COCO's val2017 costs: CPU seconds and peak memory.

python -m scripts.measure_evaluation
python -m scripts.measure_evaluation --evaluators ultrafast pycocotools --rounds 3

Truth and detections are generated from a seed: 80 classes, about 7 annotations an image with polygons, of which one in
a hundred is a crowd, and 100 detections an image, of which some are near the truth. The same detections are written as
a results json and as a detection table. Each figure is that of one `jobs.evaluate` process: user and system time with
imports, and the largest resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

IMAGES = 5_000
QUERIES = 100  # detections of DETR for each image
CLASSES = 80
HEIGHT, WIDTH = 480, 640
POLYGON_POINTS = 26
SHARD_IMAGES = 1_000


def main() -> None:
    """Write the data set, evaluate it in fresh processes, print a line for each source and evaluator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N")
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="processes for each figure; the median counts"
    )
    parser.add_argument("--write", type=Path, metavar="DIR", help=argparse.SUPPRESS)  # of a child
    parser.add_argument(
        "--evaluators", nargs="*", default=[], metavar="NAME", help="values of --evaluator (the default)"
    )
    args = parser.parse_args()
    if args.write:
        write_data_set(args.write, args.images)
        return
    with tempfile.TemporaryDirectory(prefix="ray-detr-measure-") as name:
        folder = Path(name)
        # in a separate process: the reported peak of a child is never lower than that of its parent
        itself = [sys.executable, "-m", "scripts.measure_evaluation"]
        subprocess.run([*itself, "--write", str(folder), "--images", str(args.images)], check=True)  # noqa: S603
        figures: dict[tuple[str, str], Any] = {}
        for source, place in (("results", folder / "results.json"), ("table", folder / "table")):
            for evaluator in args.evaluators or [""]:
                command = [
                    sys.executable, "-m", "jobs.evaluate", f"--{source}", str(place),
                    "--annotations", str(folder / "instances.json"), "--output", str(folder / "metrics.json"),
                    *(["--evaluator", evaluator] if evaluator else []),
                ]  # fmt: skip
                costs = [cost_of(command) for _ in range(args.rounds)]
                figures[source, evaluator] = json.loads((folder / "metrics.json").read_text())
                seconds = statistics.median(seconds for seconds, _ in costs)
                peak = statistics.median(peak for _, peak in costs)
                print(
                    f"--{source} {evaluator or 'default'}: {seconds:.2f} CPU s, {peak / 1e6:,.0f} MB at the peak",
                    flush=True,
                )
        numbers = [
            {key: value for key, value in found.items() if key.startswith(("AP", "AR", "class"))}
            for found in figures.values()
        ]
        print(
            f"AP {numbers[0]['AP']!r}; {'the same' if all(one == numbers[0] for one in numbers) else 'OTHER'} figures"
        )


def cost_of(command: list[str]) -> tuple[float, int]:
    """Run a command; return its CPU seconds and its largest resident memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    process.returncode = 0
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def write_data_set(folder: Path, images: int) -> None:
    """Write instances.json, results.json and a table with the same detections."""
    draw = np.random.default_rng(17)
    entries, annotations, results, rows = [], [], [], []
    for image_id in range(1, images + 1):
        name = f"{image_id:012}.jpg"
        entries.append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
        truth, classes = _boxes(draw, draw.poisson(7.3)), None
        classes = draw.integers(1, CLASSES + 1, len(truth))
        for box, category in zip(truth.tolist(), classes.tolist(), strict=True):
            annotations.append(_annotation(draw, len(annotations) + 1, image_id, category, box))
        found, found_classes, scores = _detections(draw, truth, classes)
        results += [
            {"image_id": image_id, "category_id": category, "bbox": [x, y, right - x, bottom - y], "score": score}
            for category, score, (x, y, right, bottom) in zip(
                found_classes.tolist(), scores.tolist(), found.tolist(), strict=True
            )
        ]
        labels = [f"class {category}" for category in found_classes]
        detected = Detected(found_classes, labels, scores, found)
        rows.append(Row(f"s3://lake/{name}", height=HEIGHT, width=WIDTH, detections=detected))
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    (folder / "instances.json").write_text(
        json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    )
    (folder / "results.json").write_text(json.dumps(results))
    data = folder / "table" / "data" / "run-1"
    data.mkdir(parents=True)
    for shard, start in enumerate(range(0, images, SHARD_IMAGES)):
        origin = Origin("made@0123456789ab", 0.0, "run-1", shard, datetime(2026, 11, 28, tzinfo=UTC))
        table = rows_to_table(rows[start : start + SHARD_IMAGES], origin=origin)
        (data / f"{shard:05}.parquet").write_bytes(encode(table))


def _boxes(draw: np.random.Generator, count: int) -> np.ndarray:
    """Return corners of boxes, sizes as in COCO: many small, few large."""
    sides = np.exp(draw.uniform(np.log(8), np.log(300), (count, 2)))
    corner = draw.uniform(0, 1, (count, 2)) * np.maximum([WIDTH, HEIGHT] - sides, 1)
    return np.concatenate([corner, corner + sides], axis=1)


def _annotation(
    draw: np.random.Generator, number: int, image_id: int, category: int, box: list[float]
) -> dict[str, object]:
    x, y, right, bottom = (round(side, 2) for side in box)
    width, height = round(right - x, 2), round(bottom - y, 2)
    polygon = (draw.uniform(0, 1, (POLYGON_POINTS, 2)) * [width, height] + [x, y]).round(2).ravel().tolist()
    return {
        "id": number, "image_id": image_id, "category_id": category, "bbox": [x, y, width, height],
        "area": round(width * height * draw.uniform(0.4, 0.9), 4), "iscrowd": int(draw.random() < 0.01),
        "segmentation": [polygon],
    }  # fmt: skip


def _detections(
    draw: np.random.Generator, truth: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return corners as float32, classes and scores of `QUERIES` detections, best first."""
    near = min(len(truth) * 4, QUERIES)
    chosen = draw.integers(0, len(truth), near) if len(truth) else np.empty(0, int)
    moved = truth[chosen] + draw.normal(0, 4, (near, 4))
    named = np.where(draw.random(near) < 0.8, classes[chosen], draw.integers(1, CLASSES + 1, near))
    boxes = np.concatenate([moved, _boxes(draw, QUERIES - near)]).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    found = np.concatenate([named, draw.integers(1, CLASSES + 1, QUERIES - near)]).astype(np.int32)
    scores = np.concatenate([draw.beta(2, 2, near), draw.beta(1, 8, QUERIES - near)]).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return boxes[order], found[order], scores[order]


if __name__ == "__main__":
    main()
