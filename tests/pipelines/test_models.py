"""The model of a run: from a disk or a store, fetched once, and anew when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import detr.checkpoint
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from pipelines import models
from pipelines.models import load_model, short_name
from pipelines.stopped import RunStopped
from pipelines.store import Store, StoreOptions, open_store

if TYPE_CHECKING:
    from tests.conftest import S3Server

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "bottleneck", 8, (32, 64), (1, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=16,
    queries=5,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ray-detr" / "models"


def saved(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    detr.checkpoint.save(Detr(TINY).eval(), folder)
    return folder


def upload(store: Store, folder: Path) -> None:
    for path in folder.iterdir():
        store.put(path.name, path.read_bytes())


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("scenes", "scenes"),
        ("facebook/detr-resnet-50", "detr-resnet-50"),
        ("facebook/detr-resnet-50@main", "detr-resnet-50"),
        ("/models/ours/", "ours"),
        ("s3://bucket/models/detr-r50-e632da11.pth", "detr-r50-e632da11"),
        ("gs://bucket/models/night", "night"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_reference(reference: str, name: str) -> None:
    assert short_name(reference) == name


def test_a_local_model_is_known_by_its_name_and_its_weights(tmp_path: Path) -> None:
    one, again, other = saved(tmp_path / "one"), saved(tmp_path / "again"), saved(tmp_path / "other", seed=1)

    network, info = load_model(str(one), StoreOptions())

    assert info.id == f"one@{info.sha256[:12]}"
    assert info.categories == network.config.categories
    assert load_model(f"file://{again}", StoreOptions())[1].sha256 == info.sha256
    assert load_model(str(other), StoreOptions())[1].sha256 != info.sha256


def test_a_model_in_a_store_is_the_same_model_and_is_fetched_once(
    tmp_path: Path, moto: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = saved(tmp_path / "ours")
    uri = f"{moto.bucket()}/models/ours"
    upload(open_store(uri, moto.options()), local)

    _, first = load_model(uri, moto.options())
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    _, second = load_model(f"{uri}", moto.options())

    assert first == second == load_model(str(local), StoreOptions())[1]
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == files
    assert sorted(path.name for path in files) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_a_model_that_changed_in_its_store_is_fetched_anew(tmp_path: Path, moto: S3Server) -> None:
    uri = f"{moto.bucket()}/ours"
    store = open_store(uri, moto.options())
    upload(store, saved(tmp_path / "one"))
    _, before = load_model(uri, moto.options())

    upload(store, saved(tmp_path / "two", seed=1))
    _, after = load_model(uri, moto.options())

    assert before.sha256 != after.sha256
    assert after.sha256 == load_model(str(tmp_path / "two"), StoreOptions())[1].sha256


def test_a_download_that_broke_off_is_not_taken_for_the_model(
    tmp_path: Path, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{moto.bucket()}/ours"
    upload(open_store(uri, moto.options()), saved(tmp_path / "one"))
    whole = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        whole(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(RunStopped, match=r"cannot be kept on this machine: .*No space left .* XDG_CACHE_HOME"):
            load_model(uri, moto.options())

    assert load_model(uri, moto.options())[1].sha256 == load_model(str(tmp_path / "one"), StoreOptions())[1].sha256


def test_a_place_without_a_model_is_refused_in_one_sentence(tmp_path: Path, moto: S3Server) -> None:
    uri = f"{moto.bucket()}/nothing"

    with pytest.raises(RunStopped, match="nothing"):
        load_model(uri, moto.options())
    with pytest.raises(RunStopped, match=r"the model cannot be fetched: .*no-such-bucket"):
        load_model("s3://no-such-bucket/model", moto.options())
    with pytest.raises(RunStopped, match="not-here"):
        load_model(str(tmp_path / "not-here"), StoreOptions())


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models._cache() == tmp_path / "ray-detr" / "models"

    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models._cache() == Path.home() / ".cache" / "ray-detr" / "models"
