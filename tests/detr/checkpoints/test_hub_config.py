import json
import re
from dataclasses import replace
from typing import Any

import pytest

from detr.checkpoints.hub_config import TIMM_BACKBONES, read_config, write_config, write_preprocessor
from detr.checkpoints.layouts import CheckpointError, Layout
from detr.classes import COCO_CATEGORIES, Category
from detr.config import SCENES_CONFIG, VARIANTS, BackboneConfig, DetrConfig
from detr.size_rule import SizeRule

# as facebook/detr-resnet-50 had it in 2021, less what DETR does not need
OLD = {
    "model_type": "detr",
    "activation_function": "relu",
    "auxiliary_loss": False,
    "backbone": "resnet50",
    "d_model": 256,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "decoder_layers": 6,
    "dilation": False,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "encoder_layers": 6,
    "id2label": {str(category.id): category.name for category in COCO_CATEGORIES},
    "max_position_embeddings": 1024,
    "num_hidden_layers": 6,
    "num_queries": 100,
    "position_embedding_type": "sine",
    "scale_embedding": False,
}
OLD_PREPROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DetrFeatureExtractor",
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_size": 1333,
    "size": 800,
}
TIMM = {
    "model_type": "timm_backbone",
    "backbone": "resnet50",
    "num_channels": 3,
    "out_indices": [1, 2, 3, 4],
    "output_stride": None,
}
RESNET = {
    "model_type": "resnet",
    "depths": [3, 4, 6, 3],
    "downsample_in_bottleneck": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "layer_type": "bottleneck",
    "out_features": ["stage4"],
}


def read(config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> tuple[DetrConfig, Layout]:
    return read_config(config, preprocessor or {}, class_rows=92, source="m")


def new(backbone: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        **{name: value for name, value in OLD.items() if name != "backbone"},
        "backbone_config": backbone,
        **changes,
    }


def refusal(config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(config, preprocessor)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (OLD, "timm"),
        ({**OLD, "use_timm_backbone": True, "backbone_config": None, "use_pretrained_backbone": True}, "timm"),
        ({**OLD, "backbone_kwargs": {"out_indices": [1, 2, 3, 4], "in_chans": 3}}, "timm"),
        ({**OLD, "backbone": "resnet50.a1_in1k"}, "timm"),
        (new(TIMM), "timm"),
        ({**OLD, "backbone": None, "use_timm_backbone": False, "backbone_config": RESNET}, "resnet"),
        ({**OLD, "backbone": None, "use_timm_backbone": False, "backbone_config": None}, "resnet"),
        ({}, "timm"),
    ],
    ids=["2021", "4.30", "4.50", "timm tag", "5", "no_timm", "no_timm default", "nothing said"],
)
def test_every_form_that_configurations_have_had_is_the_same_model(config: dict[str, Any], layout: Layout) -> None:
    assert read(config, OLD_PREPROCESSOR) == (VARIANTS["detr-resnet-50"], layout)


@pytest.mark.parametrize(
    "config",
    [
        {**OLD, "dilation": True},
        {**OLD, "backbone_kwargs": {"output_stride": 16}},
        new({**TIMM, "output_stride": 16}),
        new({**TIMM, "output_stride": 16}, dilation=True),
        new(TIMM, dilation=True),
    ],
    ids=["old dilation", "old kwargs", "new output_stride", "new both", "new dilation alone"],
)
def test_either_word_for_dilation_is_followed_in_the_timm_layout(config: dict[str, Any]) -> None:
    assert read(config) == (VARIANTS["detr-resnet-50-dc5"], "timm")


def test_dilation_is_ignored_without_timm_as_transformers_does() -> None:
    assert read(new(RESNET, dilation=True)) == (VARIANTS["detr-resnet-50"], "resnet")


def test_words_about_dilation_that_contradict_each_other_are_refused() -> None:
    assert "output_stride is 32" in refusal(new({**TIMM, "output_stride": 32}, dilation=True))


def test_official_names_give_cocos_classes_also_where_unused_ids_are_called_label() -> None:
    labels = {str(c.id): c.name if c.is_used else f"LABEL_{c.id}" for c in COCO_CATEGORIES}

    config, _ = read({**OLD, "id2label": labels})

    assert config.categories == COCO_CATEGORIES


