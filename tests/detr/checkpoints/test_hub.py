import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file

from detr.checkpoints.checkpoint import CheckpointError, fingerprint, load, save
from detr.checkpoints.hub import split_hub_id
from detr.checkpoints.references import locate, pinned
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from tests.stub_hub import Hub, use_endpoint

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 4, (8, 16), (1, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    queries=3,
    categories=(Category(3, "cat"),),
)


def publish(hub: Hub, directory: Path, revision: str = "main", *, seed: int = 0) -> Detr:
    torch.manual_seed(seed)
    model = Detr(TINY)
    save(model, directory)
    hub.revisions[revision] = directory
    return model


def store_as(directory: Path, weights: str) -> None:
    """Replace the weights of a published model by others of the same values: a `.bin` file, or two shards."""
    whole = directory / "model.safetensors"
    tensors = load_file(whole)
    if weights == "pytorch_model.bin":
        torch.save(tensors, directory / weights)
        whole.unlink()
    elif weights == "shards":
        weight_map = {}
        for number in (1, 2):
            file = f"model-{number:05}-of-00002.safetensors"
            names = sorted(tensors)[number - 1 :: 2]
            save_file({name: tensors[name] for name in names}, directory / file)
            weight_map |= dict.fromkeys(names, file)
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        whole.unlink()


def refusal(ref: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(ref)
    assert "\n" not in str(caught.value)
    assert ref in str(caught.value)
    return str(caught.value)


def test_a_hub_id_brings_the_files_that_are_read_and_no_others(hub: Hub, tmp_path: Path) -> None:
    model = publish(hub, tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"the same again, for older versions")
    (tmp_path / "model" / "README.md").write_text("the card")

    assert fingerprint(load("owner/detr")) == fingerprint(model)
    assert sorted(hub.downloaded) == ["config.json", "model.safetensors", "preprocessor_config.json"]

    load("owner/detr")
    assert len(hub.downloaded) == 3  # from the cache


def test_the_revision_is_the_one_that_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "main")
    other = publish(hub, tmp_path / "other", "no_timm", seed=1)

    assert fingerprint(load("owner/detr@no_timm")) == fingerprint(other)
    assert fingerprint(load("owner/detr")) != fingerprint(other)


def test_a_pinned_reference_means_the_same_model_after_the_branch_has_moved_on(hub: Hub, tmp_path: Path) -> None:
    first = publish(hub, tmp_path / "first", "v1")
    hub.commits["main"] = "v1"
    commit = hub.commit("v1")
    reference = pinned("owner/detr", locate("owner/detr"))

    publish(hub, tmp_path / "second", "v2", seed=1)
    hub.commits = {"main": "v2", commit: "v1"}

    assert reference == f"owner/detr@{commit}"
    assert fingerprint(load(reference)) == fingerprint(first)
    assert fingerprint(load("owner/detr")) != fingerprint(first)
    assert pinned(str(tmp_path / "first"), tmp_path / "first") is None


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "shards"])
def test_a_pinned_reference_whose_files_are_all_in_the_cache_asks_the_hub_nothing(
    hub: Hub, tmp_path: Path, weights: str
) -> None:
    model = publish(hub, tmp_path / "model")
    store_as(tmp_path / "model", weights)
    load("owner/detr")  # the driver's load, which fills the cache
    reference = f"owner/detr@{hub.commit('main')}"

    hub.requests.clear()
    loaded = [load(reference) for _ in range(3)]

    assert hub.requests == []
    assert {fingerprint(one) for one in loaded} == {fingerprint(model)}


@pytest.mark.parametrize(
    ("weights", "lost"),
    [
        ("model.safetensors", "config.json"),
        ("model.safetensors", "preprocessor_config.json"),
        ("model.safetensors", "model.safetensors"),
        ("shards", "model-00002-of-00002.safetensors"),
        ("shards", "model.safetensors.index.json"),
    ],
)
def test_a_cache_of_a_pinned_reference_that_lacks_a_file_is_filled(
    hub: Hub, tmp_path: Path, weights: str, lost: str
) -> None:
    model = publish(hub, tmp_path / "model")
    store_as(tmp_path / "model", weights)
    hub.commits[hub.commit("main")] = "main"
    load("owner/detr")
    for path in (tmp_path / "cache").rglob(lost):
        path.unlink()

    assert fingerprint(load(f"owner/detr@{hub.commit('main')}")) == fingerprint(model)
    assert list((tmp_path / "cache").rglob(lost)) != []


