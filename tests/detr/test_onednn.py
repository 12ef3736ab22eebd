"""oneDNN's convolutions and linear layers give what the plain modules give, and are really used.

They call private operators of PyTorch. If `test_pytorch_has_the_private_operators_with_this_signature` fails after an
update of PyTorch: compare the new signature with the calls in `detr/onednn.py` (PyTorch's own caller is
`torch/_inductor/fx_passes/mkldnn_fusion.py`), adapt them there, and write the new signature into the test. Where an
operator is gone, `use_onednn` leaves the network as it is: results stay right, only slower.
"""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from detr import onednn
from detr.backbone import BasicBlock, Bottleneck, FrozenBatchNorm
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.detector import Detector
from detr.folding import folded
from detr.model import Detr
from detr.onednn import (
    FusedBlock,
    FusedConvolution,
    OnednnAttention,
    OnednnConvolution,
    OnednnLinear,
    use_onednn,
    use_onednn_layers,
)

REPLACEMENTS = (FusedBlock, FusedConvolution, OnednnAttention, OnednnConvolution, OnednnLinear)
BASIC = BackboneConfig("basic", "basic", 8, (8, 16, 16), (1, 2, 1))
BOTTLENECK = BackboneConfig("bottleneck", "bottleneck", 8, (16, 32, 32), (1, 2, 2))
TINY = DetrConfig(
    backbone=BOTTLENECK,
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=16,
    queries=5,
    categories=(Category(3, "cat"), Category(7, "dog")),
    shorter=64,
    longest=96,
)
CONFIGS = {
    "bottleneck": TINY,
    "basic": replace(TINY, backbone=BASIC),
    "trainable norm": replace(TINY, backbone=replace(BOTTLENECK, norm="batch")),
    "dilated": replace(TINY, backbone=replace(BOTTLENECK, dilation=True)),
    "pre-norm": replace(TINY, pre_norm=True),
}


def drawn(config: DetrConfig) -> Detr:
    """Return a network whose norms have statistics that keep activations of the same size from block to block."""
    torch.manual_seed(0)
    model = Detr(config).eval()
    for module in model.backbone.modules():
        if isinstance(module, (FrozenBatchNorm, nn.BatchNorm2d)):
            module.weight.data.uniform_(0.4, 0.8)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def plain_and_fused(config: DetrConfig) -> tuple[Detr, Detr]:
    plain = folded(drawn(config)).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    assert use_onednn(fused)
    return plain, fused


def pixels_of(batch: int, height: int, width: int) -> Tensor:
    drawn_pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    return drawn_pixels.contiguous(memory_format=torch.channels_last)


