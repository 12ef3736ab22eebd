"""DETR of Hugging Face `transformers` on images that are ready for the network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoImageProcessor, DetrForObjectDetection

from detr.boxes import cxcywh_to_xyxy
from pipelines.benchmarks.model_subjects import THRESHOLD, batches_of, drawn_pixels, normalised, save_rows
from pipelines.benchmarks.timing import Phases, result, steady

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(folder: Path, device: str, precision: str) -> Any:
    """Return the benchmark's model as `transformers` loads it, in evaluation mode."""
    transformers.utils.logging.disable_progress_bar()
    return DetrForObjectDetection.from_pretrained(folder / "model", dtype=DTYPES[precision]).to(device).eval()


def forward(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time the network alone: normalised pixels on the device to logits and boxes on the device."""
    phases = Phases()
    torch.set_num_threads(settings["threads"])
    device, dtype = settings["device"], DTYPES[settings["precision"]]
    with phases.phase("load"):
        model = load(folder, device, settings["precision"])
        if settings.get("tuned"):
            model = model.to(memory_format=torch.channels_last)
    layout = torch.channels_last if settings.get("tuned") else torch.contiguous_format
    batches = [
        normalised(batch, device).to(dtype).contiguous(memory_format=layout)
        for batch in batches_of(drawn_pixels(settings), settings["batch"])
    ]
    masks = {len(batch): torch.ones(len(batch), *batch.shape[2:], dtype=torch.long, device=device) for batch in batches}
    call: Callable[..., Any] = torch.compile(model) if settings.get("compile") else model
    guard = torch.inference_mode if settings.get("tuned") else torch.no_grad  # no_grad is what the documentation shows

    def run(pixels: Any) -> Any:
        with guard():
            return call(pixel_values=pixels, pixel_mask=masks[len(pixels)])

    spent = steady(run, batches, device=device, seconds=settings["seconds"], phases=phases)
    height, width = settings["shape"]
    scale = torch.tensor([width, height, width, height])
    rows = []
    for pixels in batches:
        output = run(pixels)
        scores, classes = output.logits.float().softmax(-1)[..., :-1].max(-1)
        boxes = cxcywh_to_xyxy(output.pred_boxes.float()).cpu() * scale
        rows += list(zip(classes.cpu(), scores.cpu(), boxes, strict=True))
    save_rows(folder / settings["found"], rows, (height, width))
    return result(phases, spent)


def detect(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time uint8 pixels in host memory to detections: the processor without resizing, the network, post-processing."""
    phases = Phases()
    torch.set_num_threads(settings["threads"])
    device, dtype = settings["device"], DTYPES[settings["precision"]]
    with phases.phase("load"):
        model = load(folder, device, settings["precision"])
        processor = AutoImageProcessor.from_pretrained(folder / "model")
    size = tuple(settings["shape"])

    def run(batch: Any) -> Any:
        inputs = processor(batch, do_resize=False, return_tensors="pt").to(device)
        with torch.no_grad():
            output = model(pixel_values=inputs["pixel_values"].to(dtype), pixel_mask=inputs["pixel_mask"])
        return processor.post_process_object_detection(output, threshold=THRESHOLD, target_sizes=[size] * len(batch))

    batches = batches_of(drawn_pixels(settings), settings["batch"])
    spent = steady(run, batches, device=device, seconds=settings["seconds"], phases=phases)
    found = [one for batch in batches for one in run(batch)]
    rows = [(one["labels"].cpu(), one["scores"].float().cpu(), one["boxes"].float().cpu()) for one in found]
    save_rows(folder / settings["found"], rows, (size[0], size[1]))
    return result(phases, spent)
