"""The training step of `transformers`' DETR in a plain loop."""

from pathlib import Path
from typing import Any

import torch

from pipelines.benchmarks.model_subjects import normalised
from pipelines.benchmarks.peers.transformers_model import load
from pipelines.benchmarks.timing import Phases, result, steady
from pipelines.benchmarks.train_subjects import BACKBONE_RATE, CLIP_NORM, LEARNING_RATE, drawn_batch

FROZEN = ("embedder", "stem", "conv1", "layer1", "stages.0")  # of the backbone, frozen as in our recipe


def step(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time forward with its loss, backward, clipping and the optimiser's step over one batch.

    With `auxiliary_loss` the decoder of 5.23 gives its normalised state to the next layer, which the original does not,
    so the loss that is compared is that of the last layer without it.
    """
    phases = Phases()
    torch.set_num_threads(settings["threads"])
    device, bf16 = settings["device"], settings["precision"] == "bf16"
    with phases.phase("load"):
        model = load(folder, device, "fp32")
        for name, parameter in model.named_parameters():
            if "backbone" in name and any(f".{part}." in name for part in FROZEN):
                parameter.requires_grad_(requires_grad=False)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [parameter for name, parameter in trained if "backbone" not in name], "lr": LEARNING_RATE},
                {"params": [parameter for name, parameter in trained if "backbone" in name], "lr": BACKBONE_RATE},
            ],
            weight_decay=1e-4,
        )
    pixels, truth = drawn_batch(settings, model.config.num_labels)
    ready = normalised(list(pixels), device).contiguous()
    mask = torch.ones(len(ready), *ready.shape[2:], dtype=torch.long, device=device)
    labels = [{"class_labels": classes.to(device), "boxes": boxes.to(device)} for classes, boxes in truth]
    model.config.auxiliary_loss = False  # the loss of the last layer alone
    model.eval()
    with torch.no_grad():
        loss = float(model(pixel_values=ready, pixel_mask=mask, labels=labels).loss)
    model.config.auxiliary_loss = True
    model.train()

    def run(_: Any) -> float:
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=bf16):
            total = model(pixel_values=ready, pixel_mask=mask, labels=labels).loss
        total.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    spent = steady(run, [range(len(ready))], device=device, seconds=settings["seconds"], phases=phases)
    trained_count = sum(parameter.numel() for _, parameter in trained)
    return result(phases, spent, loss=loss, trained=trained_count)
