"""Measure what bf16 and fp16 do to detections of models of `transformers`, on a CPU.

python -m scripts.family_half_precision FOLDER [MODEL ...] [--count 12]

FOLDER has JPEG files. MODEL is a model directory, or a name of `RANDOM_SIZES` for random weights in a published size;
without one, all names but DETR's and Table Transformer's. Prints the largest difference of a score and of a box in
pixels from float32, and the AP with float32's detections as the truth. `--precision auto` takes nothing that lowers
that AP by more than 0.002.
"""

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from detr.detectors import load_detector
from detr.images.decoding import decode
from detr.postprocess import Detections
from detr.precision import Precision
from pipelines.benchmarks.config import NATIVE_SIZES, RANDOM_SIZES
from pipelines.benchmarks.peers.random_family import write_random_family
from scripts.half_precision import TRUTH_AN_IMAGE, ap, compare

HALVES: tuple[Precision, ...] = ("bf16", "fp16")


def measure(name: str, model: str, pictures: Sequence[Tensor]) -> None:
    """Print the lines of a model."""
    exact = detections(model, pictures, "fp32")
    scores = torch.cat([one.scores for one in exact])
    least = scores.sort(descending=True).values[TRUTH_AN_IMAGE * len(pictures)].item()
    for precision in HALVES:
        found = detections(model, pictures, precision)
        aps = f"{ap(exact, exact, least):.4f} | {ap(exact, found, least):.4f}"
        print(f"| {name} | {precision} | {compare(exact, found)} | {aps} |", flush=True)


def detections(model: str, pictures: Sequence[Tensor], precision: Precision) -> list[Detections]:
    """Return the detections of each picture alone, at threshold 0."""
    detector = load_detector(model, threshold=0.0, batch_size=1, device="cpu", precision=precision)
    return [detector(picture) for picture in pictures]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=[one for one in RANDOM_SIZES if one not in NATIVE_SIZES])
    parser.add_argument("--count", type=int, default=12, help="pictures at most")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = islice(sorted(args.folder.rglob("*.jpg")), args.count)
    pictures = [decode(file.read_bytes()) for file in files]
    print("| model | precision | beside fp32 | AP of fp32 | AP |\n|---|---|---|---|---|")
    for name in args.models:
        if name not in RANDOM_SIZES:
            measure(Path(name).name, name, pictures)
            continue
        with tempfile.TemporaryDirectory() as place:
            write_random_family({"name": name, "seed": 0}, Path(place))
            measure(name, f"{place}/model", pictures)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
