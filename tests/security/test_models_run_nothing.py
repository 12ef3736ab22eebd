"""A file of weights that would run a command when it is unpickled: on every way to a model it runs nothing."""

from __future__ import annotations

import importlib
import io
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detr.checkpoints.checkpoint import load, save
from jobs.exits import run
from pipelines.errors import RayDetrError
from pipelines.labelling.labeler_spec import LabelerSpec, build_detector
from pipelines.store import StoreOptions
from pipelines.training.config import TrainConfig
from pipelines.training.initial_checkpoint import initial_model
from pipelines.training.recipe import RECIPES
from tests.conftest import S3Server

SENTENCE = "contains more than tensors (posix.system)"


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


def in_a_zip() -> bytes:
    sink = io.BytesIO()
    torch.save({"model": {"class_embed.weight": Bomb()}}, sink)
    return sink.getvalue()


FORMS = {"zip": in_a_zip, "old pickle": lambda: pickle.dumps({"model": Bomb()}, protocol=2)}


@pytest.fixture(params=FORMS)
def bomb(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.pth`, a model directory with the same bytes and an image; the command would leave a file here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = FORMS[request.param]()
    (tmp_path / "detr-r50.pth").write_bytes(data)
    save(load("scenes"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(data)
    (tmp_path / "a.jpg").write_bytes(b"1")
    return tmp_path


@pytest.mark.parametrize("model", ["detr-r50.pth", "model"])
@pytest.mark.parametrize("line", ["detect a.jpg --model", "plan --images a.jpg --table table --model"])
def test_a_command_refuses_it_in_a_sentence(
    bomb: Path, capfd: pytest.CaptureFixture[str], line: str, model: str
) -> None:
    name, *words = line.split()

    with pytest.raises(SystemExit) as left:
        run(importlib.import_module(f"jobs.{name}").main, [*words, model])

    assert left.value.code == 2
    assert SENTENCE in capfd.readouterr().err
    assert not (bomb / "exploded").exists()


@pytest.mark.parametrize("model", ["detr-r50.pth", "model"])
def test_an_actor_refuses_it(bomb: Path, model: str) -> None:
    spec = LabelerSpec(
        table="table", run_id="r", model=str(bomb / model), model_sha256="", threshold=0.5, classes=None, device="cpu",
        precision="auto", threads=1, max_pixels=1, image_options=StoreOptions(), table_options=StoreOptions(),
    )  # fmt: skip

    with pytest.raises(RayDetrError) as stopped:
        build_detector(spec)

    assert SENTENCE in str(stopped.value)
    assert not (bomb / "exploded").exists()


@pytest.mark.parametrize("option", ["finetune", "backbone_weights"])
def test_a_training_refuses_to_begin_with_it(bomb: Path, option: str) -> None:
    start = TrainConfig(train="shards", storage="runs", name="r", recipe=RECIPES["finetune"], network="detr-resnet-50")
    file = str(bomb / "detr-r50.pth")
    config = (
        replace(start, network=None, finetune=file) if option == "finetune" else replace(start, backbone_weights=file)
    )

    with pytest.raises(RayDetrError) as stopped:
        initial_model(config, load("scenes").config.categories, say=lambda _: None)

    assert "contains more than tensors" in str(stopped.value)
    assert not (bomb / "exploded").exists()


@pytest.mark.parametrize("model", ["detr-r50.pth", "model"])
def test_it_is_refused_out_of_a_bucket_too(
    bomb: Path, moto: S3Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], model: str
) -> None:
    uri = moto.bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    for path in [bomb / "detr-r50.pth", *(bomb / "model").iterdir()]:
        moto.client().upload_file(str(path), uri.removeprefix("s3://"), str(path.relative_to(bomb)))

    with pytest.raises(SystemExit):
        run(importlib.import_module("jobs.detect").main, ["a.jpg", "--model", f"{uri}/{model}"])

    assert SENTENCE in capfd.readouterr().err
    assert not (bomb / "exploded").exists()
    assert not list((bomb / "cache").rglob("exploded"))


def test_the_bombs_would_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    torch.load(io.BytesIO(FORMS["zip"]()), weights_only=False)
    assert (tmp_path / "exploded").exists()

    (tmp_path / "exploded").unlink()
    pickle.loads(FORMS["old pickle"]())  # noqa: S301
    assert (tmp_path / "exploded").exists()
