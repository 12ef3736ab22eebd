from dataclasses import replace

import pytest
import torch
from torch import nn

from detr.backbone import FrozenBatchNorm
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.folding import folded
from detr.model import Detr

BASIC = BackboneConfig("basic", "basic", 8, (8, 16, 16), (1, 2, 1))
BOTTLENECK = BackboneConfig("bottleneck", "bottleneck", 8, (16, 32, 32), (1, 2, 2))
TINY = DetrConfig(
    backbone=BASIC,
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=16,
    queries=5,
    categories=(Category(3, "cat"), Category(7, "dog")),
)
BACKBONES = {
    "basic, frozen": BASIC,
    "basic, trainable": replace(BASIC, norm="batch"),
    "bottleneck, frozen": BOTTLENECK,
    "bottleneck, trainable": replace(BOTTLENECK, norm="batch"),
    "dilated": replace(BOTTLENECK, dilation=True),
}


@pytest.fixture(params=BACKBONES.values(), ids=BACKBONES.keys())
def network(request: pytest.FixtureRequest) -> Detr:
    torch.manual_seed(0)
    model = Detr(replace(TINY, backbone=request.param)).eval()
    for module in model.modules():
        if isinstance(module, (FrozenBatchNorm, nn.BatchNorm2d)):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
    return model


def test_the_folded_network_is_the_same_function(network: Detr) -> None:
    pixels = torch.randn(2, 3, 70, 101)
    mask = torch.zeros(2, 70, 101, dtype=torch.bool)
    mask[1, 50:], mask[1, :, 64:] = True, True
    pixels *= ~mask[:, None]

    expected = network(pixels, mask, padding="exact")
    output = folded(network)(pixels, mask, padding="exact")

    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.boxes_cxcywh, expected.boxes_cxcywh, rtol=0, atol=1e-5)


def test_the_folded_network_has_no_norms_in_its_backbone(network: Detr) -> None:
    backbone = folded(network).backbone

    assert not any(isinstance(module, (FrozenBatchNorm, nn.BatchNorm2d)) for module in backbone.modules())
    assert all(module.bias is not None for module in backbone.modules() if isinstance(module, nn.Conv2d))


def test_the_network_itself_stays_as_it_was(network: Detr) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    copied = folded(network)

    assert network.training
    assert not copied.training
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
