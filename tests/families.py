"""Tiny random detectors of every family of `transformers` that labels, with that library's own answers for them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from scipy.optimize import linear_sum_assignment

from detr.postprocess import Detections

LABELS = {0: "cat", 1: "dog", 2: "horse"}
SQUARE = {"height": 64, "width": 96}
EDGES = {"shortest_edge": 64, "longest_edge": 96}
SMALL = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"]}
HYBRID = {  # RT-DETR and those that were made from it
    "encoder_hidden_dim": 16, "encoder_in_channels": [16, 16, 32], "encoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "d_model": 16, "num_queries": 12, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 32, "decoder_n_points": 2,
    "decoder_layers": 2, "decoder_attention_heads": 2, "hidden_expansion": 0.5, "id2label": LABELS,
}  # fmt: skip
PLAIN = {
    "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 12,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "id2label": LABELS,
}  # fmt: skip
WINDOWED = {
    "d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "decoder_self_attention_heads": 2, "group_detr": 2,
    "decoder_cross_attention_heads": 2, "decoder_n_points": 2, "num_queries": 12, "c2f_num_blocks": 1,
    "id2label": LABELS,
}  # fmt: skip
VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 64,
    "patch_size": 8, "out_features": ["stage1", "stage2"],
}  # fmt: skip


def _residual() -> Any:
    return hf.ResNetConfig(embedding_size=8, layer_type="basic", **SMALL)


def _rt_residual() -> Any:
    return hf.RTDetrResNetConfig(embedding_size=8, layer_type="basic", **SMALL)


def _hgnet() -> Any:
    return hf.HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 16, 16], stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 16, 16, 32], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
        stage_light_block=[False, False, True, True], stage_kernel_size=[3, 3, 3, 3], embedding_size=8,
        hidden_sizes=[16, 16, 16, 32], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def _fine(config: Any, model: Any) -> Any:
    return model(config(backbone_config=_hgnet(), lqe_hidden_dim=8, max_num_bins=8, **HYBRID))


def _yolos() -> Any:
    return hf.YolosForObjectDetection(
        hf.YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[64, 96],
            num_detection_tokens=12, use_mid_position_embeddings=False, id2label=LABELS,
        )
    )  # fmt: skip


BUILD: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "rt_detr": (
        lambda: hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=_rt_residual(), **HYBRID)),
        lambda: hf.RTDetrImageProcessor(size=SQUARE),
    ),
    "rt_detr_v2": (
        lambda: hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(backbone_config=_rt_residual(), **HYBRID)),
        lambda: hf.RTDetrImageProcessor(size=SQUARE),
    ),
    "d_fine": (
        lambda: _fine(hf.DFineConfig, hf.DFineForObjectDetection),
        lambda: hf.RTDetrImageProcessor(size=SQUARE),
    ),
    "deimv2": (
        lambda: _fine(hf.Deimv2Config, hf.Deimv2ForObjectDetection),
        lambda: hf.RTDetrImageProcessor(size=SQUARE),
    ),
    "rf_detr": (
        lambda: hf.RfDetrForObjectDetection(
            hf.RfDetrConfig(
                backbone_config=hf.RfDetrDinov2Config(num_windows=2, **VIT), intermediate_size=32, **WINDOWED
            )
        ),
        lambda: hf.RfDetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False),
    ),
    "lw_detr": (
        lambda: hf.LwDetrForObjectDetection(
            hf.LwDetrConfig(
                backbone_config=hf.LwDetrViTConfig(
                    num_windows=4, window_block_indices=[0], pretrain_image_size=64, **VIT
                ),
                projector_scale_factors=[1.0],
                **WINDOWED,
            )
        ),
        lambda: hf.DeformableDetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False),
    ),
    "deformable_detr": (
        lambda: hf.DeformableDetrForObjectDetection(
            hf.DeformableDetrConfig(
                backbone_config=_residual(), d_model=64, encoder_n_points=2, decoder_n_points=2, **PLAIN
            )
        ),
        lambda: hf.DeformableDetrImageProcessor(size=EDGES),
    ),
    "conditional_detr": (
        lambda: hf.ConditionalDetrForObjectDetection(
            hf.ConditionalDetrConfig(backbone_config=_residual(), d_model=16, **PLAIN)
        ),
        lambda: hf.ConditionalDetrImageProcessor(size=EDGES),
    ),
    "dab-detr": (
        lambda: hf.DabDetrForObjectDetection(hf.DabDetrConfig(backbone_config=_residual(), hidden_size=16, **PLAIN)),
        lambda: hf.ConditionalDetrImageProcessor(size=EDGES),
    ),
    "yolos": (_yolos, lambda: hf.YolosImageProcessor(size=EDGES)),
}
"""How to build the network and the image processor of a family; the sizes are the kinds that published ones have."""


def write_family(family: str, folder: Path, *, seed: int = 0, processor: Any = None) -> Path:
    """Write a tiny random model directory of a family, as `save_pretrained` does, and return the folder.

    The weights have spread enough for scores and boxes to depend on the picture.
    """
    torch.manual_seed(seed)
    hf.utils.logging.disable_progress_bar()
    build, usual = BUILD[family]
    network = build()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.1)
    network.save_pretrained(folder)
    (processor or usual()).save_pretrained(folder)
    return folder


def copied(source: Path, target: Path, **config: Any) -> Path:
    """Copy a model directory; `config` replaces keys of config.json."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    edited = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(edited))
    return target


