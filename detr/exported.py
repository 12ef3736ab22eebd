"""Export a DETR with `torch.export` or to ONNX, for tools that run neither this package nor Python."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detr.folding import folded
from detr.model import Detr, PaddingMode

INPUTS = ("pixels", "mask")
OUTPUTS = ("logits", "boxes")
OPSET = 20  # ONNX opset, supported by ONNX Runtime since 1.17


class LogitsAndBoxes(nn.Module):
    """A DETR whose output is a pair of tensors, with its frozen norms folded into the convolutions."""

    def __init__(self, model: Detr, padding: PaddingMode) -> None:
        super().__init__()
        self.network = folded(model)
        self.padding: PaddingMode = padding

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(B, Q, K + 1)` and boxes `(B, Q, 4)`, cxcywh in 0..1; arguments as `Detr.forward`."""
        output = self.network(pixels, mask, padding=self.padding)
        return output.logits, output.boxes_cxcywh


def export_program(model: Detr, *, padding: PaddingMode = "exact") -> ExportedProgram:
    """Return an exported program (`torch.export`) for any batch size, height and width.

    Its inputs are `pixels` and `mask` of `Detr.forward`, its outputs logits `(B, Q, K + 1)` and boxes `(B, Q, 4)`,
    cxcywh in 0..1. Sides must be longer than the stride of the feature map.

    Args:
        model: in float32, on the CPU.
        padding: padding mode inside the network; see `Detr.forward`.
    """
    stride = model.config.backbone.stride
    height, width = 4 * stride, 5 * stride + 1
    with torch.no_grad():
        return torch.export.export(
            LogitsAndBoxes(model, padding).eval(),
            (torch.zeros(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.bool)),
            dynamic_shapes={
                "pixels": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
                "mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC},
            },
        )


def write_onnx(model: Detr, path: Path, *, padding: PaddingMode = "exact") -> None:
    """Write the program of `export_program` as one ONNX file.

    The file's metadata `ray_detr` is json: classes by index, size rule, mean and standard deviation, padding mode.

    Raises:
        ImportError: `onnx` or `onnxscript` is not installed.
    """
    batch, height, width = Dim("batch"), Dim("height"), Dim("width")
    exported = export_program(model, padding=padding)
    with _quiet():
        program = torch.onnx.export(
            exported,
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamic_shapes={  # only for the names
                "pixels": {0: batch, 2: height, 3: width},
                "mask": {0: batch, 1: height, 2: width},
            },
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["ray_detr"] = json.dumps(description(model, padding))
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about names of axes, about nodes that it does not fold, and about itself."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="# The axis name: ", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # torch 2.11
            yield
    finally:
        logger.setLevel(level)


def description(model: Detr, padding: PaddingMode) -> dict[str, object]:
    """Return the description of inputs and classes that callers of an exported network need, for json."""
    config = model.config
    return {
        "categories": [{"id": category.id, "name": category.name} for category in config.categories],
        "size_rule": asdict(config.size_rule),
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "padding": padding,
    }


def example_inputs(sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return pixels and mask of random images of these heights and widths, padded to one shape; deterministic."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    pixels = torch.zeros(len(sizes), 3, height, width)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for index, (own_height, own_width) in enumerate(sizes):
        pixels[index, :, :own_height, :own_width] = torch.randn(3, own_height, own_width, generator=generator)
        mask[index, :own_height, :own_width] = False
    return pixels, mask