def operators_of(network: nn.Module, pixels: Tensor) -> list[str]:
    """Return the names of the operators that a forward pass calls."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        network(pixels)
    return [event.name for event in recorded.events()]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 70, 101), (3, 64, 96), (1, 16, 16), (2, 33, 17)])
def test_the_fused_network_is_the_same_function(config: DetrConfig, batch: int, height: int, width: int) -> None:
    plain, fused = plain_and_fused(config)
    pixels = pixels_of(batch, height, width)

    with torch.no_grad():
        features, expected_features = fused.backbone[0](pixels), plain.backbone[0](pixels)
        output, expected = fused(pixels, None), plain(pixels, None)

    torch.testing.assert_close(features, expected_features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.boxes_cxcywh, expected.boxes_cxcywh, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_an_image_gives_alone_what_it_gives_in_a_padded_batch(config: DetrConfig) -> None:
    _, fused = plain_and_fused(config)
    alone = pixels_of(1, 50, 61)
    batch = torch.zeros(3, 3, 70, 101).contiguous(memory_format=torch.channels_last)
    batch[:1, :, :50, :61] = alone
    batch[1:] = pixels_of(2, 70, 101)
    extents = torch.tensor([[50, 61], [70, 101], [70, 101]])

    with torch.no_grad():
        expected, output = fused.detect(alone, None), fused.detect(batch, extents)

    torch.testing.assert_close(output.logits[:1], expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.boxes_cxcywh[:1], expected.boxes_cxcywh, rtol=0, atol=1e-5)


def test_the_number_of_threads_does_not_matter() -> None:
    _, fused = plain_and_fused(TINY)
    pixels = pixels_of(1, 70, 101)
    threads = torch.get_num_threads()

    try:
        outputs = []
        for count in (1, 2):
            torch.set_num_threads(count)
            with torch.no_grad():
                outputs.append(fused(pixels, None).logits)
    finally:
        torch.set_num_threads(threads)

    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, CONFIGS["basic"]], ids=["bottleneck", "basic"])
def test_each_convolution_is_one_call_and_nothing_else_is_left_but_the_pool(config: DetrConfig) -> None:
    plain, fused = plain_and_fused(config)
    pixels = pixels_of(1, 64, 96)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in plain.backbone.modules())
    blocks = sum(isinstance(module, (Bottleneck, BasicBlock)) for module in plain.backbone.modules())

    called = operators_of(fused.backbone[0], pixels)

    assert called.count("mkldnn::_convolution_pointwise_") == blocks
    assert called.count("mkldnn::_convolution_pointwise") == convolutions - blocks
    assert not {"aten::conv2d", "aten::_slow_conv2d_forward", "aten::mkldnn_convolution"} & set(called)
    assert not {"aten::relu", "aten::relu_", "aten::clamp_min_", "aten::add", "aten::add_"} & set(called)


@pytest.mark.parametrize("hidden", [None, 3], ids=["no padding", "padding"])
def test_attention_is_that_of_pytorch(hidden: int | None) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    nn.init.normal_(plain.in_proj_bias)
    nn.init.normal_(plain.out_proj.bias)
    queries, keys, values = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    mask = None
    if hidden is not None:
        mask = torch.zeros(2, 9, dtype=torch.bool)
        mask[1, -hidden:] = True

    with torch.no_grad():
        expected, _ = plain(queries, keys, values, key_padding_mask=mask, need_weights=False)
        found, _ = OnednnAttention(plain)(queries, keys, values, key_padding_mask=mask, need_weights=False)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_of_any_network_give_what_they_gave_and_keep_their_attributes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.Conv2d(8, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Flatten(2),
        nn.Linear(16 * 24, 5, bias=False),
        nn.Linear(5, 7),
    ).eval()
    pixels = pixels_of(2, 32, 48)
    with torch.no_grad():
        expected = network(pixels)

    assert use_onednn_layers(network)
    called = operators_of(network, pixels)

    with torch.no_grad():
        torch.testing.assert_close(network(pixels), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network(pixels.contiguous()), expected, rtol=1e-5, atol=1e-5)
    assert called.count("mkldnn::_convolution_pointwise") == 2, "neither of the paddings that oneDNN does not have"
    assert called.count("mkldnn::_linear_pointwise") == 2
    assert "aten::addmm" not in called
    assert isinstance(network[0], nn.Conv2d)
    assert (network[0].kernel_size, network[6].out_features) == ((3, 3), 7)


def test_a_detector_on_a_cpu_computes_with_onednn_only() -> None:
    detector = Detector(drawn(TINY), device="cpu", precision="fp32")
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)

    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        detector(image)

    called = {event.name for event in recorded.events()}
    assert {"mkldnn::_convolution_pointwise_", "mkldnn::_linear_pointwise"} <= called
    assert not {"aten::conv2d", "aten::linear", "aten::addmm"} & called


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN does not support bfloat16 on this processor: run on one with AVX-512 or AVX-NE-CONVERT",
)
def test_bfloat16_weights_are_fused_too() -> None:
    plain = folded(drawn(TINY)).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fused.backbone[0].to(torch.bfloat16)
    fused.input_proj.to(torch.bfloat16)
    assert use_onednn(fused)
    pixels = pixels_of(1, 64, 96)

    with torch.no_grad():
        features, expected = fused.backbone[0](pixels.bfloat16()), plain.backbone[0](pixels)

    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_a_network_stays_plain_where_pytorch_has_no_such_operator(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onednn, "OPERATORS", ("_convolution_of_tomorrow",))
    onednn._log_once.cache_clear()
    model = folded(drawn(TINY))

    with caplog.at_level(logging.INFO, logger="detr.onednn"):
        answers = [use_onednn(model), use_onednn(model)]

    assert answers == [False, False]
    assert not any(isinstance(module, REPLACEMENTS) for module in model.modules())
    assert len(caplog.messages) == 1
    assert "torch.ops.mkldnn._convolution_of_tomorrow" in caplog.text
    assert model(pixels_of(1, 32, 32), None).logits.isfinite().all()


def test_bfloat16_stays_plain_on_processors_that_onednn_cannot_compute_it_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    onednn._log_once.cache_clear()

    with caplog.at_level(logging.INFO, logger="detr.onednn"):
        detector = Detector(drawn(TINY), device="cpu", precision="bf16", threshold=0)

    assert "oneDNN does not support bfloat16 on this processor" in caplog.text
    assert len(detector(torch.zeros(3, 64, 96, dtype=torch.uint8)).scores) == TINY.queries
    assert use_onednn(folded(drawn(TINY)))  # in float32 as ever


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (torch.device("meta"), "the model is on meta"),
        (torch.float16, "its weights are torch.float16"),
    ],
    ids=["another device", "another dtype"],
)
def test_a_network_stays_plain_where_fusing_does_not_apply(
    change: torch.device | torch.dtype, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    onednn._log_once.cache_clear()
    model = folded(drawn(TINY)).to(change)

    with caplog.at_level(logging.INFO, logger="detr.onednn"):
        assert not use_onednn(model)

    assert reason in caplog.text
    assert not any(isinstance(module, REPLACEMENTS) for module in model.modules())


def test_a_network_stays_plain_where_onednn_is_switched_off() -> None:
    model = folded(drawn(TINY))
    torch.backends.mkldnn.set_flags(False)

    try:
        assert not use_onednn(model)
    finally:
        torch.backends.mkldnn.set_flags(True)


def test_pytorch_has_the_private_operators_with_this_signature() -> None:
    def schema(name: str, overload: str) -> str:
        return str(getattr(getattr(torch.ops.mkldnn, name), overload)._schema)

    assert schema("_convolution_pointwise", "default") == (
        "mkldnn::_convolution_pointwise(Tensor X, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, "
        "int groups, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
    )
    assert schema("_convolution_pointwise_", "binary") == (
        "mkldnn::_convolution_pointwise_.binary(Tensor(a!) other, Tensor X, Tensor W, Tensor? B, int[] padding, "
        "int[] stride, int[] dilation, int groups, str binary_attr, Scalar? alpha, str? unary_attr, "
        "Scalar?[] unary_scalars, str? unary_algorithm) -> Tensor(a!) Y"
    )
    assert schema("_linear_pointwise", "default") == (
        "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) "
        "-> Tensor Y"
    )
