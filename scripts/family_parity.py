"""Compare detectors of every family with the pipeline of transformers on a folder of JPEG files; print a table.

python scripts/family_parity.py FOLDER [COUNT]

The models are those of the tests: tiny, with random weights. Scores are 0..1, boxes are pixels of the photograph.
"""

import sys
import tempfile
import warnings
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from detr.detectors import load_detector
from detr.families import FAMILIES
from tests.families import differences, own_detections, write_family

BATCH = 4


def main(folder: Path, count: int) -> None:
    """Print a line for each family: the largest differences alone and in batches, over all detections of all files."""
    torch.set_num_threads(1)
    files = list(islice(sorted(folder.rglob("*.jpg")), count))
    images = [Image.open(file).convert("RGB") for file in files]
    print(f"{len(files)} files, {len({image.size for image in images})} sizes, batches of {BATCH} at most\n")
    print("| family | model type | detections | score, alone | px, alone | score, batch | px, batch |")
    print("|---|---|---|---|---|---|---|")
    for family, name in FAMILIES.items():
        with tempfile.TemporaryDirectory() as place:
            model = write_family(family, Path(place))
            expected = own_detections(model, images)
            detector = load_detector(model, threshold=0.0, batch_size=BATCH, device="cpu")
            alone, together = [detector(file) for file in files], detector(files)
        cells = []
        for found in (alone, together):
            pairs = [differences(one, own) for one, own in zip(found, expected, strict=True)]
            cells += [f"{max(score for score, _ in pairs):.1e}", f"{max(box for _, box in pairs):.1e}"]
        print(f"| {name} | `{family}` | {sum(map(len, alone)):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12)
