from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from detr.backbone import BasicBlock, Bottleneck, FrozenBatchNorm, ResidualNetwork
from detr.config import BackboneConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "frozen_bn_blocks.safetensors"  # torchvision's blocks, original's norm

BLOCKS = {
    "plain": partial(Bottleneck, 16, 16, 1, 1),
    "stride2": partial(Bottleneck, 8, 16, 2, 1),
    "dc5_first": partial(Bottleneck, 8, 16, 1, 1),
    "dc5_rest": partial(Bottleneck, 16, 16, 1, 2),
    "basic_stride2": partial(BasicBlock, 8, 12, 2, 1),
}


def golden(name: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    tensors = load_file(GOLDEN)
    prefix = f"{name}/w/"
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors[f"{name}/x"], tensors[f"{name}/y"], weights


def draw_norms(network: nn.Module) -> None:
    """Give every norm statistics and affine parameters that are far from those of a new one."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm)):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)


def test_the_frozen_norm_is_that_of_the_original_with_epsilon_inside_the_root() -> None:
    x, y, weights = golden("bn")
    norm = FrozenBatchNorm(6)
    norm.load_state_dict(weights)

    assert weights["running_var"].min() == 0  # without epsilon this channel would be infinite
    torch.testing.assert_close(norm(x), y, rtol=0, atol=1e-5 * y.abs().max().item())


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_that_of_the_original(name: str) -> None:
    x, y, weights = golden(name)
    block = BLOCKS[name](FrozenBatchNorm)
    block.load_state_dict(weights)

    torch.testing.assert_close(block(x, None, 4), y, rtol=0, atol=1e-5 * y.abs().max().item())


@pytest.mark.parametrize(
    "config",
    [
        BackboneConfig("resnet18", "basic", 64, (64, 128, 256, 512), (2, 2, 2, 2)),
        BackboneConfig("resnet50", norm="batch"),
        BackboneConfig("resnet50", dilation=True),
    ],
    ids=["resnet18", "resnet50-batch-norm", "resnet50-dc5"],
)
def test_the_network_is_torchvisions_of_that_name(config: BackboneConfig) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, config.name)(replace_stride_with_dilation=[False, False, config.dilation])
    draw_norms(theirs.eval())
    with torch.device("meta"):
        ours = ResidualNetwork(config).eval()
    unused = {"fc.weight", "fc.bias"}
    state = {key: value for key, value in theirs.state_dict().items() if key not in unused}
    if config.norm == "frozen":
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    ours.load_state_dict(state, assign=True)
    pixels = torch.randn(1, 3, 65, 97)

    with torch.no_grad():
        features = ours(pixels)
        expected = nn.Sequential(*list(theirs.children())[:-2])(pixels)  # without pool and classifier

    assert features.shape[-2:] == (-(-65 // config.stride), -(-97 // config.stride))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_frozen_norm_neither_learns_nor_counts() -> None:
    norm = FrozenBatchNorm(3).train()
    norm(torch.randn(2, 3, 4, 4))

    assert list(norm.parameters()) == []
    assert norm.get_buffer("running_mean").tolist() == [0, 0, 0]


def test_basic_blocks_cannot_be_dilated() -> None:
    with pytest.raises(ValueError, match=r"basic block cannot be dilated"):
        BackboneConfig("resnet18", "basic", dilation=True)
