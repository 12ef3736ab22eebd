"""Checkpoints as training scripts write them: settings in the file, prefixes of wrappers, Lightning."""

import argparse
import enum
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detr.checkpoints.checkpoint import CheckpointError, fingerprint, load, save
from detr.checkpoints.hub_config import TIMM_BACKBONES
from detr.checkpoints.identity import identify_directory
from detr.checkpoints.layouts import to_file
from detr.checkpoints.weight_names import Layout, bare_names, layout_of
from detr.classes import Category
from detr.config import VARIANTS, BackboneConfig, DetrConfig
from detr.model import Detr

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 4, (8, 16), (2, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    queries=3,
    categories=(Category(0, "LABEL_0"), Category(1, "LABEL_1")),
)
ARGS = {"hidden_dim": 16, "nheads": 2, "enc_layers": 1, "dec_layers": 1, "dim_feedforward": 8, "num_queries": 3}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> DetrConfig:
    """Make ResNet-18, ResNet-50 and the official variants small, and return the configuration of a ResNet-18."""
    resnet18 = BackboneConfig("resnet18", "basic", 4, (8, 16), (1, 1))
    resnet50 = BackboneConfig("resnet50", "bottleneck", 4, (8, 16), (1, 2))
    monkeypatch.setitem(TIMM_BACKBONES, "resnet18", resnet18)
    monkeypatch.setitem(TIMM_BACKBONES, "resnet50", resnet50)
    for name, config in VARIANTS.items():
        backbone = replace(resnet50, dilation=config.backbone.dilation)
        monkeypatch.setitem(VARIANTS, name, replace(TINY, backbone=backbone))
    return replace(TINY, backbone=resnet18)


def seeded(config: DetrConfig) -> Detr:
    torch.manual_seed(0)
    return Detr(config).eval()


def same(model: Detr, other: Detr) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    return str(caught.value)


def training(path: Path, model: Detr, **args: object) -> Path:
    """Write what the original's main.py keeps: weights, optimiser, epoch and its arguments."""
    arguments = argparse.Namespace(**{"lr": 1e-4, "masks": False, "device": "cuda", **ARGS, **args})
    torch.save({"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": 3, "args": arguments}, path)
    return path


# settings in the file


@pytest.mark.parametrize(
    ("args", "changes"),
    [
        ({"backbone": "resnet18", "dilation": False}, {}),
        ({"backbone": "resnet18", "dilation": False, "pre_norm": True}, {"pre_norm": True}),
        ({"backbone": "resnet18", "dilation": False, "position_embedding": "learned"}, {"positions": "learned"}),
        ({"backbone": "resnet18", "dilation": False, "dropout": 0.0}, {"dropout": 0.0}),
        (
            {"backbone": "resnet50", "dilation": True},
            {"backbone": BackboneConfig("resnet50", "bottleneck", 4, (8, 16), (1, 2), True)},
        ),
    ],
)
def test_the_arguments_of_a_training_say_which_detr_it_is(
    small: DetrConfig, tmp_path: Path, args: dict[str, Any], changes: dict[str, Any]
) -> None:
    model = seeded(replace(small, **changes))

    loaded = load(training(tmp_path / "checkpoint.pth", model, **args))

    assert loaded.config == model.config
    assert same(loaded, model)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("checkpoint.pth", {}, "neither its name nor its contents show which DETR it is"),
        ("checkpoint.pth", {"backbone": "vgg16", "dilation": False}, "args: backbone is 'vgg16'; only 'resnet18' or"),
        ("checkpoint.pth", {"backbone": "resnet18", "dilation": 1}, "args: dilation is 1; expected true or false"),
        ("checkpoint.pth", {"backbone": "resnet18", "dilation": True}, "args: backbone resnet18: a basic block cannot"),
        ("checkpoint.pth", {"backbone": "resnet50", "dilation": False}, "It is not a DETR of this configuration"),
        (
            "detr-r50-dc5.pth",
            {"backbone": "resnet50", "dilation": False},
            "its name says detr-resnet-50-dc5, but it was",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    small: DetrConfig, tmp_path: Path, name: str, args: dict[str, Any], message: str
) -> None:
    assert message in refusal(training(tmp_path / name, seeded(small), **args))


# prefixes


def ddp(name: str) -> str:
    return f"module.{name}"


PREFIXES: dict[str, Callable[[str], str]] = {
    "DDP": ddp,
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "Lightning": lambda name: f"model.{name}",
    "all of them": lambda name: f"module.model._orig_mod.{name}",
    "inside": lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("layout", ["original", "timm", "resnet"])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=list(PREFIXES))
