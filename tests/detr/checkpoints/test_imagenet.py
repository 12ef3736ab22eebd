import hashlib
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from detr.backbone import ResidualNetwork
from detr.checkpoints.imagenet import load_backbone
from detr.checkpoints.layouts import CheckpointError
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr

RESNET18 = BackboneConfig("resnet18", "basic", 64, (64, 128, 256, 512), (2, 2, 2, 2))
SMALL = DetrConfig(
    backbone=BackboneConfig("small", "basic", 4, (4, 8), (2, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    queries=3,
)


def classifier(name: str) -> nn.Module:
    """torchvision's network of that name with random weights and random statistics."""
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.get_buffer("running_mean").normal_(0, 0.3)
            module.get_buffer("running_var").uniform_(0.5, 2)
    return network.eval()


def small_classifier(backbone: BackboneConfig = SMALL.backbone) -> dict[str, Tensor]:
    """A state dict as torchvision's of a small network would be: the names are the same, and there is a last layer."""
    torch.manual_seed(1)
    body = ResidualNetwork(replace(backbone, norm="batch"))
    return {**body.state_dict(), "fc.weight": torch.zeros(10, body.channels), "fc.bias": torch.zeros(10)}


def refusal(model: Detr, reference: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_backbone(model, reference)
    assert str(reference) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        (RESNET18, "weights.pth"),
        (replace(RESNET18, norm="batch"), "weights.safetensors"),
        (BackboneConfig("resnet50"), "weights.safetensors"),
    ],
    ids=["resnet18-pth", "resnet18-batch-norm-safetensors", "resnet50-safetensors"],
)
def test_features_are_those_of_torchvisions_network(tmp_path: Path, backbone: BackboneConfig, name: str) -> None:
    theirs = classifier(backbone.name)
    (save_file if name.endswith(".safetensors") else torch.save)(theirs.state_dict(), tmp_path / name)
    model = Detr(replace(SMALL, backbone=backbone)).eval()
    before = model.class_embed.weight.clone()

    load_backbone(model, tmp_path / name)

    pixels = torch.randn(1, 3, 33, 65)
    with torch.no_grad():
        expected = nn.Sequential(*list(theirs.children())[:-2])(pixels)  # without pool and classifier
        features = model.backbone[0](pixels)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert torch.equal(model.class_embed.weight, before)


def test_the_hash_in_torchvisions_file_name_is_checked(tmp_path: Path) -> None:
    torch.save(small_classifier(), tmp_path / "x.pth")
    digest = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()[:8]
    (tmp_path / f"small-{digest}.pth").write_bytes((tmp_path / "x.pth").read_bytes())
    (tmp_path / "x.pth").rename(tmp_path / "small-f37072fd.pth")

    load_backbone(Detr(SMALL), tmp_path / f"small-{digest}.pth")
    assert "its name says f37072fd" in refusal(Detr(SMALL), tmp_path / "small-f37072fd.pth")


def test_a_file_of_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    torch.save(small_classifier(replace(SMALL.backbone, depths=(3, 1))), tmp_path / "deeper.pth")
    model = Detr(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    message = refusal(model, tmp_path / "deeper.pth")

    assert "'layer1.2.conv1.weight' is unknown" in message
    assert "It is not torchvision's state dict of small." in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("bn1.bias", None, "'bn1.bias' (4,) is missing"),
        ("layer2.0.bn1.running_var", torch.ones(4), "'layer2.0.bn1.running_var' is (4,), expected (8,)"),
        ("head.weight", torch.ones(3), "'head.weight' is unknown"),
        ("conv1.weight", torch.full((4, 3, 7, 7), torch.nan), "contains NaN or infinite values"),
    ],
)
def test_an_incomplete_or_broken_file_is_refused(tmp_path: Path, key: str, tensor: Tensor | None, message: str) -> None:
    state = {name: value for name, value in small_classifier().items() if name != key}
    save_file(state if tensor is None else {**state, key: tensor}, tmp_path / "weights.safetensors")

    assert message in refusal(Detr(SMALL), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<!DOCTYPE html><title>404</title>")

    assert "damaged" in refusal(Detr(SMALL), tmp_path / name)


@pytest.mark.parametrize("reference", ["resnet-50", "/nowhere/resnet50.pth", "mobilenet_v2", ""])
def test_what_is_neither_a_file_nor_a_name_of_torchvision_is_refused(reference: str) -> None:
    message = refusal(Detr(SMALL), reference)

    assert "this file does not exist" in message
    assert "resnet18, resnet34, resnet50" in message or "resnet101, resnet152, resnet18" in message


# torchvision's download, here replaced by a file: its servers are nothing that a test should need


def test_a_name_is_torchvisions_first_weights_with_its_hash_checked_and_nothing_unpickled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = small_classifier()
    asked: list[tuple[str, dict[str, object]]] = []

    def loaded(url: str, **options: object) -> dict[str, Tensor]:
        asked.append((url, options))
        return theirs

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", loaded)
    model = Detr(SMALL)

    load_backbone(model, "resnet18")

    assert torch.equal(model.get_parameter("backbone.0.body.conv1.weight"), theirs["conv1.weight"])
    ((url, options),) = asked
    assert url.endswith("/resnet18-f37072fd.pth")  # IMAGENET1K_V1
    assert options == {"progress": False, "check_hash": True, "weights_only": True}


@pytest.mark.parametrize(
    "error", [URLError("Name or service not known"), TimeoutError("timed out"), RuntimeError("invalid hash value")]
)
def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unreachable(_url: str, **_options: object) -> dict[str, Tensor]:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)

    message = refusal(Detr(SMALL), "resnet18")

    assert "cannot be downloaded" in message
    assert "and give its path" in message
