"""`transformers` as the judge: it shares no code with us, and reads and writes the same files."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DetrConfig as TheirConfig
from transformers import DetrForObjectDetection, DetrImageProcessor, ResNetConfig
from transformers.utils import logging

from detr.backbone import FrozenBatchNorm
from detr.checkpoints.checkpoint import CheckpointError, fingerprint, load, save
from detr.classes import COCO_CATEGORIES, Category
from detr.config import SCENES_BACKBONE, VARIANTS, BackboneConfig, DetrConfig
from detr.detector import Detector
from detr.images.decoding import resize, resize_shape
from detr.model import Detr, DetrOutput

logging.disable_progress_bar()

SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 9,
    "num_labels": 4,
}
NARROW_RESNET = {"embedding_size": 8, "hidden_sizes": [32, 64, 128, 256], "depths": [3, 4, 6, 3]}


def batch() -> tuple[Tensor, Tensor]:
    """Return two images, 95 x 130 and 64 x 101, padded together, and the mask: True on padding."""
    pixels = torch.randn(2, 3, 95, 130, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 95, 130, dtype=torch.bool)
    mask[1, 64:], mask[1, :, 101:] = True, True
    return pixels.masked_fill(mask[:, None], 0), mask


def draw(model: nn.Module, norm: str) -> None:
    """Give a network weights that make its answers differ, and norms with statistics around real ones."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_()
        elif isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            for parameter in module.parameters(recurse=False):
                parameter.data.normal_(0, 1.5 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.3)

    def calibrate(module: nn.Module, inputs: tuple[Tensor]) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        module.get_buffer("running_mean").copy_(mean + 0.5 * variance.sqrt() * torch.randn_like(mean))
        module.get_buffer("running_var").copy_(variance * torch.empty_like(variance).uniform_(0.5, 2))
        module.get_buffer("weight").uniform_(0.5, 1.5)
        module.get_buffer("bias").normal_(0.2, 0.5)

    hooks = [module.register_forward_pre_hook(calibrate) for module in model.modules() if type(module).__name__ == norm]
    assert hooks
    with torch.no_grad():
        model(batch()[0], None)
    for hook in hooks:
        hook.remove()


def their_model(directory: Path, **settings: Any) -> DetrForObjectDetection:
    """Write a drawn model as `save_pretrained` does today, and return it."""
    model = DetrForObjectDetection(TheirConfig(**settings)).eval()
    draw(model, "DetrFrozenBatchNorm2d")
    model.save_pretrained(directory)
    return model


def our_model(config: DetrConfig) -> Detr:
    model = Detr(config).eval()
    draw(model, FrozenBatchNorm.__name__)
    return model


def assert_agree(ours: Detr, theirs: DetrForObjectDetection) -> int:
    """Compare both on the padded batch, and return how many tokens their encoder saw."""
    pixels, mask = batch()
    with torch.no_grad():
        output: DetrOutput = ours(pixels, mask, padding="plain")
        expected = theirs(pixel_values=pixels, pixel_mask=(~mask).long())
    assert expected.logits.std() > 0.5  # otherwise agreeing would be easy
    assert (expected.pred_boxes[0] - expected.pred_boxes[1]).abs().max() > 0.01
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.boxes_cxcywh, expected.pred_boxes, rtol=0, atol=1e-5)
    assert output.memory is not None
    assert output.memory.shape == expected.encoder_last_hidden_state.shape
    return int(expected.encoder_last_hidden_state.shape[1])


