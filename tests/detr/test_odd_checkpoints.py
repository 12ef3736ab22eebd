"""Model directories and files as people have them: what loads as it is, and the sentence that refuses the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from detr.checkpoints.model_directory import CheckpointError
from detr.detectors import load_detector
from tests.families import BUILD, copied, random_images, settings_of_processor, write_family


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RT-DETR of three classes."""
    return write_family("rt_detr", tmp_path_factory.mktemp("models") / "rt")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            {"1": "cat", "2": "dog", "3": "horse"},
            r"must name the class indices 0 to 2, but it names 1, 2, 3\. A data set",
        ),
        ({"0": "cat", "17": "dog", "3": "horse"}, r"0 to 2, but it names 0, 3, 17\."),
        ({"cat": "cat", "dog": "dog", "horse": "horse"}, r"must map class indices to names, .*; it has 'cat': 'cat'\."),
        ({"0": None, "1": "dog", "2": "horse"}, r"must map class indices to names, .*; it has '0': None\."),
        (["cat", "dog", "horse"], r"must map class indices to names, .*; it is \['cat', 'dog', 'horse'\]\."),
        ({}, r"must map class indices to names, such as '0' to 'cat'; it is \{\}\."),
        ({"0": "", "1": "dog", "2": "horse"}, r"id2label has no name for class 0\."),
        (
            {str(index): f"class {index}" for index in range(5)},
            r"the weight 'model\.decoder\.class_embed\.0\.bias' has shape 3, but config\.json requires 5\. Does",
        ),
    ],
)
def test_names_that_do_not_fit_the_classes_are_refused(
    labels: Any, sentence: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        load_detector(copied(folder, tmp_path / "odd", id2label=labels))


@pytest.mark.parametrize("family", ["rt_detr", "rf_detr", "deformable_detr", "yolos"])
def test_one_class_is_enough(family: str, tmp_path: Path) -> None:
    network = BUILD[family][0]()
    network.config.id2label = {0: "nest"}
    type(network)(network.config).save_pretrained(tmp_path)
    BUILD[family][1]().save_pretrained(tmp_path)

    found = load_detector(tmp_path, threshold=0.0, device="cpu")(random_images((50, 70))[0])

    assert set(found.labels) == {"nest"}
    assert len(found) == 12


def test_a_size_that_the_network_does_not_take_is_refused_when_it_loads(folder: Path, tmp_path: Path) -> None:
    odd = settings_of_processor(copied(folder, tmp_path / "odd"), size={"height": 70, "width": 101})
    even = settings_of_processor(copied(folder, tmp_path / "even"), size={"height": 95, "width": 96})
    windows = write_family("lw_detr", tmp_path / "windows")
    settings_of_processor(windows, size={"height": 40, "width": 40})

    with pytest.raises(
        CheckpointError, match=r"gives pictures of 70 x 101 pixels \(height x width\), which its network does not take"
    ):
        load_detector(odd)
    with pytest.raises(CheckpointError, match=r"pictures of 40 x 40 pixels .* Set size in preprocessor_config\.json"):
        load_detector(windows)
    assert len(load_detector(even, threshold=0.0)(random_images((50, 70))[0])) == 12


def test_an_image_processor_that_gives_whole_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"returns integers, .* Set do_rescale"):
        load_detector(settings_of_processor(copied(folder, tmp_path / "raw"), do_rescale=False, do_normalize=False))


def test_half_precision_weights_and_settings_of_earlier_versions_load(folder: Path, tmp_path: Path) -> None:
    hf.AutoModelForObjectDetection.from_pretrained(folder).half().save_pretrained(tmp_path / "half")
    BUILD["rt_detr"][1]().save_pretrained(tmp_path / "half")
    old = write_family("deformable_detr", tmp_path / "old")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (old / name).unlink(missing_ok=True)
    settings = {
        "feature_extractor_type": "DeformableDetrFeatureExtractor",
        "do_resize": True,
        "size": 64,
        "max_size": 96,
    }
    (old / "preprocessor_config.json").write_text(json.dumps(settings))
    (image,) = random_images((50, 70))

    assert len(load_detector(tmp_path / "half", threshold=0.0)(image)) == 12
    detector = load_detector(old, threshold=0.0)
    assert detector.target_shape(50, 70) == (64, 89)
    assert len(detector(image)) == 36


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "yolov8n.pt",
            r"Ultralytics \(YOLO\) models are not supported\. For other models, give the directory that transformers",
        ),
        ("model.onnx", r"ONNX files can be written \(ray-detr export-model\), but not read\."),
        ("model.safetensors", r"Give the directory that contains this file and its config\.json\."),
        (
            "detr.h5",
            r"a single file must be a \.pth file of the original DETR, or a \.ckpt file of PyTorch Lightning\. For",
        ),
    ],
)
def test_single_files_of_other_tools_are_refused_by_name(name: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not read")

    with pytest.raises(CheckpointError, match=sentence):
        load_detector(tmp_path / name)


def test_a_file_without_its_class_head_is_named_as_such(tmp_path: Path) -> None:
    torch.save({"model": {"bbox_embed.layers.0.weight": torch.zeros(8, 8)}}, tmp_path / "detr-resnet-50.pth")

    with pytest.raises(CheckpointError, match=r"its class head is missing, as in files .* Give a complete model\.$"):
        load_detector(tmp_path / "detr-resnet-50.pth")


@pytest.mark.parametrize("name", ["maskrcnn.pth", "detr-resnet-50.pth"])
def test_weights_of_another_network_are_refused_as_such(name: str, tmp_path: Path) -> None:
    torch.save({"rpn.head.cls_logits.weight": torch.zeros(3, 8, 1, 1)}, tmp_path / name)

    with pytest.raises(
        CheckpointError,
        match=r"it is not a DETR: its weights have other names, such as 'rpn\.head\.cls_logits\.weight'\.",
    ):
        load_detector(tmp_path / name)
