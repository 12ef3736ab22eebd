"""What Label Studio and CVAT write when somebody has corrected what `ray-detr review` exported, from known truth."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Json = dict[str, Any]

WHEN = "2026-11-29T09:00:00.000000Z"


def truth_boxes(truth: Json) -> dict[str, list[tuple[str, list[float]]]]:
    """Label and x, y, width, height of each object, by the last part of the file name."""
    names = {one["id"]: one["name"] for one in truth["categories"]}
    files = {one["id"]: one["file_name"] for one in truth["images"]}
    boxes: dict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    for one in truth["annotations"]:
        boxes[files[one["image_id"]]].append((names[one["category_id"]], one["bbox"]))
    return boxes


def region(label: str, bbox: list[float], size: tuple[int, int], number: int = 0) -> Json:
    """A box as Label Studio writes it: sides in percent of a picture of this width and height."""
    x, y, width, height = bbox
    wide, high = size
    return {
        "id": f"Xy{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "origin": "manual",
        "original_width": wide, "original_height": high, "image_rotation": 0,
        "value": {
            "x": 100 * x / wide, "y": 100 * y / high, "width": 100 * width / wide, "height": 100 * height / high,
            "rotation": 0, "rectanglelabels": [label],
        },
    }  # fmt: skip


def annotation(result: list[Json], number: int = 1, *, cancelled: bool = False, updated: str = WHEN) -> Json:
    return {
        "id": number, "completed_by": 1, "result": result, "was_cancelled": cancelled, "ground_truth": False,
        "created_at": WHEN, "updated_at": updated, "draft_created_at": None, "lead_time": 3.2, "prediction": {},
        "result_count": len(result), "unique_id": "0d2e", "task": number, "project": 1, "parent_prediction": None,
    }  # fmt: skip


def exported_task(task: Json, annotations: list[Json], number: int = 1) -> Json:
    """A task of the export JSON."""
    return {
        "id": number, "annotations": annotations, "file_upload": "1-tasks.json", "drafts": [], "predictions": [number],
        "data": task["data"], "meta": {}, "created_at": WHEN, "updated_at": WHEN, "inner_id": number,
        "total_annotations": len(annotations), "cancelled_annotations": 0, "total_predictions": 1, "project": 1,
    }  # fmt: skip


def minimal(task: Json) -> list[Json]:
    """The entries of the export JSON-MIN for a task of the export JSON: one for each annotation."""
    if not task["annotations"]:
        return [{**task["data"], "id": task["id"], "annotator": {}, "annotation_id": None}]
    entries = []
    for one in task["annotations"]:
        if one["was_cancelled"]:
            continue
        values = [
            {**item["value"], **{side: item[side] for side in ("original_width", "original_height")}}
            for item in one["result"]
        ]
        entry = {**task["data"], "id": task["id"], **({"label": values} if values else {})}
        entries.append(
            entry | {"annotator": 1, "annotation_id": one["id"], "created_at": WHEN, "updated_at": one["updated_at"]}
        )
    return entries


def corrected_by_truth(folder: Path, truth: Json) -> list[Json]:
    """Label Studio's export of a batch in a folder, each picture's boxes replaced by the true ones."""
    boxes = truth_boxes(truth)
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in truth["images"]}
    tasks = []
    for number, task in enumerate(json.loads((folder / "tasks.json").read_text()), 1):
        name = task["data"]["uri"].rpartition("/")[2]
        regions = [region(*box, sizes[name], place) for place, box in enumerate(boxes[name])]
        tasks.append(exported_task(task, [annotation(regions, number)], number))
    return tasks
