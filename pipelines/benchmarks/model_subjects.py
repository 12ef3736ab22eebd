"""Our detector on images that are ready for the network: the subjects of the `model` benchmark."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipelines.benchmarks.agreement import save_found
from pipelines.benchmarks.timing import Phases, keep_freed_memory_as_actors, result, steady

Item = TypeVar("Item")

THRESHOLD = 0.05  # the least score that is kept, as in jobs.label
SEED = 1_000_000_000_000  # scenes from here on are in no data set


def drawn_pixels(settings: dict[str, Any]) -> list[Any]:
    """Return `settings["images"]` uint8 `(3, H, W)` images of `settings["shape"]`, channels last in memory.

    The first `settings["distinct"]` are different, by default all; then they repeat.
    """
    images = int(settings["images"])
    distinct = min(int(settings.get("distinct", images)), images)
    height, width = settings["shape"]
    return [_drawn(index % distinct, height, width) for index in range(images)]


@lru_cache(maxsize=64)
def _drawn(number: int, height: int, width: int) -> Any:
    import torch

    from detr.scenes.scene import draw_scene

    image = draw_scene(SEED + number, height, width).image
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def batches_of(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut a sequence into lists of `size`; the last may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def detect(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time `Detector.detect`: uint8 pixels in host memory to detections in host memory."""
    phases = Phases()
    with phases.phase("import"):
        import torch

        from detr import detector as detectors
    torch.set_num_threads(settings["threads"])
    with phases.phase("load"):
        detector = detectors.Detector(
            settings.get("model") or str(folder / "model"),
            device=settings["device"],
            precision=settings["precision"],
            threshold=THRESHOLD,
            batch_size=settings["batch"],
        )
    keep_freed_memory_as_actors(settings["device"])
    height, width = settings["shape"]
    prepared: Any = detectors.Prepared  # type: ignore[attr-defined]  # its own place differs between checkouts
    images = [prepared(pixels, height, width) for pixels in drawn_pixels(settings)]
    batches = batches_of(images, settings["batch"])
    spent = steady(detector.detect, batches, device=settings["device"], seconds=settings["seconds"], phases=phases)
    found = [detections for batch in batches for detections in detector.detect(batch)]
    # class indices, which other libraries call labels: a data set's own ids may be any numbers
    indices = {category.id: index for index, category in enumerate(detector.config.categories)}
    save_found(
        folder / settings["found"],
        [([indices[one] for one in image.category_ids.tolist()], image.scores, image.boxes_xyxy) for image in found],
        [(height, width)] * len(found),
    )
    return result(phases, spent)


def forward(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time the detector's network alone: normalised pixels on the device to logits and boxes on the device."""
    phases = Phases()
    with phases.phase("import"):
        import torch

        from detr import detector as detectors
        from detr.checkpoints.checkpoint import load
        from detr.folding import folded
        from detr.postprocess import postprocess
    torch.set_num_threads(settings["threads"])
    device, precision = settings["device"], settings["precision"]
    if settings.get("exact"):  # fp32 that is not TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with phases.phase("load"):
        if settings.get("compile"):  # without the detector's operators of oneDNN, which cannot be compiled
            network = folded(load(folder / "model")).to(device).to(memory_format=torch.channels_last)
            network.cast_weights(dtype)
            call = torch.compile(network.detect, dynamic=False)
        else:
            detector = detectors.Detector(str(folder / "model"), device=device, precision=precision)
            call = detector._network.detect  # noqa: SLF001
    keep_freed_memory_as_actors(device)
    batches = [normalised(batch, device).to(dtype) for batch in batches_of(drawn_pixels(settings), settings["batch"])]

    @torch.inference_mode()
    def run(pixels: Any) -> Any:
        return call(pixels, None, auxiliary=False)

    spent = steady(run, batches, device=device, seconds=settings["seconds"], phases=phases)
    height, width = settings["shape"]
    found = []
    for pixels in batches:
        sizes = torch.tensor([(height, width)] * len(pixels), device=device)
        scores, classes, boxes = (values.cpu() for values in postprocess(run(pixels), sizes))
        found += list(zip(classes, scores, boxes, strict=True))
    save_rows(folder / settings["found"], found, (height, width))
    return result(phases, spent)


def normalised(batch: Sequence[Any], device: str) -> Any:
    """Return uint8 `(3, H, W)` images as one float32 `(B, 3, H, W)` batch on a device, normalised, channels last."""
    import torch

    from detr.config import IMAGE_MEAN, IMAGE_STD

    mean = torch.tensor(IMAGE_MEAN).view(3, 1, 1) * 255
    std = torch.tensor(IMAGE_STD).view(3, 1, 1) * 255
    pixels = (torch.stack(list(batch)) - mean) / std
    return pixels.to(device).contiguous(memory_format=torch.channels_last)


def save_rows(path: Path, rows: Sequence[tuple[Any, Any, Any]], size: tuple[int, int]) -> None:
    """Save (classes, scores, boxes_xyxy) of every query of each image, those above the threshold."""
    kept = []
    for classes, scores, boxes in rows:
        sure = scores >= THRESHOLD
        kept.append((classes[sure], scores[sure], boxes[sure]))
    save_found(path, kept, [size] * len(kept))
