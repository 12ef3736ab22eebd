"""How much more than needed a training step computes because of padding and of workers that wait for each other.

    python scripts/padding.py instances.json --workers 8 --batch-size 4

Sizes are drawn with replacement from a COCO json; nothing is decoded. The first figure is pixels with padding over
pixels of the images; the second the largest worker's pixels with padding over the mean of the workers'.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.training.batch import Preparation
from pipelines.training.order import Places, Similar, plan_epoch
from pipelines.training.recipe import RECIPES

GROUP = 32  # images of a row group


def main() -> None:
    """Parse, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--window-groups", type=int, default=64)
    args = parser.parse_args()
    recipe = replace(RECIPES["paper-300"], effective_batch=args.workers * args.batch_size, batch_size=args.batch_size)
    sizes = [(image["height"], image["width"]) for image in json.loads(args.annotations.read_text())["images"]]
    chosen = np.random.default_rng(0).integers(len(sizes), size=args.images // GROUP * GROUP)
    groups = [[sizes[index] for index in chosen[start : start + GROUP]] for start in range(0, len(chosen), GROUP)]
    preparation = Preparation("coco", (), 0, recipe.augment(0.0))
    final = [
        [preparation.size(*size, GROUP * group + row, epoch=0) for row, size in enumerate(own)]
        for group, own in enumerate(groups)
    ]

    def sizes(places: Places) -> npt.NDArray[np.int64]:
        return np.array([final[group][row] for group, row in places.tolist()], dtype=np.int64).reshape(-1, 2)

    for name, similar in (("as the paper", None), ("--similar-sizes", Similar(sizes, range(args.workers)))):
        order = plan_epoch(
            [GROUP] * len(groups),
            seed=0,
            epoch=0,
            readers=args.workers,
            batch_size=args.batch_size,
            window_groups=max(2, args.window_groups // args.workers),
            similar=similar,
        )
        own = padded = slowest = 0.0
        for step in range(order.steps):
            shapes = [sizes(order.micro_batch(reader, step)) for reader in range(args.workers)]
            work = [float(len(one) * one.max(axis=0, initial=0).prod()) for one in shapes]
            own += sum(float(one.prod(axis=1).sum()) for one in shapes)
            padded += sum(work)
            slowest += max(work) * len(work)
        print(f"{name}: padding {padded / own:.3f}, imbalance {slowest / padded:.3f}, together {slowest / own:.3f}")


if __name__ == "__main__":
    main()
