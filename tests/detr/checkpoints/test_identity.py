"""A model directory is identified without torch as what `load` and `fingerprint` make of it, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detr.checkpoints.checkpoint import EMBEDDED, fingerprint, load, save
from detr.checkpoints.hub_config import TIMM_BACKBONES
from detr.checkpoints.identity import identify_directory
from detr.checkpoints.layouts import weights_of
from detr.checkpoints.weight_shapes import weight_shapes
from detr.config import SCENES_CONFIG, VARIANTS, BackboneConfig, DetrConfig
from detr.model import Detr

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "bottleneck", 8, (32, 64), (2, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=8,
    queries=5,
)
HEAD = "class_labels_classifier.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(TINY, tmp_path / "model")


def saved(config: DetrConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    save(Detr(config).eval(), folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def as_loaded(folder: Path) -> tuple[DetrConfig, str]:
    model = load(folder)
    return model.config, fingerprint(model)


@pytest.mark.parametrize(
    "config",
    [
        *VARIANTS.values(),
        *(DetrConfig(backbone=backbone) for backbone in TIMM_BACKBONES.values()),
        SCENES_CONFIG,
        TINY,
        replace(TINY, pre_norm=True, positions="learned", encoder_layers=0),
        replace(TINY, backbone=replace(TINY.backbone, stem_width=32, stage_widths=(32, 32), norm="batch")),
        replace(TINY, backbone=replace(TINY.backbone, stage_widths=(32, 32), dilation=True)),
    ],
)
def test_the_weights_of_a_network_are_known_from_its_configuration(config: DetrConfig) -> None:
    with torch.device("meta"):
        network = Detr(config)

    assert {name: tuple(weight.shape) for name, weight in weights_of(network).items()} == weight_shapes(config)


def test_the_embedded_model_has_the_fingerprint_that_tables_know_it_by() -> None:
    found = identify_directory(EMBEDDED / "scenes")

    assert found is not None
    assert found[1] == "e6f655dc846c7f367d2f4aca63bea57075a1b08a2a2c2a31bbd867a13d1563b1"
    assert found == as_loaded(EMBEDDED / "scenes")


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, positions="learned", shorter=99),
        replace(TINY, backbone=TIMM_BACKBONES["resnet18"]),  # in timm's names
    ],
)
def test_both_layouts_are_identified_as_they_are_loaded(config: DetrConfig, tmp_path: Path) -> None:
    folder = saved(config, tmp_path / "model")

    assert identify_directory(folder) == as_loaded(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floating_types_are_identified_as_they_are_loaded(folder: Path, dtype: torch.dtype) -> None:
    def convert(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(1)
        for name in sorted(tensors):
            drawn = torch.rand(tensors[name].shape, generator=generator, dtype=torch.float64)
            tensors[name] = (drawn + 0.5).to(dtype)

    rewrite(folder, convert)

    assert identify_directory(folder) == as_loaded(folder)


def test_shards_are_identified_as_they_are_loaded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, some in shards.items():
        save_file({name: tensors[name] for name in some}, folder / shard)
    weight_map = {name: shard for shard, some in shards.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole = identify_directory(folder)
    (folder / "model.safetensors").unlink()

    assert identify_directory(folder) == as_loaded(folder) == whole

    save_file({**{name: tensors[name] for name in names[1::2]}, HEAD: tensors[HEAD]}, folder / list(shards)[1])
    save_file({**{name: tensors[name] for name in names[::2]}, HEAD: tensors[HEAD]}, folder / next(iter(shards)))
    assert identify_directory(folder) is None


def test_counters_and_the_other_spelling_change_nothing(folder: Path) -> None:
    before = identify_directory(folder)

    def respell(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "_attn.out_proj." in name]:
            tensors[name.replace("_attn.out_proj.", "_attn.o_proj.")] = tensors.pop(name)
        tensors["model.num_batches_tracked"] = torch.tensor(3)

    rewrite(folder, respell)

    assert identify_directory(folder) == before == as_loaded(folder)


def set_number(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[HEAD][0, 0] = value

    return change


def change_dtype(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({HEAD: tensors[HEAD].to(dtype)})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop(HEAD),
        lambda tensors: tensors.update({"unknown.weight": torch.zeros(1)}),
        lambda tensors: tensors.update({HEAD: tensors[HEAD][:, :-1].contiguous()}),
        lambda tensors: tensors.update({HEAD: tensors[HEAD][None]}),
        lambda tensors: tensors.update(
            {name.replace(".out_proj.", ".o_proj."): one.clone() for name, one in tensors.items()}
        ),
        set_number(float("nan")),
        set_number(float("inf")),
        lambda tensors: tensors.update({HEAD: torch.full_like(tensors[HEAD], 1e300, dtype=torch.float64)}),
        change_dtype(torch.bfloat16),
        change_dtype(torch.int32),
    ],
)
def test_weights_that_must_be_loaded_to_know_are_left_to_load(
    folder: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    rewrite(folder, change)

    assert identify_directory(folder) is None


def test_files_that_must_be_loaded_to_know_are_left_to_load(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    for damaged in (config.replace('"relu"', '"gelu"'), "{", config.replace('"num_queries": 5', '"num_queries": 6')):
        (folder / "config.json").write_text(damaged)
        assert identify_directory(folder) is None
    (folder / "config.json").write_text(config)
    assert identify_directory(folder) is not None

    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    assert identify_directory(folder) is None

    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert identify_directory(folder) is None
    (folder / "pytorch_model.bin").unlink()
    assert identify_directory(folder) is None
    assert identify_directory(folder / "nowhere") is None


def test_each_weight_and_setting_is_part_of_the_identity(folder: Path) -> None:
    seen = {identify_directory(folder)}
    for name in sorted(load_file(folder / "model.safetensors")):
        rewrite(folder, lambda tensors, name=name: tensors[name].view(-1)[-1:].add_(1.0))  # type: ignore[misc]
        seen.add(identify_directory(folder))

    assert len(seen) == len(load_file(folder / "model.safetensors")) + 1
    assert None not in seen
