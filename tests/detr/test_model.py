import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from detr.backbone import FrozenBatchNorm
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr, outside

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = GOLDEN / "small_detr.safetensors"  # made by the original's whole network: tests/golden/README.md

# ResNet-50's depths at an eighth of its width, with the same strides and dilations
NARROW = DetrConfig(
    backbone=BackboneConfig("narrow", "bottleneck", 8, (32, 64, 128, 256), (3, 4, 6, 3)),
    hidden_dim=32,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    feedforward_dim=64,
    queries=10,
    categories=(Category(3, "cat"), Category(7, "dog")),
)


def dc5(config: DetrConfig) -> DetrConfig:
    return replace(config, backbone=replace(config.backbone, dilation=True))


def padded(images: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    pixels = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for index, image in enumerate(images):
        pixels[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = False
    return pixels, mask


def drawn(config: DetrConfig) -> Detr:
    """Return a network with random weights and norms whose statistics lie around those of real activations.

    Then signals keep their size through the network while what a norm makes of zero padding is far from zero.
    """
    torch.manual_seed(0)
    model = Detr(config).eval()

    def calibrate(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        norm.get_buffer("running_mean").copy_(mean + 0.5 * variance.sqrt() * torch.randn_like(mean))
        norm.get_buffer("running_var").copy_(variance * torch.empty_like(variance).uniform_(0.5, 2))
        norm.get_buffer("weight").uniform_(0.5, 1.5)
        norm.get_buffer("bias").normal_(0.2, 0.5)

    hooks = [
        module.register_forward_pre_hook(calibrate) for module in model.modules() if isinstance(module, FrozenBatchNorm)
    ]
    with torch.no_grad():
        model(torch.randn(1, 3, 96, 128), None)
    for hook in hooks:
        hook.remove()
    return model


def golden() -> tuple[dict[str, Tensor], DetrConfig]:
    with safe_open(SMALL, "pt") as file:
        info = json.loads(file.metadata()["info"])
    config = DetrConfig(
        backbone=BackboneConfig(
            "small", "bottleneck", info["stem_width"], tuple(info["stage_widths"]), tuple(info["depths"])
        ),
        categories=tuple(Category(index, f"class {index}") for index in range(info["classes"])),
        **{
            name: info[name]
            for name in ("hidden_dim", "heads", "encoder_layers", "decoder_layers", "feedforward_dim", "queries")
        },
    )
    return load_file(SMALL), config


def golden_model(tensors: dict[str, Tensor], config: DetrConfig) -> Detr:
    model = Detr(config).eval()
    model.load_state_dict({key[2:]: tensor for key, tensor in tensors.items() if key.startswith("w/")})
    return model


def golden_images(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[f"image{index}_times_8"].float() / 8 for index in range(3)]


@pytest.mark.parametrize("variant", ["plain", "dc5"])
def test_plain_padding_gives_what_the_original_gives_from_every_decoder_layer(variant: str) -> None:
    tensors, config = golden()
    model = golden_model(tensors, config if variant == "plain" else dc5(config))

    with torch.no_grad():
        output = model(*padded(golden_images(tensors), 61, 90), padding="plain")

    for ours, theirs in zip(
        (*output.aux, output), (f"{variant}/aux0_", f"{variant}/aux1_", f"{variant}/"), strict=True
    ):
        # rel 1e-5: sums of floats in another order
        torch.testing.assert_close(ours.logits, tensors[f"{theirs}logits"], rtol=0, atol=5e-5)
        torch.testing.assert_close(ours.boxes_cxcywh, tensors[f"{theirs}boxes"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "dc5"])
def test_exact_padding_gives_what_the_original_gives_for_each_image_alone(variant: str) -> None:
    tensors, config = golden()
    model = golden_model(tensors, config if variant == "plain" else dc5(config))
    images = golden_images(tensors)

    with torch.no_grad():
        output = model(*padded(images, 95, 130), padding="exact")

    for index in range(3):
        torch.testing.assert_close(output.logits[index], tensors[f"{variant}/alone{index}_logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(
            output.boxes_cxcywh[index], tensors[f"{variant}/alone{index}_boxes"], rtol=0, atol=1e-5
        )


def test_the_heads_are_those_of_the_original() -> None:
    tensors = load_file(GOLDEN / "heads.safetensors")
    model = Detr(replace(NARROW, categories=tuple(Category(index, f"class {index}") for index in range(11))))
    weights = {key[2:]: tensor for key, tensor in tensors.items() if key.startswith("w/")}
    model.load_state_dict(weights, strict=False)

    with torch.no_grad():
        logits, boxes = model.class_embed(tensors["hs"]), model.bbox_embed(tensors["hs"]).sigmoid()

    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-5 * tensors["logits"].abs().max().item())
    torch.testing.assert_close(boxes, tensors["boxes"], rtol=0, atol=1e-5)


def test_the_heads_compute_in_float32_inside_autocast() -> None:
    model = drawn(NARROW)
    hidden = []
    model.transformer.register_forward_hook(lambda _module, _inputs, outputs: hidden.append(outputs[0]))

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(2, 3, 96, 128), None)

    with torch.no_grad():
        logits = model.class_embed(hidden[0][-1].float())
        boxes = model.bbox_embed(hidden[0][-1].float()).sigmoid()
    assert (output.logits.dtype, output.boxes_cxcywh.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.boxes_cxcywh, boxes, rtol=0, atol=1e-6)  # in bf16 0.002: 2.6 pixels of 1,333


@cache
def narrow_model(variant: str) -> Detr:
    return drawn(NARROW if variant == "plain" else dc5(NARROW))


def worst_difference(model: Detr, image: Tensor, height: int, width: int, padding: str) -> tuple[float, float]:
    """Return how far logits, and boxes in pixels of a picture of 1333, lie from those of the image alone."""
    with torch.no_grad():
        alone = model(image[None], None)
        # a larger neighbour, so that the image is one of a real batch
        output = model(*padded([image, torch.ones(3, height, width)], height, width), padding=padding)
    logits = (output.logits[0] - alone.logits[0]).abs().max().item()
    return logits, (output.boxes_cxcywh[0] - alone.boxes_cxcywh[0]).abs().max().item() * 1333


@pytest.mark.parametrize("variant", ["plain", "dc5"])
@settings(max_examples=8, deadline=None)
@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    below=st.integers(0, 70),
    beside=st.integers(0, 70),
    seed=st.integers(0, 99),
)
def test_an_image_padded_to_any_larger_shape_gives_its_unpadded_result(
    variant: str, height: int, width: int, below: int, beside: int, seed: int
) -> None:
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))

    logits, pixels = worst_difference(narrow_model(variant), image, height + below, width + beside, "exact")

    assert logits < 1e-4
    assert pixels < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "dc5"])
