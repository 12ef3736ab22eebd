"""Measure what tiles find in large pictures, what they cost, and how much memory a large picture takes.

python -m scripts.measure_tiles --pictures 4 --seeds 1 2 3 --tiles 256 384 512
python -m scripts.measure_tiles --memory 12 50 170 --tiles 512
python -m scripts.measure_tiles --join

The pictures are drawn: 4,000 x 3,000 pixels with some 115 shapes of 20 to 640 pixels; the model is `scenes`, on one
thread. A second table compares rules for seams on all pictures. With --memory each size, in megapixels, is measured in
a process of its own, without and with tiles. With --join the time is measured that joining random boxes takes.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image

from detr.detector import Detector
from detr.detector_like import DetectorLike
from detr.postprocess import Detections
from detr.scenes.scene import Scene
from detr.seams import join_views
from detr.tiled_detector import TiledDetector
from detr.tiles import Tile, Tiling, tile_size
from tests.detr.crowds import HEIGHT, SCORE, WIDTH, count_at_seams, crowds, pixels_of, precision

THRESHOLD: Final = 0.05
RULES: Final = {
    "half of the score (the rule)": {},
    "any score": {"least_score": 0.0},
    "the score or more": {"least_score": 1.0},
    "suppression alone": {"covered": 2.0},  # above 1 nothing covers a cut box
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4, help="of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tiles", type=tile_size, nargs="+", default=[])
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--join", action="store_true", help="measure joining 1,025 views of 100 boxes in 80 classes")
    parser.add_argument("--memory", type=int, nargs="+", metavar="MEGAPIXELS")
    parser.add_argument("--one", type=int, metavar="MEGAPIXELS", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tilings = [Tiling(*size, args.overlap) for size in args.tiles]  # without sizes: the whole picture only
    if args.one is not None:
        _measure_memory(args.one, tilings[0] if tilings else None)
    elif args.join:
        _measure_join()
    elif args.memory:
        _compare_memory(args.memory, args.tiles)
    else:
        _measure_precision(args.seeds, args.pictures, tilings)


def _measure_precision(seeds: Sequence[int], pictures: int, tilings: Sequence[Tiling]) -> None:
    detector, all_boxes = Detector("scenes", device="cpu"), Detector("scenes", device="cpu", threshold=0.0)
    seen: dict[Tiling, list[tuple[Scene, list[Tile], list[Detections]]]] = {tiling: [] for tiling in tilings}
    print("| seed | views | AP | AP50 | APs | APm | APl | at seams, found once, more often | CPU s a picture |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in seeds:
        scenes = crowds(seed, pictures)
        images = [pixels_of(scene) for scene in scenes]
        started = time.process_time()
        found = detector(images)
        print(_row(f"| {seed} | whole picture", scenes, found), "|", f"{_since(started) / pictures:.2f} |", flush=True)
        for tiling in tilings:
            views = [Tile(0, 0, WIDTH, HEIGHT), *tiling.tiles(HEIGHT, WIDTH)]
            started = time.process_time()
            found_in_views = [all_boxes([view.cut(image) for view in views]) for image in images]
            spent = _since(started)
            seen[tiling] += [(scene, views, one) for scene, one in zip(scenes, found_in_views, strict=True)]
            for what, rule in (("", {}), (", suppression alone", RULES["suppression alone"])):
                started = time.process_time()
                found = [
                    join_views(views, [_from(THRESHOLD, one) for one in in_views], **rule)
                    for in_views in found_in_views
                ]
                seconds = (spent + _since(started)) / pictures
                row = _row(f"| {seed} | tiles of {tiling}{what}", scenes, found)
                counts = count_at_seams(scenes, found, tiling)
                print(f"{row} {counts.objects}, {counts.once}, {counts.more} | {seconds:.2f} |", flush=True)
    _compare_rules(seen)


def _compare_rules(seen: Mapping[Tiling, Sequence[tuple[Scene, list[Tile], list[Detections]]]]) -> None:
    """Print the figures of all pictures together, from the detections of each one's views at threshold 0."""
    print("\n| tiles | a larger box replaces a cut one with | AP | AP50 | APs | APm | APl", end="")
    print(" | at seams, once, more often | of any length | detections from 0.5 with threshold 0; 0.05; 0.5 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for tiling, pictures in seen.items():
        scenes = [scene for scene, _, _ in pictures]
        for what, rule in RULES.items():
            joined = {
                threshold: [
                    join_views(views, [_from(threshold, one) for one in in_views], **rule)
                    for _, views, in_views in pictures
                ]
                for threshold in (0.0, THRESHOLD, SCORE)
            }
            columns = []
            for any_length in (False, True):
                counts = count_at_seams(scenes, joined[THRESHOLD], tiling, any_length=any_length)
                columns.append(f"{counts.objects}, {counts.once}, {counts.more}")
            columns.append("; ".join(f"{sum(len(_from(SCORE, one)) for one in ones):,}" for ones in joined.values()))
            print(_row(f"| {tiling} | {what}", scenes, joined[THRESHOLD]), " | ".join(columns), "|", flush=True)


def _row(start: str, scenes: Sequence[Scene], found: Sequence[Detections]) -> str:
    figures = precision(scenes, found)
    columns = [f"{100 * getattr(figures, one):.1f}" for one in ("AP", "AP50", "APs", "APm", "APl")]
    return f"{start} | {' | '.join(columns)} |"


def _from(threshold: float, found: Detections) -> Detections:
    """Return the detections that reach a threshold."""
    count = int((found.scores >= threshold).sum())  # sorted by score
    return Detections(found.category_ids[:count], found.labels[:count], found.scores[:count], found.boxes_xyxy[:count])


def _measure_join() -> None:
    tiles = Tiling(800, 800, 0.25).tiles(19400, 19400)
    views = [Tile(0, 0, 19400, 19400), *tiles]
    generator = torch.Generator().manual_seed(0)
    found = []
    for view in views:
        centre, side = torch.rand(100, 2, generator=generator), 0.4 * torch.rand(100, 2, generator=generator)
        corners = torch.cat(((centre - side / 2).clamp(min=0), (centre + side / 2).clamp(max=1)), dim=1)
        ids = torch.randint(1, 81, (100,), generator=generator)
        scores = torch.rand(100, generator=generator).sort(descending=True).values
        labels = tuple(str(number) for number in ids.tolist())
        found.append(Detections(ids, labels, scores, corners * torch.tensor([view.width, view.height]).repeat(2)))
    started = time.process_time()
    kept = len(join_views(views, found))
    print(f"{len(views):,} views, {100 * len(views):,} boxes, {kept:,} kept: {_since(started):.1f} CPU s")


def _since(started: float) -> float:
    """Return the CPU seconds since a `time.process_time()`."""
    return time.process_time() - started


def _compare_memory(sizes: Sequence[int], tiles: Sequence[tuple[int, int]]) -> None:
    print("| megapixels | views | peak MB above the loaded model | CPU s |")
    print("|---|---|---|---|")
    for size in sizes:
        for more in ([], *(["--tiles", str(Tiling(*one))] for one in tiles)):
            command = [sys.executable, "-m", "scripts.measure_tiles", "--one", str(size), *more]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)  # noqa: S603


def _measure_memory(megapixels: int, tiling: Tiling | None) -> None:
    """Detect in five JPEGs of this size in megapixels, decoded ahead as in a labelling run."""
    side = round((megapixels * 1e6) ** 0.5)
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(sink, "JPEG")
    inner = Detector("scenes", device="cpu")
    detector: DetectorLike = inner if tiling is None else TiledDetector(inner, tiling)
    detector([pixels_of(crowds(1, 1)[0])[:, :600, :600].contiguous()] * 2)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started = time.process_time()
    detector([sink.getvalue()] * 5)
    seconds = (time.process_time() - started) / 5
    views = "whole picture" if tiling is None else f"tiles of {tiling}"
    print(f"| {megapixels} | {views} | {(_status('VmHWM') - before) / 1e3:,.0f} | {seconds:.2f} |")


def _status(name: str) -> int:
    """Return a value of this process's status in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