def test_another_name_for_an_unused_id_is_a_class_of_its_own() -> None:
    config, _ = read({**OLD, "id2label": {**OLD["id2label"], "12": "street sign"}})

    assert config.categories[12] == Category(12, "street sign")


def test_ids_are_the_class_indices_unless_category_ids_gives_them() -> None:
    labels = {"0": "cat", "1": "dog"}

    assert read({**OLD, "id2label": labels})[0].categories == (Category(0, "cat"), Category(1, "dog"))
    assert read({**OLD, "id2label": labels, "category_ids": [17, 18]})[0].categories == (
        Category(17, "cat"),
        Category(18, "dog"),
    )


def test_without_names_the_class_head_counts_the_classes() -> None:
    unnamed = {name: value for name, value in OLD.items() if name != "id2label"}

    assert read(unnamed)[0].categories == COCO_CATEGORIES
    # transformers leaves id2label out where there are two classes with its own names
    two, _ = read_config(unnamed, {}, class_rows=3, source="m")
    assert two.categories == (Category(0, "LABEL_0"), Category(1, "LABEL_1"))


@pytest.mark.parametrize(
    ("preprocessor", "sizes"),
    [
        ({}, (800, 1333)),
        ({"size": 480, "max_size": 640}, (480, 640)),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, (480, 640)),
        ({"size": {"shortest_edge": 480}, "max_size": 640}, (480, 640)),
        ({"size": {"shortest_edge": 480}}, (480, 1333)),
    ],
)
def test_sizes_are_read_from_every_form(preprocessor: dict[str, Any], sizes: tuple[int, int]) -> None:
    config, _ = read(OLD, preprocessor)

    assert (config.shorter, config.longest) == sizes


@pytest.mark.parametrize(
    ("preprocessor", "rule"),
    [
        ({"size": {"max_height": 480, "max_width": 640}}, SizeRule("fit", 480, 640, 480, 640)),
        ({"size": {"height": 640, "width": 480}}, SizeRule("stretch", 480, 640, 640, 480)),
        ({"size": [640, 480]}, SizeRule("stretch", 480, 640, 640, 480)),
        ({"size": {"longest_edge": 1000}}, SizeRule("fit", 1000, 1000, 1000, 1000)),
        (
            {"size": {"shortest_edge": None, "longest_edge": None, "height": 9, "width": 9}},
            SizeRule("stretch", 9, 9, 9, 9),
        ),
        # the order in which DetrImageProcessor looks
        ({"size": {"shortest_edge": 8, "longest_edge": 9, "height": 7, "width": 7}}, SizeRule("original", 8, 9)),
        ({"do_resize": False, "size": {"shortest_edge": 8, "longest_edge": 9}}, SizeRule("none")),
    ],
)
def test_every_size_rule_of_an_image_processor_is_read(preprocessor: dict[str, Any], rule: SizeRule) -> None:
    assert read(OLD, preprocessor)[0].size_rule == rule


PETS = {"id2label": {"0": "cat", "1": "dog"}}


