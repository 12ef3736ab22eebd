"""The network of `transformers`' DETR, converted to OpenVINO, on images that are ready for it."""

from pathlib import Path
from typing import Any

import openvino
import torch

from pipelines.benchmarks.model_subjects import batches_of, drawn_pixels, normalised
from pipelines.benchmarks.peers.exported_model import LogitsAndBoxes, save_outputs
from pipelines.benchmarks.peers.transformers_model import load
from pipelines.benchmarks.timing import Phases, result, steady

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def forward(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time the compiled network on the CPU: normalised pixels to logits and boxes."""
    phases = Phases()
    torch.set_num_threads(settings["threads"])
    batches = [normalised(batch, "cpu").contiguous() for batch in batches_of(drawn_pixels(settings), settings["batch"])]
    with phases.phase("load"):
        model = LogitsAndBoxes(load(folder, "cpu", "fp32"))
    with phases.phase("compile"):
        with torch.no_grad():
            converted = openvino.convert_model(model, example_input=batches[0], input=list(batches[0].shape))
        compiled = openvino.compile_model(
            converted,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": settings["threads"],
                "INFERENCE_PRECISION_HINT": PRECISIONS[settings["precision"]],
            },
        )
    arrays = [batch.numpy() for batch in batches if len(batch) == settings["batch"]]
    spent = steady(compiled, arrays, device="cpu", seconds=settings["seconds"], phases=phases)
    outputs = [[torch.from_numpy(value) for value in compiled(array).values()] for array in arrays]
    save_outputs(folder / settings["found"], outputs, settings["shape"])
    return result(phases, spent)
