"""The detector that scripts around Ray Data and Daft use: model and processor of `transformers`, a batch at a time."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, DetrForObjectDetection

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PlainDetector:
    """Encoded images to lists of `{"label", "score", "box"}`, as the documentation of `transformers` shows it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        self._device, self._dtype = settings["device"], DTYPES[settings["precision"]]
        self._threshold = settings["threshold"]
        self._processor = AutoImageProcessor.from_pretrained(settings["model"])
        model = DetrForObjectDetection.from_pretrained(settings["model"], dtype=self._dtype)
        self._model: Any = model.to(self._device).eval()

    @torch.no_grad()
    def __call__(self, encoded: Sequence[bytes]) -> list[list[dict[str, Any]]]:
        """Return what is found in each image, boxes in pixels of the image."""
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
        inputs = self._processor(images=images, return_tensors="pt").to(self._device)
        output = self._model(pixel_values=inputs["pixel_values"].to(self._dtype), pixel_mask=inputs["pixel_mask"])
        sizes = [(image.height, image.width) for image in images]
        found = self._processor.post_process_object_detection(output, threshold=self._threshold, target_sizes=sizes)
        names = self._model.config.id2label
        return [
            [
                {
                    "label": names[int(label)],
                    "score": float(score),
                    "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True)),
                }
                for label, score, box in zip(one["labels"], one["scores"], one["boxes"], strict=True)
            ]
            for one in found
        ]
