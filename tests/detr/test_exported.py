"""Exported networks are the network: for any shape, in both padding modes."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.exported import example_inputs, export_program, write_onnx
from detr.model import Detr, DetrOutput

TINY = DetrConfig(
    backbone=BackboneConfig(name="tiny", block="basic", stem_width=4, stage_widths=(4, 8), depths=(1, 1)),
    hidden_dim=8,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=16,
    queries=4,
    categories=(Category(7, "ball"), Category(40, "cube")),
)
SIZES = ([(64, 48)], [(100, 131), (150, 60), (33, 99)])


def skip_where_pooling_is_exported_for_some_sizes() -> None:
    """Skip the test with torch 2.11, whose programs take sizes of one parity only where they pool."""
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    pool = torch.export.export(torch.nn.MaxPool2d(3, 2, 1), (torch.zeros(1, 1, 8, 8),), dynamic_shapes=(sides,))
    try:
        pool.module()(torch.zeros(1, 1, 9, 9))
    except AssertionError as error:
        pytest.skip(f"torch {torch.__version__} exports pooling for some sizes only: {error}")


@pytest.fixture
def network() -> Detr:
    torch.manual_seed(0)
    return Detr(TINY).eval()


@pytest.mark.slow  # importing and running the compiler
def test_the_network_exports_with_its_own_output(network: Detr) -> None:
    skip_where_pooling_is_exported_for_some_sizes()
    pixels, mask = example_inputs([(64, 48), (40, 40)])
    dynamic = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        network,
        (pixels, mask),
        dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic, 1: dynamic, 2: dynamic}),
    )
    given = example_inputs(SIZES[1])
    with torch.no_grad():
        found, own = exported.module()(*given), network(*given)

    assert isinstance(found, DetrOutput)
    assert len(found.aux) == 1
    torch.testing.assert_close(found.logits, own.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.aux[0].boxes_cxcywh, own.aux[0].boxes_cxcywh, rtol=0, atol=1e-5)


@pytest.mark.slow  # importing and running the compiler
@pytest.mark.parametrize("padding", ["plain", "exact"])
def test_an_onnx_file_gives_what_the_network_gives_for_any_shape(network: Detr, tmp_path: Path, padding: str) -> None:
    write_onnx(network, tmp_path / "model.onnx", padding=padding)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])

    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    told = json.loads(session.get_modelmeta().custom_metadata_map["ray_detr"])
    assert told["categories"] == [{"id": 7, "name": "ball"}, {"id": 40, "name": "cube"}]
    assert told["padding"] == padding
    for sizes in SIZES:
        pixels, mask = example_inputs(sizes)
        logits, boxes = session.run(["logits", "boxes"], {"pixels": pixels.numpy(), "mask": mask.numpy()})
        with torch.no_grad():
            own = network(pixels, mask, padding=padding)
        torch.testing.assert_close(torch.from_numpy(logits), own.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(boxes), own.boxes_cxcywh, rtol=0, atol=1e-5)


@pytest.mark.slow  # importing and running the compiler
@pytest.mark.long
def test_a_compiled_network_is_one_graph(network: Detr) -> None:
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in SIZES:
        pixels, mask = example_inputs(sizes)
        with torch.no_grad():
            for options in ((pixels, None), (pixels, mask)):
                torch.testing.assert_close(compiled(*options).logits, network(*options).logits, rtol=0, atol=1e-5)
            found, own = compiled(pixels, mask, padding="exact"), network(pixels, mask, padding="exact")
        torch.testing.assert_close(found.logits, own.logits, rtol=0, atol=1e-5)


def test_a_program_of_exact_padding_is_not_one_of_plain(network: Detr) -> None:
    pixels, mask = example_inputs(SIZES[1])
    with torch.no_grad():
        plain, exact = network(pixels, mask), network(pixels, mask, padding="exact")

    assert (plain.logits - exact.logits).abs().max() > 1e-3  # else the tests above would compare one mode twice
    assert export_program.__kwdefaults__ == {"padding": "exact"}
