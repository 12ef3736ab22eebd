"""The network of `transformers`' DETR, exported to ONNX and run by ONNX Runtime, on images that are ready for it."""

from pathlib import Path
from typing import Any

import onnxruntime
import torch

from pipelines.benchmarks.model_subjects import batches_of, drawn_pixels, normalised
from pipelines.benchmarks.peers.exported_model import LogitsAndBoxes, save_outputs
from pipelines.benchmarks.peers.transformers_model import load
from pipelines.benchmarks.timing import Phases, result, steady


def forward(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time the session on the CPU, in fp32: normalised pixels to logits and boxes."""
    phases = Phases()
    torch.set_num_threads(settings["threads"])
    batches = [normalised(batch, "cpu").contiguous() for batch in batches_of(drawn_pixels(settings), settings["batch"])]
    with phases.phase("load"):
        model = LogitsAndBoxes(load(folder, "cpu", "fp32"))
    with phases.phase("compile"):
        file = folder / f"{settings['found']}.onnx"
        torch.onnx.export(model, (batches[0],), file, dynamo=True, input_names=["pixels"], verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    arrays = [batch.numpy() for batch in batches if len(batch) == settings["batch"]]

    def run(pixels: Any) -> Any:
        return session.run(None, {"pixels": pixels})

    spent = steady(run, arrays, device="cpu", seconds=settings["seconds"], phases=phases)
    outputs = [[torch.from_numpy(value) for value in run(array)] for array in arrays]
    save_outputs(folder / settings["found"], outputs, settings["shape"])
    return result(phases, spent)
