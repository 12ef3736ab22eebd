"""Detectors of `transformers` with random weights, in the sizes of published checkpoints: speed needs no more."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from detr.scenes.scene import draw_scene
from pipelines.benchmarks.random_model import spread

_THREE_STAGES = ("stage2", "stage3", "stage4")
_SMALL_HYBRID = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3}
_HGNET_B0 = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "hidden_sizes": [128, 256, 512, 1024],
    "use_learnable_affine_block": True,
}
# mean and standard deviation of the logits: some hundred detections of an image score above 0.5
_SIGMOID = (-5.0, 2.0)
_SOFTMAX = (0.0, 6.0)


def _resnet(*stages: str) -> Any:
    return hf.ResNetConfig(out_features=list(stages))


def _rt_resnet18() -> Any:
    return hf.RTDetrResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_features=list(_THREE_STAGES)
    )


def _d_fine_small() -> Any:
    return hf.DFineConfig(
        backbone_config=hf.HGNetV2Config(out_features=list(_THREE_STAGES), **_HGNET_B0),
        encoder_in_channels=[256, 512, 1024], hidden_expansion=0.5, depth_mult=0.34, decoder_layers=3,
        decoder_n_points=[3, 6, 3], num_labels=80,
    )  # fmt: skip


def _deimv2_nano() -> Any:
    return hf.Deimv2Config(
        backbone_config=hf.HGNetV2Config(out_features=["stage3", "stage4"], **_HGNET_B0),
        num_feature_levels=2, feat_strides=[16, 32], encode_proj_layers=[1], encoder_in_channels=[512, 1024],
        encoder_hidden_dim=128, encoder_ffn_dim=512, d_model=128, decoder_ffn_dim=512, decoder_in_channels=[128, 128],
        decoder_n_points=[6, 6], decoder_layers=3, hidden_expansion=0.34, depth_mult=0.5, num_labels=80,
    )  # fmt: skip


def _rf_detr_nano() -> Any:
    backbone = hf.RfDetrDinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=384, patch_size=16, num_windows=2, out_indices=[3, 6, 9, 12]
    )
    return hf.RfDetrConfig(backbone_config=backbone, decoder_n_points=2, decoder_layers=2, num_labels=91)


def _lw_detr_tiny() -> Any:
    backbone = hf.LwDetrViTConfig(
        image_size=1024, hidden_size=192, num_hidden_layers=6, num_attention_heads=12, window_block_indices=[0, 2, 4],
        out_indices=[2, 4, 6],
    )  # fmt: skip
    return hf.LwDetrConfig(
        backbone_config=backbone, projector_scale_factors=[1.0], num_queries=100, decoder_n_points=2, num_labels=91
    )


def _yolos(hidden: int, heads: int, **more: Any) -> Any:
    return hf.YolosConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=heads, num_labels=91, **more
    )


SIZES: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "rtdetr_r18vd": (
        lambda: hf.RTDetrConfig(backbone_config=_rt_resnet18(), num_labels=80, **_SMALL_HYBRID),
        hf.RTDetrImageProcessor,
    ),
    "rtdetr_r50vd": (lambda: hf.RTDetrConfig(num_labels=80), hf.RTDetrImageProcessor),
    "rtdetr_v2_r18vd": (
        lambda: hf.RTDetrV2Config(backbone_config=_rt_resnet18(), num_labels=80, **_SMALL_HYBRID),
        hf.RTDetrImageProcessor,
    ),
    "dfine-small-coco": (_d_fine_small, hf.RTDetrImageProcessor),
    "deimv2_hgnetv2_n_coco": (_deimv2_nano, hf.RTDetrImageProcessor),
    "rf-detr-nano": (
        _rf_detr_nano,
        lambda: hf.RfDetrImageProcessor(size={"height": 384, "width": 384}, do_pad=False),
    ),
    "lwdetr_tiny_60e_coco": (
        _lw_detr_tiny,
        lambda: hf.DeformableDetrImageProcessor(size={"height": 640, "width": 640}, do_pad=False),
    ),
    "deformable-detr": (
        lambda: hf.DeformableDetrConfig(backbone_config=_resnet(*_THREE_STAGES), num_labels=91),
        hf.DeformableDetrImageProcessor,
    ),
    "conditional-detr-resnet-50": (
        lambda: hf.ConditionalDetrConfig(backbone_config=_resnet("stage4"), num_labels=91),
        hf.ConditionalDetrImageProcessor,
    ),
    "dab-detr-resnet-50": (
        lambda: hf.DabDetrConfig(backbone_config=_resnet("stage4"), num_labels=91),
        hf.ConditionalDetrImageProcessor,
    ),
    "yolos-tiny": (
        lambda: _yolos(192, 3, image_size=[800, 1333], use_mid_position_embeddings=False),
        lambda: hf.YolosImageProcessor(size={"shortest_edge": 512, "longest_edge": 1333}),
    ),
    "yolos-small": (lambda: _yolos(384, 6), hf.YolosImageProcessor),
}
"""Configuration and image processor by the last part of the hub id of the checkpoint that has this size."""


def write_random_family(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a random model of a size of `SIZES` to `folder/model`, as `save_pretrained` does; return an empty result.

    Args:
        settings: `name`, a key of `SIZES`, and `seed`.
        folder: the benchmark's working folder.
    """
    hf.utils.logging.disable_progress_bar()
    torch.manual_seed(int(settings["seed"]))
    configuration, processing = SIZES[settings["name"]]
    config, processor = configuration(), processing()
    config.id2label = {index: f"class {index}" for index in range(config.num_labels)}
    network = hf.AutoModelForObjectDetection.from_config(config).eval()
    randomise(network, processor(images=draw_scene(0, 480, 640).image, return_tensors="pt"))
    network.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return {}


@torch.no_grad()
def randomise(network: Any, inputs: Mapping[str, Tensor]) -> None:
    """Draw weights with which activations keep their size, queries differ and detections have high scores.

    With the initial weights of `transformers`, no score reaches 0.5, and the queries of some families agree.
    """
    drawn = set()
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            drawn.add(module.weight)
    for parameter in network.parameters():
        if parameter.dim() > 1 and parameter not in drawn:  # queries, tokens and positions; some begin as zeros
            nn.init.normal_(parameter, std=0.5)
    norms = [module for module in network.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    network(**inputs)
    for hook in hooks:
        hook.remove()
    head, logits = _class_head(network, inputs)
    mean, deviation = _SOFTMAX if network.config.model_type == "yolos" else _SIGMOID
    spread(head, logits, deviation, torch.tensor(mean))


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    norm.get_buffer("running_mean").copy_(inputs[0].mean((0, 2, 3)))
    norm.get_buffer("running_var").copy_(inputs[0].var((0, 2, 3)) + 1e-6)


def _class_head(network: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[nn.Linear, Tensor]:
    """Return the layer of the last logits, which some networks modify slightly, and its outputs."""
    called: list[tuple[nn.Linear, Tensor]] = []

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        called.append((module, output))

    hooks = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, nn.Linear)]
    logits = network(**inputs).logits
    for hook in hooks:
        hook.remove()
    flat = logits.flatten(0, -2)
    alike = [
        (float((output.flatten(0, -2)[-len(flat) :] - flat).abs().mean()), number)
        for number, (_, output) in enumerate(called)
        if output.shape[-1] == flat.shape[-1] and output[..., 0].numel() >= len(flat)
    ]
    layer, output = called[min(alike)[1]]
    return layer, output.flatten(0, -2)[-len(flat) :]