def read_by_them(directory: Path) -> DetrForObjectDetection:
    model, loading = DetrForObjectDetection.from_pretrained(directory, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return model.eval()


def to_old_form(directory: Path, **backbone: object) -> None:
    """Rewrite config.json as versions before 5 wrote it."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "backbone_config": None, "use_timm_backbone": True, **backbone}))


# theirs, read by us


@pytest.mark.slow  # importing timm takes seconds
def test_the_timm_layout_is_read_in_the_new_and_in_the_old_form(tmp_path: Path) -> None:
    theirs = their_model(tmp_path, backbone="resnet18", use_timm_backbone=True, **SMALL)

    assert assert_agree(load(tmp_path), theirs) == 15

    to_old_form(tmp_path, backbone="resnet18")
    assert assert_agree(load(tmp_path), theirs) == 15
    assert assert_agree(load(tmp_path), read_by_them(tmp_path)) == 15


@pytest.mark.parametrize("layer_type", ["bottleneck", "basic"])
def test_the_no_timm_layout_is_read(tmp_path: Path, layer_type: str) -> None:
    backbone = ResNetConfig(layer_type=layer_type, out_features=["stage4"], **NARROW_RESNET)

    theirs = their_model(tmp_path, use_timm_backbone=False, backbone_config=backbone, **SMALL)

    assert assert_agree(load(tmp_path), theirs) == 15


def test_learned_positions_and_fewer_stages_are_read(tmp_path: Path) -> None:
    backbone = ResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], out_features=["stage2"]
    )

    theirs = their_model(
        tmp_path, use_timm_backbone=False, backbone_config=backbone, position_embedding_type="learned", **SMALL
    )

    assert assert_agree(load(tmp_path), theirs) == 12 * 17


def test_dilation_without_timm_is_ignored_by_both(tmp_path: Path) -> None:
    backbone = ResNetConfig(layer_type="bottleneck", out_features=["stage4"], **NARROW_RESNET)

    theirs = their_model(tmp_path, use_timm_backbone=False, backbone_config=backbone, dilation=True, **SMALL)

    assert assert_agree(load(tmp_path), theirs) == 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "form", "tokens"),
    [
        ("detr-resnet-50", "new", 15),
        ("detr-resnet-50", "no_timm", 15),
        ("detr-resnet-101", "old", 15),
        ("detr-resnet-50-dc5", "old", 54),
        ("detr-resnet-50-dc5", "new", 54),
    ],
)
def test_the_official_variants_agree_at_full_size(tmp_path: Path, variant: str, form: str, tokens: int) -> None:
    backbone = VARIANTS[variant].backbone
    settings: dict[str, Any] = {"use_timm_backbone": True, "backbone": backbone.name, "dilation": backbone.dilation}
    if form == "no_timm":
        settings = {"use_timm_backbone": False, "backbone_config": ResNetConfig(out_features=["stage4"])}
    names = {str(category.id): category.name for category in COCO_CATEGORIES}

    theirs = their_model(tmp_path, id2label=names, **settings)
    if form == "old":
        to_old_form(tmp_path, backbone=backbone.name)
    ours = load(tmp_path)

    assert ours.config == VARIANTS[variant]
    assert assert_agree(ours, theirs) == tokens


# ours, read by them

PETS = (Category(17, "cat"), Category(90, "N/A"), Category(2**31 - 1, "dog"))
OURS = DetrConfig(
    backbone=replace(SCENES_BACKBONE, norm="frozen"),
    hidden_dim=32,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    feedforward_dim=48,
    dropout=0.0,
    queries=9,
    categories=PETS,
    shorter=96,
    longest=200,
)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (OURS, 54),
        (replace(OURS, positions="learned"), 54),
        pytest.param(replace(OURS, backbone=BackboneConfig()), 15, marks=pytest.mark.slow),
        pytest.param(replace(OURS, backbone=BackboneConfig(dilation=True)), 54, marks=pytest.mark.slow),
    ],
    ids=["scenes", "learned", "resnet50", "resnet50-dc5"],
)
def test_transformers_reads_what_we_save_and_agrees(tmp_path: Path, config: DetrConfig, tokens: int) -> None:
    ours = our_model(config)

    save(ours, tmp_path / "model")

    assert assert_agree(ours, read_by_them(tmp_path / "model")) == tokens


def test_classes_sizes_and_weights_survive_a_round_trip_through_transformers(tmp_path: Path) -> None:
    ours = our_model(OURS)
    save(ours, tmp_path / "ours")

    read_by_them(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    DetrImageProcessor.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs")

    assert back.config == OURS
    assert fingerprint(back) == fingerprint(ours)


def test_their_image_processor_reads_our_settings_and_makes_the_same_pixels(tmp_path: Path) -> None:
    save(our_model(OURS), tmp_path / "model")
    picture = torch.randint(0, 256, (3, 120, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())

    processor = DetrImageProcessor.from_pretrained(tmp_path / "model")
    theirs = processor(images=image, return_tensors="pt")

    height, width = resize_shape(120, 150, shorter=OURS.shorter, longest=OURS.longest)
    assert theirs["pixel_values"].shape == (1, 3, height, width)
    grey = resize(picture, height, width).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    difference = (theirs["pixel_values"][0] * std + mean) * 255 - grey
    assert difference.abs().max() <= 1.01  # one grey level, and rounding


# the real weights


def test_the_five_detections_of_the_model_card() -> None:
    photograph = os.environ.get("DETR_CATS_JPEG")
    if photograph is None:
        pytest.skip("set DETR_CATS_JPEG to COCO's val2017/000000039769.jpg (images.cocodataset.org) to run this")
    try:
        model = load("facebook/detr-resnet-50")
    except CheckpointError as error:
        pytest.skip(f"the official weights cannot be had: {error}")
    found = Detector(model, device="cpu", threshold=0.9)(Path(photograph))

    expected = [  # the card of facebook/detr-resnet-50
        ("cat", 0.999, [13.24, 52.05, 314.02, 470.93]),
        ("cat", 0.999, [345.4, 23.85, 640.37, 368.72]),
        ("remote", 0.998, [40.16, 70.81, 175.55, 117.98]),
        ("remote", 0.996, [333.24, 72.55, 368.33, 187.66]),
        ("couch", 0.995, [-0.02, 1.15, 639.73, 473.76]),
    ]
    rows = sorted(
        zip(found.labels, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True), key=lambda row: row[2]
    )
    for (label, score, box), (name, probability, corners) in zip(
        rows, sorted(expected, key=lambda row: row[2]), strict=True
    ):
        assert label == name
        assert score == pytest.approx(probability, abs=2e-3)
        assert box == pytest.approx(corners, abs=0.5)
