from dataclasses import replace

import pytest

from detr.classes import Category
from detr.config import SCENES_CONFIG, VARIANTS, BackboneConfig, DetrConfig


def test_the_default_is_the_paper_s_resnet_50() -> None:
    config = DetrConfig()

    assert config == VARIANTS["detr-resnet-50"]
    assert (config.hidden_dim, config.heads, config.encoder_layers, config.decoder_layers) == (256, 8, 6, 6)
    assert (config.feedforward_dim, config.queries, config.dropout) == (2048, 100, 0.1)
    assert (config.shorter, config.longest) == (800, 1333)


def test_the_classes_are_the_categories_without_no_object() -> None:
    assert DetrConfig().class_count == 91
    assert SCENES_CONFIG.class_count == 6


@pytest.mark.parametrize(
    ("name", "depths", "stride"),
    [
        ("detr-resnet-50", (3, 4, 6, 3), 32),
        ("detr-resnet-50-dc5", (3, 4, 6, 3), 16),
        ("detr-resnet-101", (3, 4, 23, 3), 32),
        ("detr-resnet-101-dc5", (3, 4, 23, 3), 16),
    ],
)
def test_the_official_variants_differ_in_depth_and_stride(name: str, depths: tuple[int, ...], stride: int) -> None:
    backbone = VARIANTS[name].backbone

    assert (backbone.depths, backbone.stride) == (depths, stride)


def test_fewer_stages_have_a_smaller_stride() -> None:
    assert SCENES_CONFIG.backbone.stride == 16


def test_an_unused_id_may_occur_often_but_a_used_one_once() -> None:
    unused = (Category(0, "N/A"), Category(0, "N/A"), Category(1, "cat"))
    assert DetrConfig(categories=unused).class_count == 3

    with pytest.raises(ValueError, match="ids must be unique"):
        DetrConfig(categories=(Category(1, "cat"), Category(1, "dog")))


@pytest.mark.parametrize("categories", [(), (Category(0, "N/A"),)])
def test_a_model_has_a_class_at_least(categories: tuple[Category, ...]) -> None:
    with pytest.raises(ValueError, match="there must be at least one"):
        DetrConfig(categories=categories)


def test_the_width_must_divide_into_heads_with_room_for_sine_and_cosine() -> None:
    with pytest.raises(ValueError, match="hidden_dim 20 is not a multiple of twice the 4 heads"):
        replace(DetrConfig(), hidden_dim=20, heads=4)


def test_a_backbone_has_as_many_widths_as_depths() -> None:
    with pytest.raises(ValueError, match="backbone odd: 4 stage widths but 3 depths"):
        BackboneConfig(name="odd", depths=(1, 1, 1))


def test_basic_blocks_cannot_be_dilated() -> None:
    with pytest.raises(ValueError, match="a basic block cannot be dilated"):
        BackboneConfig(block="basic", dilation=True)
