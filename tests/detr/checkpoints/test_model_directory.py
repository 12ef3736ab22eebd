import json
from dataclasses import replace
from pathlib import Path

from detr.checkpoints.checkpoint import fingerprint, load, save
from detr.checkpoints.identity import identify_directory
from detr.checkpoints.model_directory import model_files
from detr.config import SCENES_CONFIG
from detr.size_rule import SizeRule


def write(directory: Path, name: str, value: object) -> None:
    (directory / name).write_text(json.dumps(value))


def test_the_image_processor_in_processor_config_comes_first(tmp_path: Path) -> None:
    save(load("scenes"), tmp_path / "model")
    write(tmp_path / "model", "preprocessor_config.json", {"size": {"shortest_edge": 100, "longest_edge": 200}})
    nested = {"image_processor": {"size": {"max_height": 64, "max_width": 96}}, "processor_class": "DetrProcessor"}
    write(tmp_path / "model", "processor_config.json", nested)

    model = load(tmp_path / "model")

    assert model.config.size_rule == SizeRule("fit", 64, 96, 64, 96)
    assert identify_directory(tmp_path / "model") == (model.config, fingerprint(model))


def test_an_older_processor_config_says_nothing_of_images(tmp_path: Path) -> None:
    save(load("scenes"), tmp_path / "model")
    write(tmp_path / "model", "processor_config.json", {"processor_class": "DetrProcessor"})

    assert load(tmp_path / "model").config.size_rule == SizeRule("original", 192, 320)


def test_a_model_that_is_saved_over_another_keeps_none_of_its_processing(tmp_path: Path) -> None:
    save(load("scenes"), tmp_path / "model")
    write(tmp_path / "model", "processor_config.json", {"image_processor": {"do_resize": False}})
    write(tmp_path / "model", "metrics.json", {})
    model = load("scenes")
    model.config = replace(SCENES_CONFIG, shorter=96)

    save(model, tmp_path / "model")

    assert load(tmp_path / "model").config.size_rule == SizeRule("original", 96, 320)
    assert (tmp_path / "model" / "metrics.json").exists()


def test_both_files_of_processing_are_read_of_a_model_elsewhere() -> None:
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"]

    assert set(model_files(names, source="m")) == set(names[1:])
