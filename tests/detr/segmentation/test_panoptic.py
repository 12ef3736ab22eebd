"""Panoptic segmentations are the original's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from detr.segmentation.panoptic import segment_pixels

GOLDEN = Path(__file__).parents[2] / "golden" / "panoptic_postprocess.safetensors"


def info() -> dict[str, Any]:
    with safe_open(GOLDEN, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["info"])
    return found


@pytest.mark.parametrize("case", ["lowconf/0", "mixed/0", "mixed/1", "none/0", "tiny/0"])
def test_segments_are_the_originals(case: str) -> None:
    golden, name, image = load_file(GOLDEN), case[:-2], int(case[-1])
    scores, classes = golden[f"{name}/pred_logits"][image].softmax(-1).max(-1)
    kept = (classes != 250) & (scores > info()["threshold"])

    found = segment_pixels(
        golden[f"{name}/pred_masks"][image][kept],
        classes[kept],
        resized=tuple(golden[f"{name}/processed_sizes"][image].tolist()),
        image=tuple(golden[f"{name}/target_sizes"][image].tolist()),
    )

    expected = golden[f"{name}/id_map{image}"].numpy()
    assert np.array_equal(found.ids, expected + bool(found.segments))  # its ids begin with 0
    assert [
        {"id": one.id - 1, "isthing": one.is_thing, "category_id": one.category_id, "area": one.area}
        for one in found.segments
    ] == info()["segments_info"][case]