@pytest.mark.parametrize(
    ("changes", "resizing"),
    [
        (PETS | {"transformers_version": "5.23.0"}, "transformers"),
        (PETS | {"transformers_version": "4.42.0"}, "transformers"),
        (PETS | {"transformers_version": "4.41.2"}, "original"),  # it still had the original's rule
        (PETS, "original"),
        (PETS | {"transformers_version": "5.23.0", "category_ids": [17, 18]}, "original"),  # saved by ray-detr
        (PETS | {"transformers_version": "5.23.0", "size_arithmetic": "original"}, "original"),
        ({"transformers_version": "5.23.0"}, "original"),  # COCO's classes: the original's own, saved again
        ({"size_arithmetic": "transformers"}, "transformers"),
    ],
)
def test_a_checkpoint_that_transformers_trained_has_its_sizes(changes: dict[str, Any], resizing: str) -> None:
    config, _ = read({**OLD, **changes})

    assert config.resizing == resizing
    assert config.size_rule.shape(378, 640) == ((787, 1332) if resizing == "original" else (787, 1333))


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 1]}, (0.5, 0.4, 0.3), (0.5, 0.5, 1.0)),
        ({"image_mean": 0.5, "image_std": 0.25}, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ({"do_normalize": False}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [255] * 3}, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
        (
            {"rescale_factor": 2 / 255, "image_mean": [1, 1, 1], "image_std": [2, 2, 2]},
            (0.5, 0.5, 0.5),
            (1.0, 1.0, 1.0),
        ),
    ],
)
def test_every_normalisation_is_read_as_one_of_pixels_from_0_to_1(
    preprocessor: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    config, _ = read(OLD, preprocessor)

    assert config.image_mean == pytest.approx(mean, abs=1e-12)
    assert config.image_std == pytest.approx(std, abs=1e-12)


def test_statistics_that_went_through_float32_are_the_ones_they_were_before() -> None:
    rounded = {
        "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
        "image_std": [0.2290000021457672, 0.2240000069141388, 0.22499999403953552],
        "rescale_factor": 0.003921568859368563,
    }

    assert read(OLD, rounded) == read(OLD, {})


def test_a_table_transformer_is_a_detr_whose_norms_come_first() -> None:
    size = {"size": 800, "max_size": 800}
    config, layout = read({**OLD, "model_type": "table-transformer", "backbone": "resnet18"}, size)

    assert config == DetrConfig(
        backbone=TIMM_BACKBONES["resnet18"], pre_norm=True, shorter=800, longest=800, resizing="transformers"
    )
    assert layout == "timm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "conditional_detr"},
            "model_type is 'conditional_detr'; only 'detr' or 'table-transformer' is supported",
        ),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"position_embedding_type": "rope"}, "position_embedding_type is 'rope'"),
        ({"decoder_attention_heads": 4}, "encoder_attention_heads and decoder_attention_heads differ"),
        ({"decoder_ffn_dim": 4}, "encoder_ffn_dim and decoder_ffn_dim differ"),
        ({"d_model": 100}, "hidden_dim 100 is not a multiple of twice the 8 heads"),
        ({"d_model": "256"}, "d_model is '256'; expected an integer"),
        ({"d_model": True}, "d_model is True; expected an integer"),
        ({"encoder_layers": 10**9}, "encoder_layers is 1000000000; expected an integer from 1 to 1,000"),
        ({"num_channels": 1}, "num_channels is 1; only 3 is supported"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"dilation": 1}, "dilation is 1; expected true or false"),
        ({"backbone": "resnext50_32x4d"}, "backbone is 'resnext50_32x4d'; the supported backbones are resnet18"),
        ({"backbone": "resnet18", "dilation": True}, "basic block cannot be dilated"),
        ({"use_timm_backbone": False}, "backbone is 'resnet50'; only None is supported"),
        ({"backbone_config": {"model_type": "swin"}}, "backbone_config: model_type is 'swin'"),
        ({"backbone_config": []}, "backbone_config is []; expected an object"),
        ({"backbone_config": {**TIMM, "out_indices": [1, 2, 3]}}, "out_indices is [1, 2, 3]; the last index must be 4"),
        ({"backbone_config": {**TIMM, "output_stride": 8}}, "output_stride is 8"),
        ({"backbone_config": {**RESNET, "downsample_in_bottleneck": True}}, "downsample_in_bottleneck is True"),
        ({"backbone_config": {**RESNET, "downsample_in_first_stage": True}}, "downsample_in_first_stage is True"),
        ({"backbone_config": {**RESNET, "layer_type": "wide"}}, "layer_type is 'wide'"),
        (
            {"backbone_config": {**RESNET, "out_features": ["stage3"]}},
            "out_features is ['stage3']; the last name must be",
        ),
        ({"backbone_config": {**RESNET, "depths": [3, 4], "out_features": None}}, "4 stage widths but 2 depths"),
        ({"backbone_config": {**RESNET, "depths": [3, 4, 6, -3]}}, "depths is [3, 4, 6, -3]; expected a list"),
        ({"backbone_config": {**RESNET, "hidden_sizes": [256, 512, 1024, 3]}}, "must be multiples of 4"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "id2label must name the class indices 0 to 1"),
        ({"id2label": {"0": "cat", "1": 2}}, "id2label: 1 is 2; expected a string"),
        ({"id2label": {"0": "cat"}, "category_ids": [1, 2]}, "category_ids must be a list of 1 integers"),
        ({"id2label": {"0": "cat", "1": "dog"}, "category_ids": [1, 1]}, "ids must be unique"),
    ],
)
def test_a_setting_without_a_meaning_here_is_refused_and_named(change: dict[str, Any], message: str) -> None:
    assert message in refusal({**OLD, **change})


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"do_resize": "no"}, "do_resize is 'no'; expected true or false"),
        ({"resample": 3}, "resample is 3"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5]; expected a list of three numbers"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean is [0.5, 0.5, nan]"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std is [0.5, 0.5, 0]; pixels cannot be divided by 0"),
        ({"rescale_factor": 0}, "rescale_factor is 0; expected a number above 0"),
        ({"size": {"height": 800}}, "expected shortest_edge and longest_edge, max_height and max_width"),
        ({"size": {"height": 800, "width": "800"}}, "size: width is '800'; expected an integer"),
        ({"size": -1}, "size is -1"),
    ],
)
def test_a_preprocessing_that_is_not_ours_is_refused(preprocessor: dict[str, Any], message: str) -> None:
    assert message in refusal(OLD, preprocessor)