def test_prefixes_of_wrappers_are_left_out(layout: Layout, prefix: Callable[[str], str]) -> None:
    names = list(to_file(seeded(TINY), layout))

    assert bare_names(map(prefix, names)) == {prefix(name): name for name in names}
    assert layout_of(names) == layout


def test_the_names_of_transformers_own_files_keep_their_model_prefix() -> None:
    names = list(to_file(seeded(TINY), "timm"))

    assert bare_names(names) == {name: name for name in names}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=list(PREFIXES))
def test_a_directory_with_prefixed_weights_is_loaded_with_a_word_and_identified(
    tmp_path: Path, prefix: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    model = seeded(TINY)
    save(model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({prefix(name): tensor for name, tensor in weights.items()}, tmp_path / "model" / "model.safetensors")

    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path / "model")

    assert same(loaded, model)
    assert "a prefix is removed from the names of its weights" in caplog.text
    assert identify_directory(tmp_path / "model") == (model.config, fingerprint(model))


def test_weights_that_only_partly_have_a_prefix_are_refused(tmp_path: Path) -> None:
    save(seeded(TINY), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    mixed = {name if "class" in name else f"model.{name}": tensor for name, tensor in weights.items()}
    save_file(mixed, tmp_path / "model" / "model.safetensors")

    assert "is missing" in refusal(tmp_path / "model")
    assert identify_directory(tmp_path / "model") is None


# Lightning


class Precision(enum.Enum):
    HALF = "16"


class Callback:
    """A class of somebody else's project, which need not be importable here."""

    def __init__(self) -> None:
        self.best = 0.5


def lightning(path: Path, weights: dict[str, Tensor], **hyper_parameters: object) -> Path:
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "callbacks": {"checkpoint": Callback(), "folder": Path("runs")},
        "optimizer_states": [{"state": {}, "precision": Precision.HALF}],
        "hyper_parameters": hyper_parameters,
    }
    content["state_dict"]["criterion.empty_weight"] = torch.ones(3)  # type: ignore[index]
    torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", ["original", "timm", "resnet"])
def test_a_lightning_checkpoint_is_loaded_by_its_name(small: DetrConfig, tmp_path: Path, layout: Layout) -> None:
    model = seeded(VARIANTS["detr-resnet-50-dc5"])

    loaded = load(lightning(tmp_path / "detr-resnet-50-dc5.ckpt", to_file(model, layout), lr=1e-4))

    assert loaded.config == model.config
    assert same(loaded, model)


def test_a_lightning_checkpoint_is_loaded_by_its_hyper_parameters(small: DetrConfig, tmp_path: Path) -> None:
    model = seeded(small)
    settings = {**ARGS, "backbone": "resnet18", "dilation": False}

    for hyper_parameters in (settings, {"args": argparse.Namespace(**settings)}):
        loaded = load(lightning(tmp_path / "epoch=3-step=400.ckpt", to_file(model, "original"), **hyper_parameters))
        assert loaded.config == model.config
        assert same(loaded, model)
    nameless = lightning(tmp_path / "last.ckpt", to_file(model, "original"), lr=1e-4)
    assert "or name the file detr-resnet-50.ckpt" in refusal(nameless)


class Bomb:
    """Unpickling one would run a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


class Copier:
    """Unpickling one would copy a file, with a function that torch does not block by its module."""

    def __reduce__(self) -> tuple[object, ...]:
        return shutil.copyfile, ("fuse", "exploded")


def test_a_lightning_checkpoint_runs_nothing(
    small: DetrConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = to_file(seeded(VARIANTS["detr-resnet-50"]), "original")

    bomb = lightning(tmp_path / "detr-resnet-50.ckpt", weights, bomb=Bomb())
    assert "contains more than tensors (posix.system)" in refusal(bomb)
    (tmp_path / "fuse").touch()
    copier = lightning(tmp_path / "detr-resnet-50.ckpt", weights, copier=Copier())
    load(copier)

    assert not (tmp_path / "exploded").exists()
    torch.load(copier, weights_only=False)
    assert (tmp_path / "exploded").exists()


def test_damaged_checkpoints_are_refused_in_a_sentence(small: DetrConfig, tmp_path: Path) -> None:
    whole = lightning(tmp_path / "detr-resnet-50.ckpt", to_file(seeded(small), "original")).read_bytes()

    for damaged in (b"", b"PK", whole[:-30], whole[:200]):
        (tmp_path / "detr-resnet-50.ckpt").write_bytes(damaged)
        assert "damaged or incomplete" in refusal(tmp_path / "detr-resnet-50.ckpt")


def test_a_model_of_another_kind_is_refused(small: DetrConfig, tmp_path: Path) -> None:
    path = lightning(tmp_path / "detr-resnet-50.ckpt", dict(nn.Linear(2, 2).state_dict()))

    assert "it is not a DETR: its weights have other names" in refusal(path)
