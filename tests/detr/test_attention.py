from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DetrConfig as TheirConfig
from transformers import DetrForObjectDetection, ResNetConfig

from detr.attention import find_with_attention
from detr.checkpoints.checkpoint import load
from tests.detr.test_model import NARROW, drawn, padded


def test_maps_are_those_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    theirs = DetrForObjectDetection(
        TheirConfig(
            use_timm_backbone=False, backbone_config=backbone, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16,
            num_queries=5, num_labels=3, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(str(tmp_path))
    model = load(str(tmp_path))
    pixels, mask = padded([torch.randn(3, 48, 64), torch.randn(3, 32, 40)], 48, 64)

    with torch.no_grad():
        expected = theirs(pixels, (~mask).long(), output_attentions=True)
        output, maps = find_with_attention(model, pixels, mask, encoder=True)

    assert maps.decoder.shape == (2, 2, 4, 5, 6, 8)
    assert maps.encoder is not None
    assert maps.encoder.shape == (2, 2, 4, 6, 8, 6, 8)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps.decoder.flatten(-2), torch.stack(expected.cross_attentions), rtol=0, atol=1e-5)
    # rows of padded cells: transformers hides keys, and so do we, but nobody reads what such a cell looks at
    ours, own = maps.encoder.flatten(-2).flatten(3, 4), torch.stack(expected.encoder_attentions)
    torch.testing.assert_close(ours[:, 0], own[:, 0], rtol=0, atol=1e-5)
    assert maps.decoder[:, 1, :, :, 4:].max() == 0
    assert maps.decoder[:, 1, :, :, :, 5:].max() == 0


@pytest.mark.parametrize("padding", ["plain", "exact"])
def test_asking_for_maps_changes_nothing(padding: str) -> None:
    model = drawn(NARROW)
    pixels, mask = padded([torch.randn(3, 65, 97), torch.randn(3, 64, 70)], 65, 97)

    with torch.no_grad():
        before = model(pixels, mask, padding=padding)
        output, maps = find_with_attention(model, pixels, mask, padding=padding)
        after = model(pixels, mask, padding=padding)

    assert maps.encoder is None
    torch.testing.assert_close(maps.decoder.sum((-1, -2)), torch.ones(2, 2, 4, 10), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits, before.logits, rtol=0, atol=1e-5)
    assert torch.equal(after.logits, before.logits)
