"""The review loop on drawn scenes, by the real commands: AP rises when corrections of known truth are trained on."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from detr.checkpoints.checkpoint import load, save
from detr.classes import SCENE_CATEGORIES
from detr.detectors import load_detector
from detr.training.finetune import with_categories

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "review_loop.py"


def write_results(model: str, folder: Path, out: Path) -> Path:
    """Write what a model finds in the images of a folder as COCO results."""
    images = json.loads((folder / "instances.json").read_text())["images"]
    detector = load_detector(model, device="cpu", threshold=0.0)
    results = []
    for image, found in zip(images, detector([str(folder / one["file_name"]) for one in images]), strict=True):
        for category, score, box in zip(found.category_ids, found.scores, found.boxes_xyxy, strict=True):
            xmin, ymin, xmax, ymax = box.tolist()
            results.append({
                "image_id": image["id"], "category_id": int(category), "score": float(score),
                "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            })  # fmt: skip
    out.write_text(json.dumps(results))
    return out


@pytest.mark.slow
@pytest.mark.ray
def test_a_class_that_the_model_lacks_is_learnt_from_corrections_and_the_run_says_where_they_come_from(
    local_ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(SCRIPT))
    size = script["LoopSize"](lake=40, val=20, corrected=32, epochs=8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    five = [category for category in SCENE_CATEGORIES if category.name != "cross"]
    save(with_categories(load("scenes"), five)[0], tmp_path / "model")

    def run(words: Sequence[str]) -> None:
        if words[0] == "evaluate":  # in this process: actors take ten CPU seconds to start
            at = words.index("--annotations")
            results = write_results(
                words[2], tmp_path / "val", tmp_path / f"results-{len(list(tmp_path.iterdir()))}.json"
            )
            output = words.index("--output")
            words = ["evaluate", "--results", str(results), *words[at : at + 2], *words[output:]]
        importlib.import_module(f"jobs.{words[0]}").main(words[1:])

    with (tmp_path / "stderr").open("w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)  # progress goes through a descriptor, which pytest's own has not
        before, after = script["loop"](tmp_path, 5, run, size, first=str(tmp_path / "model"), add_classes=["cross"])

    assert after > before + 0.02
    record = json.loads((tmp_path / "runs" / "second" / "run.json").read_text())
    origin = record["configuration"]["train_origin"]
    assert origin["table"] == f"file://{tmp_path}/table"
    exported_before = json.loads((tmp_path / "batch" / "tasks.json").read_text())
    assert [one["reviewed"] for one in origin["batches"]] == [len(exported_before)]
    assert "train_origin" in (tmp_path / "runs" / "second" / "model" / "README.md").read_text()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_ap_rises_in_three_of_three_seeds(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "loops"), "--seeds", "1", "2", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    found = re.findall(r"AP (0\.\d+) -> (0\.\d+)", done.stdout)
    assert len(found) == 3
    assert all(float(after) > float(before) for before, after in found)
