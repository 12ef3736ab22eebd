import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detr.checkpoints.layouts import CheckpointError, Layout, from_file, names_in_file, to_file
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "bottleneck", 4, (8, 16), (2, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    queries=3,
    positions="learned",
    categories=(Category(3, "cat"), Category(7, "dog")),
)


@pytest.mark.parametrize(
    ("original", "timm", "resnet"),
    [
        (
            "backbone.0.body.conv1.weight",
            "model.backbone.conv_encoder.model.conv1.weight",
            "model.backbone.conv_encoder.model.embedder.embedder.convolution.weight",
        ),
        (
            "backbone.0.body.bn1.running_var",
            "model.backbone.conv_encoder.model.bn1.running_var",
            "model.backbone.conv_encoder.model.embedder.embedder.normalization.running_var",
        ),
        (
            "backbone.0.body.layer3.11.conv2.weight",
            "model.backbone.conv_encoder.model.layer3.11.conv2.weight",
            "model.backbone.conv_encoder.model.encoder.stages.2.layers.11.layer.1.convolution.weight",
        ),
        (
            "backbone.0.body.layer1.0.bn3.bias",
            "model.backbone.conv_encoder.model.layer1.0.bn3.bias",
            "model.backbone.conv_encoder.model.encoder.stages.0.layers.0.layer.2.normalization.bias",
        ),
        (
            "backbone.0.body.layer4.0.downsample.0.weight",
            "model.backbone.conv_encoder.model.layer4.0.downsample.0.weight",
            "model.backbone.conv_encoder.model.encoder.stages.3.layers.0.shortcut.convolution.weight",
        ),
        (
            "backbone.0.body.layer4.0.downsample.1.running_mean",
            "model.backbone.conv_encoder.model.layer4.0.downsample.1.running_mean",
            "model.backbone.conv_encoder.model.encoder.stages.3.layers.0.shortcut.normalization.running_mean",
        ),
    ],
)
def test_weights_of_the_residual_network_have_a_name_in_each_layout(original: str, timm: str, resnet: str) -> None:
    assert names_in_file(original, "original") == (original,)
    assert names_in_file(original, "timm") == (timm,)
    assert names_in_file(original, "resnet") == (resnet,)


@pytest.mark.parametrize(
    ("original", "in_file"),
    [
        ("input_proj.bias", "model.input_projection.bias"),
        ("query_embed.weight", "model.query_position_embeddings.weight"),
        ("transformer.encoder.layers.5.self_attn.out_proj.bias", "model.encoder.layers.5.self_attn.out_proj.bias"),
        ("transformer.encoder.layers.0.linear1.weight", "model.encoder.layers.0.fc1.weight"),
        ("transformer.encoder.layers.0.norm1.weight", "model.encoder.layers.0.self_attn_layer_norm.weight"),
        ("transformer.encoder.layers.0.norm2.bias", "model.encoder.layers.0.final_layer_norm.bias"),
        ("transformer.decoder.layers.0.linear2.bias", "model.decoder.layers.0.fc2.bias"),
        (
            "transformer.decoder.layers.0.multihead_attn.out_proj.weight",
            "model.decoder.layers.0.encoder_attn.out_proj.weight",
        ),
        ("transformer.decoder.layers.0.norm1.weight", "model.decoder.layers.0.self_attn_layer_norm.weight"),
        ("transformer.decoder.layers.0.norm2.weight", "model.decoder.layers.0.encoder_attn_layer_norm.weight"),
        ("transformer.decoder.layers.0.norm3.weight", "model.decoder.layers.0.final_layer_norm.weight"),
        ("transformer.decoder.norm.weight", "model.decoder.layernorm.weight"),
        ("class_embed.bias", "class_labels_classifier.bias"),
        ("bbox_embed.layers.2.weight", "bbox_predictor.layers.2.weight"),
    ],
)
def test_the_other_weights_have_the_same_name_in_both_layouts_of_transformers(original: str, in_file: str) -> None:
    assert names_in_file(original, "timm") == names_in_file(original, "resnet") == (in_file,)


def test_what_the_original_stacks_is_split_in_query_key_value_in_this_order() -> None:
    assert names_in_file("transformer.decoder.layers.4.multihead_attn.in_proj_bias", "timm") == (
        "model.decoder.layers.4.encoder_attn.q_proj.bias",
        "model.decoder.layers.4.encoder_attn.k_proj.bias",
        "model.decoder.layers.4.encoder_attn.v_proj.bias",
    )
    model = Detr(TINY)
    stacked = model.state_dict()["transformer.encoder.layers.0.self_attn.in_proj_weight"]

    key = to_file(model, "timm")["model.encoder.layers.0.self_attn.k_proj.weight"]

    assert torch.equal(key, stacked[16:32])


