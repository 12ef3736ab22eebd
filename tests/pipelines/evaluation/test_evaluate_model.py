"""Which images a model is shown when it is evaluated."""

import json
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation import evaluate_model as module
from pipelines.evaluation.annotations import read_annotations
from pipelines.evaluation.evaluate_model import ModelEvaluationConfig, find_annotated
from pipelines.labelling.config import LabelConfig


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Photographs by name, in two folders."""
    for name in ("val/a.jpg", "val/b c.jpg", "val/d.jpg", "train/e.jpg", "train/d.jpg", "val/notes.txt"):
        (tmp_path / "lake" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lake" / name).write_bytes(name.encode())
    return tmp_path / "lake"


def test_the_annotated_images_are_found_and_no_other(lake: Path) -> None:
    found = find_annotated([str(lake)], {"b c.jpg", "a.jpg", "e.jpg", "gone.jpg"})

    assert [item.uri.removeprefix(f"file://{lake}") for item in found] == ["/train/e.jpg", "/val/a.jpg", "/val/b c.jpg"]
    assert [item.size for item in found] == [11, 9, 11]
    assert all(item.etag for item in found)


def test_two_images_of_one_name_are_refused_with_both_addresses(lake: Path) -> None:
    with pytest.raises(
        RayDetrError, match=r"two images have the file name 'd\.jpg'.*/train/d\.jpg and .*/val/d\.jpg\. Give"
    ):
        find_annotated([str(lake)], {"d.jpg"})
    assert len(find_annotated([str(lake / "val"), str(lake / "val" / "d.jpg")], {"d.jpg"})) == 1


def test_none_of_the_images_stops_with_an_example(lake: Path) -> None:
    with pytest.raises(UsageError, match=r"none of the 2 annotated images, such as x\.jpg, is at .*lake: images are"):
        find_annotated([str(lake)], {"y.jpg", "x.jpg"})


def test_a_web_server_s_folder_is_taken_to_hold_all() -> None:
    found = find_annotated(["https://images.example/val2017/"], {"b c.jpg", "a.jpg"})

    assert [(item.uri, item.size) for item in found] == [
        ("https://images.example/val2017/a.jpg", None),
        ("https://images.example/val2017/b%20c.jpg", None),
    ]


def test_what_labelling_refuses_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="device: 'tpu' is not one of auto, cpu, cuda"):
        ModelEvaluationConfig("scenes", ("lake/",), device="tpu")


def test_all_detections_are_asked_for_and_errors_do_not_end_it() -> None:
    asked = ModelEvaluationConfig("scenes", ("lake/",), precision="fp32", batch_size=2, actors=(None, 3)).label_config(
        ("list.parquet",), table="t"
    )

    assert asked == LabelConfig(
        ("list.parquet",),
        "t",
        "scenes",
        threshold=0.0,
        precision="fp32",
        batch_size=2,
        actors=(None, 3),
        max_error_rate=1.0,
        shared_folders=True,
    )


def test_the_list_of_images_is_named_by_what_it_holds(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = find_annotated([str(lake)], {"a.jpg", "e.jpg"})

    first = module._write_list(images)
    again = module._write_list(images)
    other = module._write_list(images[:1])

    assert first == again != other
    assert pq.read_table(first).to_pylist() == [
        {"uri": item.uri, "etag": item.etag, "size": item.size} for item in images
    ]
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, other.name])


def test_a_cache_that_cannot_be_written_stops_with_a_sentence(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    with pytest.raises(RayDetrError, match=r"cannot be kept in .*file/ray-detr/lists: Not a directory"):
        module._write_list(find_annotated([str(lake)], {"a.jpg"}))


@pytest.mark.parametrize(("images", "kept"), [("lake", "s3://runs/table"), ("list.csv", "/data/table")])
def test_local_paths_are_refused_on_a_cluster_of_several_machines(
    images: str, kept: str, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "connected", lambda **_: nullcontext())
    monkeypatch.setattr(module, "node_resources", lambda: [{}, {}])
    monkeypatch.setattr("pipelines.cluster.hosts", lambda: {"10.0.0.1", "10.0.0.2"})
    monkeypatch.setattr(module, "label", lambda *_, **__: pytest.fail("it is labelled"))
    (tmp_path / "list.csv").write_text("uri\ns3://lake/a.jpg\n")
    path = tmp_path / "annotations.json"
    picture = {"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    path.write_text(json.dumps({"images": [picture], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}))
    config = ModelEvaluationConfig("scenes", (str(tmp_path / images),), keep_table=kept)

    with pytest.raises(RayDetrError, match="is a local folder, and the cluster has 2 machines"):
        module.evaluate_model(config, read_annotations(str(path)))
