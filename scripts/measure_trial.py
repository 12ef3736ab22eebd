"""Compare what `ray-detr plan --trial` predicts with whole runs: CPU seconds of all processes, and wall time.

    python -m scripts.measure_trial --images photographs/

Three runs over copies of the photographs: the small model of the package, and random ResNet-50 DETRs that resize images
to 320 and 480 pixels. A trial predicts the wall time; on a machine whose cores other jobs use that says little, so the
same shards of the same trial are also timed by the CPU seconds of this process and its descendants (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pipelines.benchmarks.process_tree import ProcessTree
from pipelines.benchmarks.random_model import write_random_model
from pipelines.concurrently import repeating
from pipelines.labelling import trial
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import LabelSummary, label
from pipelines.labelling.outcome import ShardReport

# model, copies of each photograph, images of the trial
CASES = (("scenes", 40, 1500), ("320", 3, 150), ("480", 2, 100))


def config_of(folder: Path, model: str, table: str) -> LabelConfig:
    """Return the configuration of a run over all copies."""
    reference = model if model == "scenes" else str(folder / f"r50-{model}" / "model")
    return LabelConfig((str(folder / f"lake-{model}"),), str(folder / table), reference, device="cpu")


@contextmanager
def cpu_clock() -> Iterator[ProcessTree]:
    """Sample the process tree continuously: the time of an ended process is known from its last sample only."""
    tree = ProcessTree(os.getpid())
    tree.sample(with_memory=False)
    with repeating(lambda: tree.sample(with_memory=False) is not None, seconds=0.2, name="cpu"):
        yield tree


def run_trial(folder: Path, model: str, images: int, sample: int) -> dict[str, float]:
    """Predict the CPU seconds and the wall seconds of a whole run."""
    shards: list[trial.DoneShard] = []
    used: list[tuple[float, float]] = []  # when, and the CPU seconds up to then
    spent = 0.0

    def watched(config: LabelConfig, *, on_shard: Any, **options: Any) -> LabelSummary:
        nonlocal spent
        began = tree.cpu_s

        def on_report(run_id: str, report: ShardReport) -> None:
            shards.append(trial.DoneShard(time.monotonic(), report.images, report.seconds))
            on_shard(run_id, report)

        with repeating(lambda: used.append((time.monotonic(), tree.cpu_s)), seconds=0.1, name="used"):
            summary = label(config, on_shard=on_report, **options)
        tree.sample(with_memory=False)
        spent = tree.cpu_s - began
        return summary

    config = replace(config_of(folder, model, f"trial-{model}"), sample=sample, max_error_rate=1.0)
    with cpu_clock() as tree, patch.object(trial, "label", watched):
        predicted = trial.predict(config, images=images)
    window = trial.steady_window(shards)
    assert window is not None
    cpu = np.interp(window, *zip(*used, strict=True))
    an_image = float(cpu[1] - cpu[0]) / trial.images_between(shards, *window)
    return {
        "cpu": spent + (images - sample) * an_image,
        "an_image": an_image,
        "wall": 3600 * predicted.hours,
        "spent": spent,
        "shards": len(shards),
        "window": window[1] - window[0],
    }


def run_whole(folder: Path, model: str) -> dict[str, float]:
    """Label all the copies."""
    with cpu_clock() as tree:
        began, wall = tree.cpu_s, time.monotonic()
        summary = label(config_of(folder, model, f"table-{model}"))
        tree.sample(with_memory=False)
        return {"cpu": tree.cpu_s - began, "wall": time.monotonic() - wall, "images": summary.images}


def in_process(*words: object) -> dict[str, float]:
    """Run a part in a separate process, with its own imports and Ray, like a command."""
    command = [sys.executable, "-m", "scripts.measure_trial", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own command
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        model, *sizes = args.part
        do = run_trial(args.images, model, *map(int, sizes)) if sizes else run_whole(args.images, model)
        print(json.dumps(do))
        return
    photographs = sorted(path for path in args.images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    print("| model | images | trial | CPU s predicted | CPU s of the run | difference | wall s predicted, of the run |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ray-detr-trial-") as name:
        folder = Path(name)
        for model, copies, sample in CASES:
            lake = folder / f"lake-{model}"
            lake.mkdir()
            for number in range(copies):
                for photograph in photographs:
                    (lake / f"{number:03d}-{photograph.name}").write_bytes(photograph.read_bytes())
            if model != "scenes":
                settings = {"variant": "detr-resnet-50", "shorter": model, "longest": 2 * int(model), "seed": 0}
                (folder / f"r50-{model}").mkdir()
                write_random_model(settings, folder / f"r50-{model}")
            images = copies * len(photographs)
            predicted = in_process("--images", folder, "--part", model, images, sample)
            run = in_process("--images", folder, "--part", model)
            print(json.dumps(predicted), file=sys.stderr)
            assert run["images"] == images
            difference = predicted["cpu"] / run["cpu"] - 1
            print(
                f"| {model} | {images:,} | {sample} images, {predicted['spent']:.0f} CPU s | {predicted['cpu']:.0f} | "
                f"{run['cpu']:.0f} | {difference:+.1%} | {predicted['wall']:.0f}, {run['wall']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