def test_a_file_that_another_tool_left_out_of_the_cache_is_fetched(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model")
    (tmp_path / "model" / "processor_config.json").write_text("{}")
    hub.commits[hub.commit("main")] = "main"
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        hf_hub_download("owner/detr", name)

    directory = locate(f"owner/detr@{hub.commit('main')}")

    assert (directory / "processor_config.json").exists()


def test_a_branch_is_looked_up_at_each_load(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model")
    load("owner/detr")

    hub.requests.clear()
    load("owner/detr")

    assert any(request.startswith("GET /api/") for request in hub.requests)


def test_bin_files_are_brought_where_there_is_no_safetensors_file(hub: Hub, tmp_path: Path) -> None:
    model = publish(hub, tmp_path / "model")
    store_as(tmp_path / "model", "pytorch_model.bin")

    assert fingerprint(load("owner/detr")) == fingerprint(model)


def test_without_the_hub_the_cache_serves(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = publish(hub, tmp_path / "model")
    load("owner/detr")

    use_endpoint(monkeypatch, "http://127.0.0.1:9")

    assert fingerprint(load("owner/detr")) == fingerprint(model)
    assert "the hub cannot be reached" in refusal("owner/detr@v2")


def test_offline_mode_asks_nobody(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = publish(hub, tmp_path / "model")
    load("owner/detr")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert fingerprint(load("owner/detr")) == fingerprint(model)
    assert "the hub cannot be reached" in refusal("owner/another")


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_half_a_model_in_the_cache_is_not_taken_for_a_model(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    publish(hub, tmp_path / "model")
    load("owner/detr")
    for path in (tmp_path / "cache").rglob(missing):
        path.unlink()

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert "the local cache does not have the whole model" in refusal("owner/detr")


def test_a_hub_that_refuses_further_requests_is_named_with_what_to_do(hub: Hub, tmp_path: Path) -> None:
    model = publish(hub, tmp_path / "model")
    load("owner/detr")
    hub.limited = True

    assert fingerprint(load("owner/detr")) == fingerprint(model)  # from the cache
    assert re.search(
        r"the hub refuses further requests for now \(429 Too Many Requests: .* Retry after 55 seconds.*\), and the "
        r"local cache does not have the whole model\. Set HF_TOKEN, which raises the hub's limit, or give a local ",
        refusal("owner/detr@v2"),
    )


def test_what_the_hub_refuses_is_said(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model")

    assert "the hub has no such model, or it is private" in refusal("owner/nothing")
    assert "owner/detr has no revision 'v2'" in refusal("owner/detr@v2")
    hub.gated = True
    assert "its terms must be accepted first" in refusal("owner/detr")


def test_a_repository_without_a_model_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    hub.revisions["main"] = tmp_path / "model"

    assert "it has no config.json" in refusal("owner/detr")


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("facebook/detr-resnet-50", ("facebook/detr-resnet-50", None)),
        ("facebook/detr-resnet-50@no_timm", ("facebook/detr-resnet-50", "no_timm")),
        ("a/b@refs/pr/3", ("a/b", "refs/pr/3")),
        ("detr-resnet-50", None),
        ("a/b/c", None),
        ("../b", None),
        ("a/b@", None),
    ],
)
def test_a_hub_id_is_owner_and_name_and_perhaps_a_revision(ref: str, parts: tuple[str, str | None] | None) -> None:
    assert split_hub_id(ref) == parts


def test_the_signed_address_of_a_file_is_not_shown_when_its_download_fails(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(Detr(TINY), tmp_path / "main")
    hub.revisions["main"] = tmp_path / "main"

    def fail(*_: object, **__: object) -> None:
        raise OSError("Client error '403' for url 'https://cdn/x?X-Amz-Signature=opensesame&b=1'")

    monkeypatch.setattr("detr.checkpoints.hub.hf_hub_download", fail)

    with pytest.raises(CheckpointError, match="the download failed") as failed:
        load("owner/detr")

    assert "https://cdn/x?..." in str(failed.value)
    assert failed.value.__cause__ is None
    assert failed.value.__context__ is None