def test_a_message_says_of_which_file_it_speaks() -> None:
    assert refusal({**OLD, "num_channels": 1}).startswith("checkpoint m: config.json: num_channels")
    assert refusal(OLD, {"resample": 3}).startswith("checkpoint m: preprocessor_config.json: resample")


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        *((config, "timm") for config in VARIANTS.values()),
        (replace(VARIANTS["detr-resnet-50"], backbone=BackboneConfig(name="mine", dilation=True)), "timm"),
        (replace(SCENES_CONFIG, backbone=replace(SCENES_CONFIG.backbone, norm="frozen")), "resnet"),
        (
            DetrConfig(
                positions="learned", shorter=96, longest=200, categories=(Category(5, "N/A"), Category(2**40, "x"))
            ),
            "timm",
        ),
        (DetrConfig(pre_norm=True, resizing="transformers", shorter=800, longest=800), "timm"),
        (DetrConfig(pre_norm=True), "timm"),
        (DetrConfig(resizing="fit", box=(480, 640), shorter=480, longest=640), "timm"),
        (DetrConfig(resizing="stretch", box=(640, 480), shorter=480, longest=640), "timm"),
        (DetrConfig(resizing="none"), "timm"),
        (DetrConfig(image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 0.5, 0.48145466)), "timm"),
    ],
    ids=[
        *VARIANTS,
        "renamed",
        "scenes",
        "learned",
        "table transformer",
        "another arithmetic",
        "fit",
        "stretch",
        "as it is",
        "other statistics",
    ],
)
def test_what_is_written_is_read_back_the_same(config: DetrConfig, layout: Layout) -> None:
    written, written_layout = write_config(config)

    # through json, as files go
    assert read(json.loads(json.dumps(written)), json.loads(json.dumps(write_preprocessor(config)))) == (config, layout)
    assert written_layout == layout


def test_dilation_is_written_in_both_words() -> None:
    written, _ = write_config(VARIANTS["detr-resnet-50-dc5"])

    assert written["dilation"] is True
    assert written["backbone_config"]["output_stride"] == 16


def test_auxiliary_loss_is_never_written_as_true_because_it_changes_transformers_forward() -> None:
    assert write_config(DetrConfig())[0]["auxiliary_loss"] is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DetrConfig(categories=(Category(1, "cat"), Category(2, ""))), "cannot be saved: class 2 has no name"),
        (
            DetrConfig(backbone=BackboneConfig("narrow", stem_width=8, dilation=True)),
            "backbone narrow with dilation cannot be saved",
        ),
    ],
)
def test_a_network_that_transformers_has_no_words_for_is_not_written(config: DetrConfig, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        write_config(config)