def test_the_same_at_the_width_of_resnet_50(variant: str) -> None:
    config = DetrConfig()
    model = drawn(config if variant == "plain" else dc5(config))
    for height, width, to_height, to_width in ((64, 101, 131, 163), (95, 65, 96, 160), (127, 95, 127, 129)):
        image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height))

        logits, pixels = worst_difference(model, image, to_height, to_width, "exact")

        assert logits < 1e-4
        assert pixels < 0.01


def test_plain_padding_does_change_the_result_so_the_norms_of_these_tests_are_not_trivial() -> None:
    image = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(1))

    logits, pixels = worst_difference(narrow_model("plain"), image, 70, 90, "plain")

    assert logits > 0.01
    assert pixels > 1


@pytest.mark.parametrize(("variant", "stride"), [("plain", 32), ("dc5", 16)])
def test_the_memory_has_a_cell_per_stride(variant: str, stride: int) -> None:
    with torch.no_grad():
        output = narrow_model(variant)(torch.zeros(1, 3, 65, 97), None)

    assert output.memory is not None
    assert output.memory.shape == (1, -(-65 // stride) * -(-97 // stride), 32)
    assert output.logits.shape == (1, 10, 3)
    assert output.boxes_cxcywh.shape == (1, 10, 4)
    assert len(output.aux) == 1


def test_cells_outside_an_image_are_counted_from_its_own_ceil_extent() -> None:
    # 64 rows are two cells of 32, not three as the original's nearest mask has it when padded to 95
    cells = outside(torch.tensor([[64, 33]]), 32, 3, 3)

    assert cells.tolist() == [[[False, False, True], [False, False, True], [True, True, True]]]


def test_detection_computes_the_heads_of_the_last_layer_only_and_gives_the_same() -> None:
    model = narrow_model("plain")
    pixels = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(5))
    computed: list[torch.Size] = []
    handle = model.class_embed.register_forward_pre_hook(lambda _, inputs: computed.append(inputs[0].shape))

    with torch.no_grad():
        whole = model.detect(pixels, None)
        last = model.detect(pixels, None, auxiliary=False)
    handle.remove()

    assert [shape[0] for shape in computed] == [2, 1]
    assert last.aux == ()
    assert torch.allclose(last.logits, whole.logits, atol=1e-6)
    assert torch.allclose(last.boxes_cxcywh, whole.boxes_cxcywh, atol=1e-6)


def test_images_without_padding_need_no_mask() -> None:
    model = drawn(NARROW)
    pixels = torch.randn(2, 3, 65, 97)

    with torch.no_grad():
        assert torch.equal(model(pixels).logits, model(pixels, None).logits)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(norm: str) -> None:
    torch.manual_seed(0)
    config = replace(NARROW, backbone=replace(NARROW.backbone, norm=norm), dropout=0.1)
    model = Detr(config).train()
    pixels, mask = padded([torch.randn(3, 96, 128), torch.randn(3, 64, 101)], 96, 128)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def step() -> tuple[list[Tensor], int, dict[str, Tensor]]:
        model.load_state_dict(start)
        model.zero_grad()
        torch.manual_seed(1)  # of the dropout
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(pixels, mask)
            size = sum(kept.values())
        (output.logits.square().sum() + output.boxes_cxcywh.sum()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return gradients, size, {name: buffer.clone() for name, buffer in model.named_buffers()}

    expected, usual_size, usual_buffers = step()
    model.checkpoint_gradients()
    gradients, size, buffers = step()

    assert size < (0.5 if norm == "frozen" else 0.98) * usual_size
    assert len(gradients) == len(expected)
    for ours, usual in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, usual, rtol=0, atol=0)
    for name, buffer in buffers.items():
        assert torch.equal(buffer, usual_buffers[name]), name  # trained norms have seen the batch once
