"""Our training step on images that are ready for the network: the subject of the `train` benchmark."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.benchmarks.timing import Phases, result, steady

OBJECTS = 7  # targets of an image: COCO has 7.3 on average
CLIP_NORM = 0.1
LEARNING_RATE, BACKBONE_RATE = 1e-4, 1e-5


def drawn_batch(settings: dict[str, Any], classes: int) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return uint8 pixels `(B, 3, H, W)`, and each image's labels `(7,)` and boxes `(7, 4)` cxcywh in 0..1.

    Labels are indices below `classes`.
    """
    import torch

    from pipelines.benchmarks.model_subjects import drawn_pixels

    pixels = torch.stack(drawn_pixels({**settings, "images": settings["batch"]}))
    rng = np.random.default_rng(0)
    truth = []
    for _ in range(settings["batch"]):
        sides = rng.uniform(0.05, 0.5, (OBJECTS, 2))
        centres = rng.uniform(sides / 2, 1 - sides / 2)
        boxes = torch.from_numpy(np.concatenate([centres, sides], 1).astype(np.float32))
        truth.append((torch.from_numpy(rng.integers(0, classes, OBJECTS)), boxes))
    return pixels, truth


def step(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time forward, loss, matching, backward, clipping and the optimiser's step over one batch.

    The loss of the last decoder layer before training, without dropout, is returned for the comparison with others.
    """
    phases = Phases()
    with phases.phase("import"):
        import torch

        from detr.checkpoints.checkpoint import load
        from detr.training.matcher import Target
        from detr.training.optimizer import build_optimizer, freeze_backbone
        from detr.training.step import LossSettings, NetworkWithLoss, accumulate_gradients, take_step
    torch.set_num_threads(settings["threads"])
    device = settings["device"]
    with phases.phase("load"):
        network = load(folder / "model")
        if network.config.backbone.norm == "frozen":
            freeze_backbone(network, stages="stem_and_first")
        module = NetworkWithLoss(network, LossSettings(), bf16=settings["precision"] == "bf16").to(device)
        optimizer = build_optimizer(module, lr=LEARNING_RATE, lr_backbone=BACKBONE_RATE)
    pixels, truth = drawn_batch(settings, network.config.class_count)
    targets = [Target(labels, boxes) for labels, boxes in truth]
    batch = _micro_batch(pixels, targets, device)
    boxes = float(OBJECTS * len(pixels))
    # without dropout, and only of the last layer: transformers computes the earlier ones differently
    judged = NetworkWithLoss(network, LossSettings(auxiliary=False), bf16=settings["precision"] == "bf16").to(device)
    computed, problem = accumulate_gradients(judged.eval(), [batch], num_boxes=boxes, micro_batches=1)
    assert problem is None, problem
    loss = float(computed[0][0])
    optimizer.zero_grad()
    module.train()

    def run(_: Any) -> float:
        computed, problem = accumulate_gradients(module, [batch], num_boxes=boxes, micro_batches=1)
        assert problem is None, problem
        take_step(optimizer, factor=1.0, clip_norm=CLIP_NORM)
        return float(computed[0][0])

    spent = steady(run, [range(len(pixels))], device=device, seconds=settings["seconds"], phases=phases)
    return result(phases, spent, loss=loss)


def _micro_batch(pixels: Any, targets: list[Any], device: str) -> Any:
    """Return the batch on its device, in the form of the measured checkout."""
    import torch

    from detr.training import step as training

    extents = torch.tensor([tuple(pixels.shape[-2:])] * len(pixels))
    if hasattr(training, "upload_batch"):
        return training.upload_batch(pixels, extents, targets, seed=1, device=torch.device(device))
    made: Any = training.MicroBatch  # of checkouts before `upload_batch`
    return made(pixels.to(device), extents, targets, seed=1)