@pytest.mark.parametrize("layout", ["original", "timm", "resnet"])
def test_weights_come_back_from_every_layout(layout: Layout) -> None:
    model = Detr(TINY)

    state = from_file(to_file(model, layout), Detr(TINY), layout, source="x")

    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_the_names_that_transformers_uses_while_running_are_read_too() -> None:
    model = Detr(TINY)
    inner = {
        name.replace("backbone.conv_encoder.", "backbone.")
        .replace("out_proj", "o_proj")
        .replace(".fc", ".mlp.fc")
        .replace("model.position_embedding", "model.backbone.position_embedding"): tensor
        for name, tensor in to_file(model, "timm").items()
    }

    state = from_file(inner, Detr(TINY), "timm", source="x")

    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_the_counters_of_norms_are_ignored_and_nothing_else() -> None:
    model = Detr(TINY)
    tensors = to_file(model, "original")
    counter = {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(7)}

    assert from_file({**tensors, **counter}, model, "original", source="x").keys() == tensors.keys()

    with pytest.raises(CheckpointError, match=r"'backbone.0.body.bn1.num_batches' is unknown"):
        from_file({**tensors, "backbone.0.body.bn1.num_batches": torch.tensor(7)}, model, "original", source="x")


def test_a_trainable_norm_is_written_without_its_counters() -> None:
    model = Detr(replace(TINY, backbone=replace(TINY.backbone, norm="batch")))

    assert to_file(model, "timm").keys() == to_file(Detr(TINY), "timm").keys()


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_a_missing_and_an_unknown_key_are_named_in_the_spelling_of_the_file() -> None:
    tensors = without(to_file(Detr(TINY), "timm"), "class_labels_classifier.weight")

    with pytest.raises(
        CheckpointError,
        match=re.escape(
            "checkpoint /m: 'class_labels_classifier.weight' (3, 16) is missing, 'classifier.weight' is unknown. "
            "It is not a DETR of this configuration (tiny, 1+1 layers, 3 queries, 2 classes)."
        ),
    ):
        from_file({**tensors, "classifier.weight": torch.zeros(3, 16)}, Detr(TINY), "timm", source="/m")


def test_one_of_query_key_value_missing_is_named() -> None:
    name = "model.encoder.layers.0.self_attn.v_proj.bias"

    with pytest.raises(CheckpointError, match=re.escape(f"'{name}' (16,) is missing")):
        from_file(without(to_file(Detr(TINY), "timm"), name), Detr(TINY), "timm", source="/m")


def test_a_wrong_shape_is_named_with_both_shapes() -> None:
    tensors = to_file(Detr(TINY), "original")

    with pytest.raises(CheckpointError, match=re.escape("'query_embed.weight' is (5, 16), expected (3, 16)")):
        from_file({**tensors, "query_embed.weight": torch.zeros(5, 16)}, Detr(TINY), "original", source="/m")


def test_of_many_wrong_keys_a_few_are_named_and_the_rest_counted() -> None:
    with pytest.raises(
        CheckpointError, match=r"is missing, .* is missing, .* is missing, 'a' is unknown.* and \d+ more"
    ):
        from_file({"a": torch.zeros(1)}, Detr(TINY), "original", source="/m")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 16, dtype=torch.int64), "not a plain floating-point tensor (torch.int64"),
        (torch.zeros(3, 16).to_sparse(), "not a plain floating-point tensor (torch.float32, torch.sparse_coo"),
        (torch.full((3, 16), torch.nan), "'query_embed.weight' contains NaN or infinite values"),
    ],
)
def test_a_tensor_that_holds_no_usable_numbers_is_named(value: Tensor, message: str) -> None:
    tensors = {**to_file(Detr(TINY), "original"), "query_embed.weight": value}

    with pytest.raises(CheckpointError, match=re.escape(message)):
        from_file(tensors, Detr(TINY), "original", source="/m")


def test_a_key_in_both_spellings_is_refused() -> None:
    tensors = to_file(Detr(TINY), "timm")
    name = "model.encoder.layers.0.fc1.bias"

    with pytest.raises(CheckpointError, match="appears under two names"):
        from_file({**tensors, name.replace("fc1", "mlp.fc1"): tensors[name]}, Detr(TINY), "timm", source="/m")


def test_half_precision_becomes_float32() -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in to_file(Detr(TINY), "timm").items()}

    state = from_file(tensors, Detr(TINY), "timm", source="/m")

    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