def settings_of_processor(folder: Path, **settings: Any) -> Path:
    """Replace settings of a model directory's image processor, and return the directory."""
    path = next(folder / name for name in ("preprocessor_config.json", "processor_config.json")
                if (folder / name).exists())  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def own_detections(folder: Path, images: Sequence[Image.Image]) -> list[list[dict[str, Any]]]:
    """Return what `transformers`' own pipeline finds in each image: everything, with boxes before they are rounded."""
    pipe = hf.pipeline("object-detection", model=str(folder))
    pipe._get_bounding_box = lambda box: box.tolist()
    return [pipe(image, threshold=-1.0) for image in images]


def random_images(*sizes: tuple[int, int], seed: int = 0) -> list[Image.Image]:
    """Return a picture of blocks of colour for each (height, width)."""
    random = np.random.default_rng(seed)
    blocks = [random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8) for height, width in sizes]
    whole = [np.kron(block, np.ones((8, 8, 1), np.uint8)) for block in blocks]
    return [Image.fromarray(one[:height, :width]) for one, (height, width) in zip(whole, sizes, strict=True)]


def differences(found: Detections, expected: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the largest difference of a score and of a box side in pixels; the two must have the same labels.

    Detections are paired so that the differences are smallest: equal scores have no order.
    """
    assert sorted(found.labels) == sorted(one["label"] for one in expected)
    if not expected:
        return 0.0, 0.0
    scores = np.abs(found.scores.numpy()[:, None] - np.array([one["score"] for one in expected]))
    boxes = np.abs(found.boxes_xyxy.numpy()[:, None] - np.array([one["box"] for one in expected])).max(-1)
    is_other = np.array([[label != one["label"] for one in expected] for label in found.labels])
    pairs = linear_sum_assignment(scores / 1e-4 + boxes / 0.05 + 1e9 * is_other)
    assert not is_other[pairs].any()
    return float(scores[pairs].max()), float(boxes[pairs].max())


def matches(found: Detections, expected: Detections, *, score: float, pixels: float) -> int:
    """Return how many of `expected` have a detection of their class within `score` and `pixels`, each its own."""
    scores = (found.scores[:, None] - expected.scores).abs() <= score
    boxes = (found.boxes_xyxy[:, None] - expected.boxes_xyxy).abs().amax(-1) <= pixels
    near = (scores & boxes & (found.category_ids[:, None] == expected.category_ids)).numpy()
    pairs = linear_sum_assignment(near, maximize=True)
    return int(near[pairs].sum())
