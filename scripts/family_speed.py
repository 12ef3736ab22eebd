"""Measure what our interface costs around detectors of every family, with random weights in published sizes.

python scripts/family_speed.py [NAME ...]

Prints a line for each name of `RANDOM_SIZES`, by default all: CPU seconds an image of our detector, of `transformers`'
pipeline and of its network on prepared pixels, one thread, float32, pictures of 480 x 640. The three are called in turn
with the same picture, in one process; `ray-detr bench model --model random:NAME` measures each in processes of its own.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline
from transformers.utils.logging import disable_progress_bar

from detr.detectors import load_detector
from detr.scenes.scene import draw_scene
from pipelines.benchmarks.agreement import compare, read_found, save_found
from pipelines.benchmarks.config import NATIVE_SIZES, RANDOM_SIZES
from pipelines.benchmarks.peers.random_family import write_random_family
from pipelines.benchmarks.random_model import write_random_model

PICTURES = 3  # after one that warms up
THRESHOLD = 0.05


def measure(name: str, folder: Path) -> str:
    """Return a line of the table."""
    if name in NATIVE_SIZES:
        write_random_model({"variant": name, "shorter": 800, "longest": 1333, "seed": 0}, folder)
    else:
        write_random_family({"name": name, "seed": 0}, folder)
    model = str(folder / "model")
    ours = load_detector(model, device="cpu", precision="fp32", threshold=THRESHOLD)
    pipe = pipeline("object-detection", model=model, dtype=torch.float32)
    pipe._get_bounding_box = lambda box: box.tolist()  # noqa: SLF001 - to compare boxes before they are cut to whole pixels
    network = AutoModelForObjectDetection.from_pretrained(model, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(model)
    indices = {label: index for index, label in network.config.id2label.items()}
    spent: list[list[float]] = []
    rows: tuple[list[Any], list[Any]] = ([], [])
    for number in range(1 + PICTURES):
        pixels = torch.from_numpy(draw_scene(number, 480, 640).image.copy())
        picture, planes = Image.fromarray(pixels.numpy()), pixels.permute(2, 0, 1)
        inputs = processor(images=picture, return_tensors="pt")
        found, first = timed(lambda planes=planes: ours.detect([ours.prepare(planes)]))
        theirs, second = timed(lambda picture=picture: pipe(picture, threshold=THRESHOLD))
        _, third = timed(lambda inputs=inputs: network(**inputs))
        if number:
            spent.append([first, second, third])
            (mine,) = found
            rows[0].append(([indices[label] for label in mine.labels], mine.scores, mine.boxes_xyxy))
            columns = ([indices[one["label"]] for one in theirs], [one["score"] for one in theirs])
            rows[1].append((*columns, [one["box"] for one in theirs]))
    places = [folder / "ours.npz", folder / "theirs.npz"]
    for place, some in zip(places, rows, strict=True):
        save_found(place, some, [(480, 640)] * PICTURES)
    agreed = compare(*map(read_found, places), with_ap=False)
    weights = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    height, width = inputs["pixel_values"].shape[2:]
    each = " | ".join(f"{median(column):.2f}" for column in zip(*spent, strict=True))
    return (
        f"| {name} | {weights:.1f} M, {height} x {width} | {each} | {ranged([row[1] / row[0] for row in spent])} | "
        f"{ranged([row[2] / row[0] for row in spent])} | {agreed.boxes} | "
        f"{agreed.matched:.3f}, {agreed.matched_back:.3f}, {agreed.max_px:.1e} |"
    )


@torch.no_grad()
def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and its CPU seconds."""
    began = time.process_time()
    returned = call()
    return returned, time.process_time() - began


def ranged(values: list[float]) -> str:
    """Return the median with the least and the largest."""
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    disable_progress_bar()
    print(
        "| size of | weights, input | ours, s | pipeline, s | network alone, s | pipeline / ours | network / ours ",
        end="",
    )
    print("| above 0.5 | matched, back, px |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in sys.argv[1:] or RANDOM_SIZES:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
