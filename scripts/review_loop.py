r"""Measure the review loop on drawn scenes: train on few, label, correct the least certain by the truth, fine-tune.

    python scripts/review_loop.py --out /tmp/loop --seeds 1 2 3

The pictures are scenes as a camera would take them at night: grey, dark, blurred and noisy, which the model `scenes`
has not seen. Every step is a command of ray-detr. Only the person who corrects is replaced: by the truth of the
drawing, written as Label Studio writes it.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
SIZES = {(224, 298): 2, (224, 358): 1, (224, 224): 1}  # (height, width) -> how often
RATES = ["--lr", "3e-4", "--lr-backbone", "3e-4", "--freeze-backbone", "none", "--augmentation", "none"]

Json = dict[str, Any]
Run = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class LoopSize:
    """The size of a loop."""

    few: int = 10
    lake: int = 150
    val: int = 60
    corrected: int = 50
    first_epochs: int = 40
    epochs: int = 20


def draw(folder: Path, count: int, seed: int, *, at_night: bool = True) -> Json:
    """Draw scenes, at night or unchanged, and return their COCO json."""
    from detr.scenes.files import write_scenes

    truth: Json = json.loads(write_scenes(folder, count, seed, sizes=SIZES).read_text())
    if not at_night:
        return truth
    random = np.random.default_rng(seed)
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as opened:
            grey = np.asarray(opened.convert("L").filter(ImageFilter.GaussianBlur(1.2)), np.float32)
        dark = np.clip(0.45 * grey + random.normal(0, 10, grey.shape), 0, 255).astype(np.uint8)
        Image.fromarray(dark).convert("RGB").save(path, quality=92)
    return truth


def correct(batch: Path, truth: Json, out: Path) -> None:
    """Write Label Studio's JSON export of a batch in which every box is the true one."""
    labels = {one["id"]: one["name"] for one in truth["categories"]}
    images = {one["file_name"]: one for one in truth["images"]}
    boxes = defaultdict(list)
    for one in truth["annotations"]:
        boxes[one["image_id"]].append(one)
    tasks = []
    for number, task in enumerate(json.loads((batch / "tasks.json").read_text()), 1):
        image = images[task["data"]["uri"].rpartition("/")[2]]
        wide, high = image["width"], image["height"]
        result = [
            {
                "id": f"r{place}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
                "original_width": wide, "original_height": high, "image_rotation": 0,
                "value": {
                    "x": 100 * x / wide, "y": 100 * y / high, "width": 100 * width / wide,
                    "height": 100 * height / high, "rotation": 0, "rectanglelabels": [labels[one["category_id"]]],
                },
            }
            for place, one in enumerate(boxes[image["id"]])
            for x, y, width, height in [one["bbox"]]
        ]  # fmt: skip
        annotations = [{"id": number, "was_cancelled": False, "ground_truth": False, "result": result}]
        tasks.append({"id": number, "data": task["data"], "annotations": annotations})
    out.write_text(json.dumps(tasks))


def loop(
    folder: Path, seed: int, run: Run, size: LoopSize, *, first: str | None = None, add_classes: Sequence[str] = ()
) -> tuple[float, float]:
    """Run the whole loop below an empty folder, and return AP before and after.

    Args:
        folder: receives all files.
        seed: seed of pictures and training.
        run: runs a command, whose first word is its name.
        size: size of the loop.
        first: the labelling model, for unchanged scenes; None trains one on a few pictures at night.
        add_classes: that this model lacks.
    """
    few, lake, val = folder / "few", folder / "lake", folder / "val"
    truth = draw(lake, size.lake, 3 * seed + 1_001, at_night=first is None)
    draw(val, size.val, 3 * seed + 1_002, at_night=first is None)
    at = {name: str(folder / name) for name in ("table", "batch", "runs", "few-shards", "shards", "corrected.json")}
    one_actor = ["--device", "cpu", "--actors", "1:1"]
    measured = ["--images", str(val), "--annotations", str(val / "instances.json"), *one_actor]
    training = ["--recipe", "finetune", "--storage", at["runs"], "--num-workers", "1:1", "--device", "cpu",
                "--seed", str(seed), *RATES]  # fmt: skip

    if first is None:
        draw(few, size.few, 3 * seed + 1_000)
        run(["shard", "--annotations", str(few / "instances.json"), "--images", str(few), "--out", at["few-shards"]])
        run(["train", "--train", at["few-shards"], "--finetune", "scenes", "--name", "first",
             "--epochs", str(size.first_epochs), "--lr-drop", str(size.first_epochs), *training])  # fmt: skip
        first = f"{at['runs']}/first/model"
    run(["evaluate", "--model", first, *measured, "--output", str(folder / "before.json")])
    run(["label", "--model", first, "--images", str(lake), "--table", at["table"], *one_actor])
    run(["review", "--table", at["table"], "--export", "least-certain", "--count", str(size.corrected),
         "--out", at["batch"], "--classes-of", first])  # fmt: skip
    correct(Path(at["batch"]), truth, Path(at["corrected.json"]))
    new = ["--add-classes", *add_classes] if add_classes else []
    run(["review", "--table", at["table"], "--import", at["corrected.json"], "--out", at["shards"], *new])
    run(["train", "--train", at["shards"], "--finetune", first, "--name", "second", "--epochs", str(size.epochs),
         "--lr-drop", str(round(0.75 * size.epochs)), *training])  # fmt: skip
    run(["evaluate", "--model", f"{at['runs']}/second/model", *measured, "--output", str(folder / "after.json"),
         "--baseline", str(folder / "before.json")])  # fmt: skip
    before, after = (json.loads((folder / f"{name}.json").read_text())["AP"] for name in ("before", "after"))
    return float(before), float(after)


def main() -> None:
    """Run the loop for each seed with commands as processes, and print AP and CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    for name, value in vars(LoopSize()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N")
    args = parser.parse_args()
    size = LoopSize(**{name: getattr(args, name) for name in vars(LoopSize())})

    from pipelines.benchmarks.process_tree import run_measured

    for seed in args.seeds:
        folder = args.out / str(seed)
        folder.mkdir(parents=True)
        spent: list[tuple[str, float]] = []

        def run(words: Sequence[str], spent: list[tuple[str, float]] = spent, folder: Path = folder) -> None:
            output = folder / f"{len(spent):02}-{words[0]}.txt"
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", f"jobs.{words[0]}", *words[1:]]
            used = run_measured(command, environment=environment, folder=folder, output=output, timeout_s=1_800)
            if used.exit_code:
                sys.exit(f"{' '.join(words)} ended with {used.exit_code}:\n{output.read_text()}")
            spent.append((words[0], used.cpu_s))

        before, after = loop(folder, seed, run, size)
        steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent)
        print(f"seed {seed}: AP {before:.3f} -> {after:.3f}; CPU seconds {sum(one for _, one in spent):.0f} ({steps})")


if __name__ == "__main__":
    main()
