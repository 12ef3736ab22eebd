"""The model of a run: from a disk or a store, fetched once, and anew when it changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

import detr.checkpoints.checkpoint
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from pipelines import model_fingerprints, models
from pipelines.errors import RayDetrError, UsageError
from pipelines.model_fingerprints import Identified, identify_by_loading
from pipelines.models import identify_model, load_model, short_name
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
    detr.checkpoints.checkpoint.save(Detr(TINY).eval(), folder)
    return folder


def forbidden(place: str) -> Identified:
    raise AssertionError(f"a process was started for {place}")


def upload(store: Store, folder: Path) -> None:
    for path in folder.iterdir():
        store.put(path.name, path.read_bytes())


@pytest.mark.parametrize(
    ("page", "hub_id"),
    [
        ("https://huggingface.co/owner/herd", "owner/herd"),
        ("https://huggingface.co/owner/herd/tree/v2", "owner/herd@v2"),
        ("https://huggingface.co/owner/herd/tree/refs/pr/1/", "owner/herd@refs/pr/1"),
    ],
)
def test_the_address_of_a_page_of_the_hub_is_answered_with_the_hub_id(page: str, hub_id: str) -> None:
    with pytest.raises(UsageError, match=f"give its hub id, {hub_id}, instead of the address of its page"):
        identify_model(page, StoreOptions())


def test_a_model_of_the_hub_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = saved(tmp_path / "snapshots" / ("a1" * 20))
    monkeypatch.setattr(models, "locate_with_answer", lambda _: (snapshot, None))

    assert identify_model("owner/detr@main", StoreOptions()).pinned == "owner/detr@" + "a1" * 20
    assert identify_model(str(snapshot), StoreOptions()).pinned is None


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("scenes", "scenes"),
        ("facebook/detr-resnet-50", "detr-resnet-50"),
        ("facebook/detr-resnet-50@main", "detr-resnet-50"),
        ("/models/ours/", "ours"),
        ("s3://bucket/models/detr-r50-e632da11.pth", "detr-r50-e632da11"),
        ("gs://bucket/models/night", "night"),
        ("file:///runs/cells/model", "cells"),
        ("s3://bucket/runs/cells/model/", "cells"),
        ("s3://cells/model", "cells"),
        ("/runs/cells/checkpoints/000000080-20261128-212633-a4b3-3", "cells"),
        ("runs/pets/checkpoint-500", "pets"),
        ("runs/pets/last.ckpt", "last"),
        ("model", "model"),
        ("./model", "model"),
        ("../model", "model"),
        ("s3://model", "model"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_reference_that_says_something(reference: str, name: str) -> None:
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
        with pytest.raises(RayDetrError, match=r"cannot be kept on this machine: .*No space left .* XDG_CACHE_HOME"):
            load_model(uri, moto.options())

    assert load_model(uri, moto.options())[1].sha256 == load_model(str(tmp_path / "one"), StoreOptions())[1].sha256


def test_a_place_without_a_model_is_refused_in_one_sentence(tmp_path: Path, moto: S3Server) -> None:
    uri = f"{moto.bucket()}/nothing"

    with pytest.raises(RayDetrError, match="nothing"):
        load_model(uri, moto.options())
    with pytest.raises(RayDetrError, match=r"the model cannot be fetched: .*no-such-bucket"):
        load_model("s3://no-such-bucket/model", moto.options())
    with pytest.raises(RayDetrError, match="not-here"):
        load_model(str(tmp_path / "not-here"), StoreOptions())


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models._cache() == tmp_path / "ray-detr" / "models"

    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models._cache() == Path.home() / ".cache" / "ray-detr" / "models"


def test_a_model_is_identified_as_it_is_loaded_without_a_process(
    tmp_path: Path, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{moto.bucket()}/ours"
    upload(open_store(uri, moto.options()), saved(tmp_path / "ours"))
    monkeypatch.setattr(model_fingerprints, "_ask", forbidden)

    assert (
        identify_model(str(tmp_path / "ours"), StoreOptions()) == load_model(str(tmp_path / "ours"), StoreOptions())[1]
    )
    assert identify_model(f"file://{tmp_path}/ours", StoreOptions()) == load_model(uri, moto.options())[1]
    assert identify_model(uri, moto.options()) == load_model(uri, moto.options())[1]
    assert identify_model("scenes", StoreOptions()).id == "scenes@e6f655dc846c"


def test_a_model_that_is_not_there_is_refused_without_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_fingerprints, "_ask", forbidden)

    with pytest.raises(RayDetrError, match="not-here: there is no such file or directory"):
        identify_model(str(tmp_path / "not-here"), StoreOptions())
    with pytest.raises(RayDetrError, match=r"^model: the address s3://bucket/model contains a password"):
        identify_model("s3://key:secret@bucket/model", StoreOptions())


@pytest.mark.slow  # three processes import torch
def test_a_pickled_model_is_identified_by_a_process_of_its_own(tmp_path: Path) -> None:
    folder = saved(tmp_path / "ours")
    torch.save(load_model(str(folder), StoreOptions())[0].state_dict(), tmp_path / "detr-r50.pth")

    with pytest.raises(RayDetrError, match=r"^checkpoint .*detr-r50\.pth: .* It is not a DETR of this configuration"):
        identify_model(str(tmp_path / "detr-r50.pth"), StoreOptions())

    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    info = load_model(str(folder), StoreOptions())[1]
    (folder / "model.safetensors").unlink()
    assert identify_model(str(folder), StoreOptions()) == info


def test_what_a_process_found_is_remembered_for_as_long_as_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pth, cache, asked = tmp_path / "model.pth", tmp_path / "identities", []

    def ask(place: str) -> Identified:
        asked.append(place)
        return Identified(f"{len(asked)}" * 64, (Category(7, "cat"),))

    monkeypatch.setattr(model_fingerprints, "_ask", ask)
    monkeypatch.setattr(model_fingerprints, "SETTLED_SECONDS", 0.0)
    pth.write_bytes(b"one")

    first = identify_by_loading(pth, cache=cache)
    assert identify_by_loading(pth, cache=cache) == first
    assert asked == [str(pth)]

    before = pth.stat()
    while pth.stat().st_ctime_ns == before.st_ctime_ns:  # some kernels have no finer times than 10 ms
        pth.write_bytes(b"two")
        os.utime(pth, ns=(before.st_mtime_ns, before.st_mtime_ns))  # the same size and time; that of the change differs
    assert identify_by_loading(pth, cache=cache).sha256 == "2" * 64

    pth.rename(tmp_path / "detr-r50-dc5.pth")  # the name decides which network it is
    assert identify_by_loading(tmp_path / "detr-r50-dc5.pth", cache=cache).sha256 == "3" * 64

    monkeypatch.setattr(model_fingerprints, "_code", lambda: "another version")
    assert identify_by_loading(tmp_path / "detr-r50-dc5.pth", cache=cache).sha256 == "4" * 64

    for entry in cache.iterdir():
        entry.write_text('{"sha256": 4}')
    assert identify_by_loading(tmp_path / "detr-r50-dc5.pth", cache=cache).sha256 == "5" * 64


def test_what_a_process_found_of_a_file_that_may_be_changing_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pth, cache, asked = tmp_path / "model.pth", tmp_path / "identities", []
    pth.write_bytes(b"one")

    def ask(place: str) -> Identified:
        asked.append(place)
        pth.write_bytes(b"another")
        return Identified("1" * 64, ())

    monkeypatch.setattr(model_fingerprints, "_ask", ask)
    identify_by_loading(pth, cache=cache)  # it is younger than two seconds
    assert not cache.exists()

    monkeypatch.setattr(model_fingerprints, "SETTLED_SECONDS", 0.0)
    identify_by_loading(pth, cache=cache)  # it changed while it was loaded
    assert not cache.exists()
    assert len(asked) == 2


def test_where_nothing_can_be_kept_a_model_is_identified_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "model.pth").touch()
    monkeypatch.setattr(model_fingerprints, "_ask", lambda _place: Identified("1" * 64, ()))
    monkeypatch.setattr(model_fingerprints, "SETTLED_SECONDS", 0.0)

    assert identify_by_loading(tmp_path / "model.pth", cache=tmp_path / "file").sha256 == "1" * 64


def test_a_process_that_dies_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_fingerprints, "_CHILD", "import os; os._exit(9)")

    with pytest.raises(
        RayDetrError, match=r"^the process that loaded /m\.pth on this machine ended with 9: not enough"
    ):
        model_fingerprints._ask("/m.pth")


def test_a_cached_identity_is_of_the_code_that_reads_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    model_fingerprints._code.__wrapped__()

    assert {"identity.py", "hub_config.py", "weight_names.py", "model.py"} <= set(read)
