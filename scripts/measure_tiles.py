"""Measure what tiles find in large pictures, what they cost, and how much memory a large picture takes.

python -m scripts.measure_tiles --pictures 4 --seeds 1 2 3 --tiles 256 384 512
python -m scripts.measure_tiles --memory 12 50 170 --tiles 512

The pictures are drawn: 4,000 x 3,000 pixels with some 115 shapes of 20 to 640 pixels; the model is `scenes`, on one
thread. With --memory each size, in megapixels, is measured in a process of its own, without and with tiles.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from detr import seams
from detr.detector import Detector
from detr.detectors import DetectorLike
from detr.tiled_detector import TiledDetector
from detr.tiles import Tiling, tile_size
from tests.detr.crowds import count_at_seams, crowds, pixels_of, precision


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4, help="of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tiles", type=tile_size, nargs="+", default=[])
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--memory", type=int, nargs="+", metavar="MEGAPIXELS")
    parser.add_argument("--one", type=int, metavar="MEGAPIXELS", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tilings = [Tiling(*size, args.overlap) for size in args.tiles]  # none of --one: the whole picture only
    if args.one is not None:
        _measure_memory(args.one, tilings[0] if tilings else None)
    elif args.memory:
        _compare_memory(args.memory, args.tiles)
    else:
        _measure_precision(args.seeds, args.pictures, tilings)


def _measure_precision(seeds: Sequence[int], pictures: int, tilings: Sequence[Tiling]) -> None:
    detector = Detector("scenes", device="cpu")
    print("| seed | views | AP | AP50 | APs | APm | APl | at seams, found once, more often | CPU s a picture |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in seeds:
        scenes = crowds(seed, pictures)
        images = [pixels_of(scene) for scene in scenes]
        ways: list[tuple[str, DetectorLike, Tiling | None]] = [("whole picture", detector, None)]
        ways += [(f"tiles of {tiling}", TiledDetector(detector, tiling), tiling) for tiling in tilings]
        for name, way, tiling in ways:
            for covered, what in ((seams.COVERED, ""), (2.0, ", suppression alone")):
                if tiling is None and what:
                    continue
                seams.COVERED = covered  # type: ignore[misc]  # above 1 nothing covers a cut box
                started = time.process_time()
                found = way(images)
                seconds = (time.process_time() - started) / pictures
                seams.COVERED = 0.5  # type: ignore[misc]
                figures = precision(scenes, found)
                columns = [f"{100 * getattr(figures, one):.1f}" for one in ("AP", "AP50", "APs", "APm", "APl")]
                counts = None if tiling is None else count_at_seams(scenes, found, tiling)
                shown = "" if counts is None else f"{counts.objects}, {counts.once}, {counts.more}"
                print(f"| {seed} | {name}{what} | {' | '.join(columns)} | {shown} | {seconds:.2f} |", flush=True)


def _compare_memory(sizes: Sequence[int], tiles: Sequence[tuple[int, int]]) -> None:
    print("| megapixels | views | peak MB above the loaded model | CPU s |")
    print("|---|---|---|---|")
    for size in sizes:
        for more in ([], *(["--tiles", str(Tiling(*one))] for one in tiles)):
            command = [sys.executable, "-m", "scripts.measure_tiles", "--one", str(size), *more]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)  # noqa: S603


def _measure_memory(megapixels: int, tiling: Tiling | None) -> None:
    """Detect in five JPEGs of so many megapixels, decoded ahead as in a labelling run."""
    side = round((megapixels * 1e6) ** 0.5)
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(sink, "JPEG")
    inner = Detector("scenes", device="cpu")
    detector: DetectorLike = inner if tiling is None else TiledDetector(inner, tiling)
    detector([pixels_of(crowds(1, 1)[0])[:, :600, :600].contiguous()] * 2)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started = time.process_time()
    detector([sink.getvalue()] * 5)
    seconds = (time.process_time() - started) / 5
    views = "whole picture" if tiling is None else f"tiles of {tiling}"
    print(f"| {megapixels} | {views} | {(_status('VmHWM') - before) / 1e3:,.0f} | {seconds:.2f} |")


def _status(name: str) -> int:
    """Return a figure of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
