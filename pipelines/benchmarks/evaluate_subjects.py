"""COCO evaluation of made-up detections, by us and by pycocotools: subjects of the `evaluate` benchmark."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.benchmarks.timing import Phases

CATEGORIES = 80
TRUTH_AN_IMAGE = 7  # boxes: COCO has 7.3
SIDE = 640


def write_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write annotations and results of `images` images with `detections` each, `truth_N.json` and `results_N.json`.

    Half of the true boxes have detections near them, so that precision is neither 0 nor 1.
    """
    for images in settings["sizes"]:
        rng = np.random.default_rng(7)
        truth: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for image in range(1, images + 1):
            boxes = _boxes(rng, TRUTH_AN_IMAGE)
            classes = rng.integers(1, CATEGORIES + 1, TRUTH_AN_IMAGE)
            for box, category in zip(boxes, classes, strict=True):
                truth.append(
                    {
                        "id": len(truth) + 1,
                        "image_id": image,
                        "category_id": int(category),
                        "bbox": [round(float(value), 2) for value in box],
                        "area": round(float(box[2] * box[3]), 2),
                        "iscrowd": 0,
                    }
                )
            found = _boxes(rng, settings["detections"])
            found_classes = rng.integers(1, CATEGORIES + 1, settings["detections"])
            near = min(TRUTH_AN_IMAGE, settings["detections"]) // 2
            found[:near] = boxes[:near] + rng.normal(0, 4, (near, 4))
            found[:near, 2:] = np.maximum(found[:near, 2:], 1.0)  # the noise makes some small sides negative
            found_classes[:near] = classes[:near]
            scores = rng.random(settings["detections"])
            rows += [
                {
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": [round(float(value), 2) for value in box],
                    "score": round(float(score), 5),
                }
                for box, category, score in zip(found, found_classes, scores, strict=True)
            ]
        document = {
            "images": [
                {"id": image, "file_name": f"{image:012}.jpg", "height": SIDE, "width": SIDE}
                for image in range(1, images + 1)
            ],
            "annotations": truth,
            "categories": [{"id": one, "name": f"class {one}"} for one in range(1, CATEGORIES + 1)],
        }
        (folder / f"truth_{images}.json").write_text(json.dumps(document))
        (folder / f"results_{images}.json").write_text(json.dumps(rows))
    return {}


def ours(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time what `jobs.evaluate --results` computes; the whole process counts."""
    phases = Phases()
    with phases.phase("import"):
        from pipelines.evaluation.evaluate import evaluate_results
    images = settings["size"]
    wall, cpu = time.perf_counter(), time.process_time()
    evaluation = evaluate_results(str(folder / f"results_{images}.json"), str(folder / f"truth_{images}.json"))
    return {
        "phases": phases.cpu_s,
        "call": {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall},
        "numbers": evaluation.average_precision.numbers(),
    }


def pycocotools(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time pycocotools as its demo calls it: load both files, evaluate, accumulate, summarise. Once, by class."""
    phases = Phases()
    with phases.phase("import"):
        import contextlib
        import io

        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    images = settings["size"]
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / f"truth_{images}.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / f"results_{images}.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    return {
        "phases": phases.cpu_s,
        "call": {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall},
        "numbers": dict(zip(names, map(float, evaluation.stats), strict=True)),
    }


def _boxes(rng: np.random.Generator, count: int) -> Any:
    """Return `(count, 4)` boxes x, y, width, height of all three of COCO's size classes."""
    sides = np.exp(rng.uniform(np.log(8), np.log(SIDE / 2), (count, 2)))
    corners = rng.uniform(0, SIDE - sides)
    return np.concatenate([corners, sides], 1)
