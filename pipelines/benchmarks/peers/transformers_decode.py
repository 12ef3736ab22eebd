"""The image processors of `transformers` on encoded photographs: subjects of the `decode` benchmark."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

from pipelines.benchmarks.decode_subjects import measure
from pipelines.benchmarks.timing import Phases


def torchvision_backend(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time Pillow's decoder and the processor that resizes with torchvision, the default."""
    return _processor(settings, folder, "torchvision")


def pillow_backend(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time Pillow's decoder and the processor that resizes with Pillow."""
    return _processor(settings, folder, "pil")


def _processor(settings: dict[str, Any], folder: Path, backend: str) -> dict[str, Any]:
    phases = Phases()
    torch.set_num_threads(1)
    with phases.phase("load"):
        processor = AutoImageProcessor.from_pretrained(
            folder / "model",
            backend=backend,
            do_normalize=False,  # the detectors normalise on the device
            do_rescale=False,
            do_pad=False,
            size={"shortest_edge": settings["shorter"], "longest_edge": settings["longest"]},
        )

    def run(data: bytes) -> Any:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        return processor(image, return_tensors="pt")["pixel_values"][0]

    def pixels(image: Any) -> Any:
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy().round().clip(0, 255).astype(np.uint8))

    return measure(settings, folder, phases, run, pixels)
