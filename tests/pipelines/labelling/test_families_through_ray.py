"""Models of `transformers` through a real Ray: the rows are what each model's own pipeline finds, faults included."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest
import torch
from PIL import Image

from detr.postprocess import Detections
from detr.scenes.files import write_scenes
from pipelines.evaluation.annotations import read_annotations
from pipelines.evaluation.evaluate_model import ModelEvaluationConfig, evaluate_model
from pipelines.labelling import actor_pool as pool
from pipelines.labelling.actor_pool import ShardActor
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.models import identify_model
from pipelines.store import StoreOptions
from tests.families import LABELS, differences, own_detections, write_family

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FAMILIES = (
    "rt_detr_v2",
    pytest.param("deformable_detr", marks=pytest.mark.long),
    pytest.param("rf_detr", marks=pytest.mark.long),
    pytest.param("yolos", marks=pytest.mark.long),
)
AWKWARD = Path(__file__).parents[4] / "shared" / "data" / "awkward"
BROKEN = {"cut.jpg": "truncated", "empty.jpg": "empty", "page.jpg": "not_an_image"}


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scenes of two sizes, a picture of one pixel's height, one with transparency, and three broken files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "lake"
    write_scenes(folder, 8, 4, sizes={(96, 128): 1, (128, 96): 1})
    whole = (folder / "scene_4_000000.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    Image.fromarray(np.full((1, 500, 3), 90, np.uint8)).save(folder / "thin.png")
    return folder


def rows(config: LabelConfig) -> dict[str, dict[str, Any]]:
    found = pyarrow.dataset.dataset(f"{config.table}/data").to_table().to_pylist()
    assert len({row["uri"] for row in found}) == len(found), "an image has two rows"
    return {row["uri"].rpartition("/")[2]: row for row in found}


def detections(row: dict[str, Any]) -> Detections:
    found = row["detections"]
    boxes = [[one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for one in found]
    return Detections(
        torch.tensor([one["category_id"] for one in found]),
        tuple(one["label"] for one in found),
        torch.tensor([one["score"] for one in found]),
        torch.tensor(boxes),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_labelled_folder_has_the_rows_of_the_model_s_own_pipeline_though_an_actor_dies(
    family: str, local_ray: str, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, died = write_family(family, tmp_path / family), tmp_path / "died"

    class DiesOnce(ShardActor):
        def __call__(self, row: Any) -> dict[str, Any]:
            done = super().__call__(row)  # committed, and not reported
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    monkeypatch.setattr(pool, "ShardActor", DiesOnce)
    config = LabelConfig(
        (str(lake),), table=str(tmp_path / "table"), model=str(folder), threshold=0.0, device="cpu", actors=(None, 1),
        shard_images=4, batch_size=4, max_error_rate=1.0,
    )  # fmt: skip

    summary = label(config)

    table = rows(config)
    is_narrow = {"thin.png": "too_extreme"} if family in ("deformable_detr", "yolos") else {}
    assert died.exists()
    assert {name: row["error_kind"] for name, row in table.items() if row["error_kind"]} == BROKEN | is_narrow
    good = sorted(name for name, row in table.items() if row["status"] == "ok")
    assert len(good) == 9 - len(is_narrow)
    images = [Image.open(lake / name).convert("RGB") for name in good]
    for name, own in zip(good, own_detections(folder, images), strict=True):
        score, box = differences(detections(table[name]), own)
        assert score <= 1e-4
        assert box <= 0.05
        assert {one["category_id"] for one in table[name]["detections"]} <= set(LABELS)
    assert {row["model"] for row in table.values()} == {summary.model}
    assert {json.loads(row["settings"])["precision"] for row in table.values()} == {"fp32"}
    assert label(config).images == 0, "a second start labels nothing again"


@pytest.mark.long
@pytest.mark.skipif(not AWKWARD.exists(), reason=f"no awkward files: put expected.json and its files into {AWKWARD}")
def test_awkward_files_have_the_rows_that_they_have_with_detr(local_ray: str, tmp_path: Path) -> None:
    expected = json.loads((AWKWARD / "expected.json").read_text())["files"]
    config = LabelConfig(
        (str(AWKWARD),), table=str(tmp_path / "table"), model=str(write_family("rt_detr", tmp_path / "rt")),
        threshold=0.0, device="cpu", actors=(None, 1), shard_images=16, batch_size=4, max_error_rate=1.0,
    )  # fmt: skip

    label(config)

    wrong = {}
    table = rows(config)
    for name, row in table.items():
        right = {expected[name].get("error_kind", "ok"), *expected[name].get("also_accepted", [])}
        if "too_extreme" in right:
            right.add("ok")  # every picture gets one size, so none is too long
        if (row["error_kind"] or "ok") not in right:
            wrong[name] = row["error_kind"]
    assert wrong == {}
    assert len(table) > 100


def test_a_model_of_another_family_is_evaluated_and_labels_in_the_precision_that_was_asked_for(
    local_ray: str, lake: Path, tmp_path: Path
) -> None:
    folder = write_family("rt_detr", tmp_path / "rt")
    path = lake / "annotations.json"
    truth = json.loads(next(lake.glob("*.json")).read_text())
    truth["categories"] = [{"id": index, "name": name} for index, name in LABELS.items()]
    truth["annotations"] = [one | {"category_id": one["category_id"] % 3} for one in truth["annotations"]]
    path.write_text(json.dumps(truth))
    config = ModelEvaluationConfig(
        str(folder), (str(lake),), keep_table=str(tmp_path / "kept"), device="cpu", actors=(None, 1)
    )

    evaluation = evaluate_model(config, read_annotations(str(path)))

    assert (evaluation.images, evaluation.evaluated, evaluation.threshold) == (8, 8, 0.0)
    half = LabelConfig((str(lake),), table=str(tmp_path / "half"), model=str(folder), precision="bf16", device="cpu")
    label(half)
    assert {json.loads(row["settings"])["precision"] for row in rows(half).values()} == {"bf16"}
    info = identify_model(str(folder), StoreOptions())
    assert (info.family, info.is_native) == ("rt_detr", False)
    again = replace(info, id=f"rt@{info.sha256[:12]}")
    assert info == again
