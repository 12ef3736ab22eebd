"""Measure what bfloat16 does to detections of every family, with random weights in published sizes, on a CPU.

python scripts/family_half_precision.py FOLDER [NAME ...]

For each name of `RANDOM_SIZES` but DETR's and Table Transformer's: the network under PyTorch's autocast to bfloat16
beside float32, on twelve JPEG files of a folder. Prints the largest difference of a score and of a box (pixels) and the
AP with float32's detections as the truth; `--precision auto` takes nothing that lowers it by more than 0.002.
"""

import sys
import tempfile
import warnings
from itertools import islice
from pathlib import Path

import torch

from detr.detectors import load_detector
from detr.images.decoding import decode
from pipelines.benchmarks.config import NATIVE_SIZES, RANDOM_SIZES
from pipelines.benchmarks.peers.random_family import write_random_family
from scripts.half_precision import TRUTH_AN_IMAGE, ap, compare

PICTURES = 12


def measure(name: str, files: list[Path]) -> str:
    """Return a line of the table."""
    pictures = [decode(file.read_bytes()) for file in files]
    with tempfile.TemporaryDirectory() as place:
        write_random_family({"name": name, "seed": 0}, Path(place))
        detector = load_detector(f"{place}/model", threshold=0.0, batch_size=1, device="cpu")
        exact = [detector(picture) for picture in pictures]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = [detector(picture) for picture in pictures]
    scores = torch.cat([one.scores for one in exact])
    least = scores.sort(descending=True).values[TRUTH_AN_IMAGE * len(pictures)].item()
    assert any(not torch.equal(one.scores, other.scores) for one, other in zip(exact, found, strict=True))
    return f"| {name} | {compare(exact, found)} | {ap(exact, exact, least):.4f} | {ap(exact, found, least):.4f} |"


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    files = list(islice(sorted(Path(sys.argv[1]).rglob("*.jpg")), PICTURES))
    print("| size of | bf16 beside fp32 | AP of fp32 | AP of bf16 |\n|---|---|---|---|")
    for name in sys.argv[2:] or [one for one in RANDOM_SIZES if one not in NATIVE_SIZES]:
        print(measure(name, files), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
