"""Train a small RT-DETR v2 on drawn scenes, for measurements that need trained weights where no published ones are.

python -m scripts.small_rtdetr FOLDER --minutes 20

Writes a model directory to FOLDER/model, and scenes that it was not trained on, with annotations, to FOLDER/scenes. One
thread; how good the model becomes depends on the number of steps that the minutes allow.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor

from detr.boxes import xyxy_to_cxcywh
from detr.classes import SCENE_CATEGORIES
from detr.scenes.files import write_scenes
from detr.scenes.scene import draw_scene

HEIGHT, WIDTH = 128, 160
BATCH = 8
RATE, WARM_UP = 8e-4, 100  # the highest learning rate, and the steps until it is reached
FALLS_FROM = 0.7  # share of the minutes; then the learning rate falls to 0
HELD_OUT, HELD_OUT_SEED = 60, 77


def new_network() -> Any:
    """Return an RT-DETR v2 with random weights."""
    residual = hf.RTDetrResNetConfig(
        embedding_size=16, layer_type="basic", hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.RTDetrV2Config(
        backbone_config=residual, encoder_hidden_dim=64, encoder_in_channels=[32, 64, 128], encoder_ffn_dim=128,
        encoder_attention_heads=4, d_model=64, num_queries=30, decoder_in_channels=[64, 64, 64], decoder_ffn_dim=128,
        decoder_layers=3, decoder_attention_heads=4, hidden_expansion=0.5, num_denoising=40,
        id2label={index: category.name for index, category in enumerate(SCENE_CATEGORIES)},
        category_ids=[category.id for category in SCENE_CATEGORIES],
    )  # fmt: skip
    return hf.RTDetrV2ForObjectDetection(config)


def batch(first: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return pixels `(BATCH, 3, HEIGHT, WIDTH)` of the scenes of seeds from `first` on, and their labels."""
    pixels, labels = [], []
    for seed in range(first, first + BATCH):
        scene = draw_scene(seed, HEIGHT, WIDTH)
        pixels.append(torch.from_numpy(np.ascontiguousarray(scene.image)).permute(2, 0, 1) / 255)
        boxes = torch.from_numpy(scene.boxes_xyxy).float() / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
        labels.append({"class_labels": torch.from_numpy(scene.labels).long(), "boxes": xyxy_to_cxcywh(boxes)})
    return torch.stack(pixels), labels


def train(network: Any, minutes: float) -> int:
    """Train until the minutes are over, and return the number of steps."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    network.train()
    start, steps = time.monotonic(), 0
    while (spent := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (steps + 1) / WARM_UP, (1 - spent) / (1 - FALLS_FROM))
        pixels, labels = batch(steps * BATCH)
        loss = network(pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        steps += 1
        if steps % 100 == 0:
            print(f"step {steps}: loss {loss.item():.2f}, {60 * minutes * spent:.0f} s", flush=True)
    return steps


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = new_network()
    print(f"{train(network, args.minutes)} steps")
    network.save_pretrained(args.folder / "model")
    hf.RTDetrImageProcessor(size={"height": HEIGHT, "width": WIDTH}).save_pretrained(args.folder / "model")
    write_scenes(args.folder / "scenes", HELD_OUT, HELD_OUT_SEED, sizes={(HEIGHT, WIDTH): 1})


if __name__ == "__main__":
    main()
