"""Table Transformer is a DETR whose norms come first; `transformers` is the judge."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    DetrImageProcessor,
    ResNetConfig,
    TableTransformerConfig,
    TableTransformerForObjectDetection,
)
from transformers.utils import logging

from detr.checkpoints.checkpoint import fingerprint, load, save
from detr.checkpoints.identity import identify_directory
from detr.detector import Detector

logging.disable_progress_bar()

SMALL: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 15,
    "id2label": {0: "table", 1: "table rotated"},
}


def narrow() -> dict[str, Any]:
    backbone = ResNetConfig(
        layer_type="basic",
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[2, 2, 2, 2],
        out_features=["stage4"],
    )
    return {"use_timm_backbone": False, "backbone_config": backbone}


def their_model(directory: Path, **settings: Any) -> TableTransformerForObjectDetection:
    """Write a model with drawn weights as `save_pretrained` does today, and return it."""
    torch.manual_seed(0)
    model = TableTransformerForObjectDetection(TableTransformerConfig(**settings)).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_()
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0, 1.5 / module.in_features**0.5)
    model.save_pretrained(directory)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Return two images, 95 x 130 and 64 x 101, padded together, and the mask: True on padding."""
    pixels = torch.randn(2, 3, 95, 130, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 95, 130, dtype=torch.bool)
    mask[1, 64:], mask[1, :, 101:] = True, True
    return pixels.masked_fill(mask[:, None], 0), mask


def assert_agree(directory: Path, theirs: TableTransformerForObjectDetection) -> None:
    """Compare logits and boxes, to 1e-5, of a padded batch and of its first image alone."""
    ours = load(directory)
    pixels, mask = batch()
    with torch.no_grad():
        for count, padding in ((2, mask), (1, None)):
            output = ours(pixels[:count], padding)
            expected = theirs(pixels[:count], None if padding is None else (~padding).long())
            assert expected.logits.std() > 0.3  # otherwise agreeing would be easy
            torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(output.boxes_cxcywh, expected.pred_boxes, rtol=0, atol=1e-5)


def test_logits_and_boxes_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = their_model(tmp_path, **narrow(), **SMALL)

    assert_agree(tmp_path, theirs)


@pytest.mark.slow  # the full size: ResNet-18, 6 + 6 layers, 125 queries, as table-transformer-structure-recognition
def test_the_published_size_agrees_in_the_timm_layout(tmp_path: Path) -> None:
    theirs = their_model(tmp_path, use_timm_backbone=True, backbone="resnet18", num_queries=125)

    assert_agree(tmp_path, theirs)


@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 96, "longest_edge": 96},
        {"shortest_edge": 96, "longest_edge": 160},
        {"max_height": 90, "max_width": 120},
        {"height": 64, "width": 80},
    ],
)
def test_a_picture_gives_the_detections_of_transformers_with_its_image_processor(
    tmp_path: Path, size: dict[str, int]
) -> None:
    theirs = their_model(tmp_path, **narrow(), **SMALL)
    processor = DetrImageProcessor(size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.25, 0.5, 1.0])
    processor.save_pretrained(tmp_path)
    detector = Detector(str(tmp_path), device="cpu", threshold=0.0)
    generator = np.random.default_rng(0)
    for height, width in ((101, 143), (200, 117), (60, 60)):
        picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        inputs = processor(images=Image.fromarray(picture), return_tensors="pt")
        with torch.no_grad():
            output = theirs(**inputs)
        (expected,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(height, width)])

        found = detector(picture)

        order = expected["scores"].argsort(descending=True, stable=True)
        torch.testing.assert_close(found.scores, expected["scores"][order], rtol=0, atol=1e-5)
        share = torch.tensor([width, height, width, height])
        torch.testing.assert_close(
            found.boxes_xyxy / share, expected["boxes"][order].to(found.boxes_xyxy.dtype) / share, rtol=0, atol=1e-5
        )
        names = {0: "table", 1: "table rotated"}
        assert list(found.labels) == [names[int(label)] for label in expected["labels"][order]]


def test_it_is_identified_without_torch_and_survives_our_save_and_theirs(tmp_path: Path) -> None:
    their_model(tmp_path / "a", **narrow(), **SMALL)
    DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 96}).save_pretrained(tmp_path / "a")
    ours = load(tmp_path / "a")
    save(ours, tmp_path / "b")

    theirs, loading = TableTransformerForObjectDetection.from_pretrained(tmp_path / "b", output_loading_info=True)

    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert_agree(tmp_path / "a", theirs.eval())
    assert load(tmp_path / "b").config == ours.config
    assert ours.config.pre_norm
    assert fingerprint(load(tmp_path / "b")) == fingerprint(ours)
    assert identify_directory(tmp_path / "a") == (ours.config, fingerprint(ours))
