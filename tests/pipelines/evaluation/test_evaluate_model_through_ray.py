"""A model evaluated through a real Ray: it labels what is annotated, and its rows are measured."""

import json
from pathlib import Path

import pyarrow.dataset
import pytest

from detr.scenes.files import write_scenes
from pipelines.errors import RayDetrError
from pipelines.evaluation import evaluate_model as module
from pipelines.evaluation.annotations import Annotations, read_annotations
from pipelines.evaluation.evaluate import evaluate_table
from pipelines.evaluation.evaluate_model import ModelEvaluationConfig, evaluate_model
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label

SCENES = 4


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Annotations]:
    """Four drawn scenes, of which three are annotated, one of these broken and one gone; and the annotations."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lake = tmp_path / "lake"
    path = write_scenes(lake, SCENES, 4, sizes={(96, 128): 1, (128, 96): 1})
    truth = json.loads(path.read_text())
    _, gone, broken, whole = truth["images"]
    truth["images"] = [gone, broken, whole]
    (lake / gone["file_name"]).unlink()
    (lake / broken["file_name"]).write_bytes(b"<html>")
    (lake / whole["file_name"]).rename(lake / "a %20 b.jpg")
    whole["file_name"] = "a %20 b.jpg"
    path.write_text(json.dumps(truth))
    return lake, read_annotations(str(path))


@pytest.mark.ray
def test_a_model_is_worth_what_its_table_at_threshold_0_is_worth(
    local_ray: str, scenes: tuple[Path, Annotations], tmp_path: Path
) -> None:
    lake, annotations = scenes
    config = ModelEvaluationConfig(
        "scenes", (str(lake),), keep_table=str(tmp_path / "kept"), device="cpu", actors=(None, 1)
    )

    evaluation = evaluate_model(config, annotations)

    names = [image["file_name"] for image in annotations.truth["images"]]
    assert (evaluation.missing, evaluation.errors) == ((names[0],), (names[1],))
    assert (evaluation.images, evaluation.evaluated, evaluation.threshold, evaluation.unannotated) == (3, 1, 0.0, 0)
    assert evaluation.average_precision.AP > 0
    assert evaluation == evaluate_table(str(tmp_path / "kept"), annotations)
    labelled = pyarrow.dataset.dataset(tmp_path / "kept" / "data").to_table(columns=["uri"])["uri"].to_pylist()
    assert sorted(labelled) == sorted(f"file://{lake / name}" for name in names[1:])

    # again: nothing is labelled twice, and the same comes out
    assert evaluate_model(config, annotations) == evaluation
    assert pyarrow.dataset.dataset(tmp_path / "kept" / "data").count_rows() == 2


@pytest.mark.ray
def test_rows_that_are_there_with_a_threshold_are_refused(
    local_ray: str, scenes: tuple[Path, Annotations], tmp_path: Path
) -> None:
    lake, annotations = scenes
    table = str(tmp_path / "kept")
    label(LabelConfig((str(lake),), table, "scenes", threshold=0.5, device="cpu", actors=(None, 1)))

    with pytest.raises(RayDetrError, match=r"kept has rows of this model with other settings .* another --keep-table"):
        evaluate_model(
            ModelEvaluationConfig("scenes", (str(lake),), keep_table=table, device="cpu", actors=(None, 1)), annotations
        )


@pytest.mark.ray
def test_a_cluster_of_several_machines_needs_a_table_that_all_reach(
    local_ray: str, scenes: tuple[Path, Annotations], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, annotations = scenes
    monkeypatch.setattr(module, "node_resources", lambda: [{"CPU": 4.0}, {"CPU": 4.0}])

    with pytest.raises(RayDetrError, match=r"the Ray cluster has 2 machines.*--keep-table"):
        evaluate_model(ModelEvaluationConfig("scenes", (str(lake),)), annotations)
