"""The network and the detector on a GPU: the CPU's float32 results, to the rounding of each precision."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detr.checkpoints.checkpoint import save
from detr.detector import Detector, choose_precision
from detr.device import float32_arithmetic
from detr.folding import folded
from detr.model import Detr, DetrOutput
from detr.postprocess import Detections
from tests.gpu.conftest import Memory

pytestmark = pytest.mark.gpu

# largest differences of logits (whose spread is 0.4) and of boxes in 0..1; 0.001 of a box is 1.3 pixels of 1333.
# float32: sums in another order; the others by their bits of mantissa (10, 10, 7) over some 60 layers
BOUNDS = {"fp32": (2e-3, 2e-4), "tf32": (0.05, 0.01), "fp16": (0.05, 0.01), "bf16": (0.3, 0.05)}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def expected(network: Detr, pixels: Tensor) -> DetrOutput:
    """What the CPU finds in float32."""
    with torch.inference_mode():
        return network(pixels, None)


@pytest.fixture(scope="module")
def theirs(network: Detr, pixels: Tensor, tmp_path_factory: pytest.TempPathFactory) -> DetrOutput:
    """What `transformers` finds with the same weights, on the CPU in float32."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    folder = tmp_path_factory.mktemp("weights")
    save(network, folder)
    model = transformers.DetrForObjectDetection.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = model(pixels, torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.long))
    return DetrOutput(found.logits, found.pred_boxes)


def found_by(
    network: Detr, pixels: Tensor, device: torch.device, precision: str, extents: Tensor | None = None
) -> DetrOutput:
    """The outputs on the device, as the detector computes them."""
    model = folded(network).to(device).to(memory_format=torch.channels_last)
    model.cast_weights(DTYPES[precision])
    given = pixels.to(device, DTYPES[precision]).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), float32_arithmetic(tf32=precision == "tf32"):
        return model.detect(given, None if extents is None else extents.to(device))


def assert_near(found: DetrOutput, expected: DetrOutput, precision: str) -> None:
    logits, boxes = BOUNDS[precision]
    assert found.logits.isfinite().all()
    torch.testing.assert_close(found.logits.float().cpu(), expected.logits, rtol=0, atol=logits)
    torch.testing.assert_close(found.boxes_cxcywh.float().cpu(), expected.boxes_cxcywh, rtol=0, atol=boxes)


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_precision_gives_what_the_cpu_gives(
    network: Detr, pixels: Tensor, expected: DetrOutput, device: torch.device, precision: str
) -> None:
    assert_near(found_by(network, pixels, device, precision), expected, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_gives_what_transformers_gives(
    network: Detr, pixels: Tensor, theirs: DetrOutput, device: torch.device, precision: str
) -> None:
    assert_near(found_by(network, pixels, device, precision), theirs, precision)


def test_boxes_of_half_precision_are_float32(network: Detr, pixels: Tensor, device: torch.device) -> None:
    found = found_by(network, pixels[:1], device, "bf16")

    assert found.boxes_cxcywh.dtype == torch.float32
    assert found.logits.dtype == torch.float32
    # of 400 coordinates hardly any lies on bfloat16's grid
    on_grid = found.boxes_cxcywh == found.boxes_cxcywh.bfloat16().float()
    assert float(on_grid.float().mean()) < 0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_padding_is_exact(network: Detr, pixels: Tensor, device: torch.device, precision: str) -> None:
    height, width = pixels.shape[2:]
    padded = torch.zeros(2, 3, height + 32, width + 64)
    padded[..., :height, :width] = pixels
    alone = found_by(network, pixels, device, precision)

    among = found_by(network, padded, device, precision, torch.tensor([[height, width]] * 2))

    assert_near(among, DetrOutput(alone.logits.float().cpu(), alone.boxes_cxcywh.float().cpu()), precision)


@pytest.mark.slow
def test_a_compiled_network_gives_what_it_gives_eagerly(network: Detr, pixels: Tensor, device: torch.device) -> None:
    model = copy.deepcopy(network).to(device)
    given = pixels[:1].to(device)
    with torch.inference_mode(), float32_arithmetic(tf32=False):
        eager = model(given, None)
        compiled = torch.compile(model)(given, None)

    assert_near(compiled, DetrOutput(eager.logits.cpu(), eager.boxes_cxcywh.cpu()), "fp32")


def detector(network: Detr, device: torch.device, **options: Any) -> Detector:
    """A detector of small pictures, to whose random weights every query is a detection."""
    side = 320 if device.type == "cuda" else 64
    small = Detr(replace(network.config, shorter=side, longest=side * 5 // 3))
    small.load_state_dict(network.state_dict())
    return Detector(small.eval(), device=str(device), threshold=0.0, **options)


def assert_same(found: Sequence[Detections], expected: Sequence[Detections], *, pixels: float) -> None:
    """Every query is kept, so detections are the same up to order: each box has its partner."""
    for one, other in zip(found, expected, strict=True):
        assert len(one.scores) == len(other.scores) > 0
        distance = torch.cdist(one.boxes_xyxy.cpu(), other.boxes_xyxy.cpu(), p=torch.inf)
        assert float(distance.min(1).values.max()) < pixels
        torch.testing.assert_close(one.scores.cpu().sort().values, other.scores.cpu().sort().values, rtol=0, atol=2e-3)


def test_an_image_gives_alone_what_it_gives_among_others(
    network: Detr, device: torch.device, pictures: Callable[[int], list[Tensor]]
) -> None:
    images = pictures(8)
    detect = detector(network, device, precision="fp32", batch_size=8)

    among = detect(images)
    alone = [detect(image) for image in images]

    assert_same(among, alone, pixels=0.05)


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same(
    network: Detr, device: torch.device, memory: Memory, pictures: Callable[[int], list[Tensor]]
) -> None:
    images = pictures(16)
    expected = detector(network, device, precision="fp32", batch_size=1)(images)
    detect = detector(network, device, precision="fp32", batch_size=16)

    with memory.too_small_for(detect._network.backbone[0], images=5, gib=0.4):
        found = detect(images)

    assert_same(found, expected, pixels=0.05)
    assert detect._launcher.most_images is not None
    assert detect._launcher.most_images < 16


def test_the_device_is_busy_while_it_computes(
    network: Detr, device: torch.device, pictures: Callable[[int], list[Tensor]]
) -> None:
    images = pictures(8)
    detect = detector(network, device, precision="fp32", batch_size=4)
    detect(images)  # prepares the device
    detect.take_busy_seconds()
    began = time.perf_counter()

    detect(images)
    once = detect.take_busy_seconds()
    for _ in range(4):
        detect(images)
    again = detect.take_busy_seconds()

    assert once > 0
    assert again > 0
    assert once + again <= time.perf_counter() - began


def test_auto_is_a_precision_that_the_gpu_has(device: torch.device) -> None:
    expected = "fp32" if device.type == "cpu" else "fp16"

    assert choose_precision("auto", device) == expected


def test_weights_saved_from_the_device_are_those_of_the_cpu(
    network: Detr, device: torch.device, tmp_path: Path
) -> None:
    import detr

    save(copy.deepcopy(network).to(device), tmp_path)

    loaded = detr.load(str(tmp_path)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())


def test_float32_evaluation_has_the_ap_of_the_cpu(device: torch.device, tmp_path: Path) -> None:
    """The embedded model on drawn scenes, by the official evaluator."""
    import json

    from detr.evaluation.average_precision import average_precision
    from detr.evaluation.coco_results import result_rows
    from detr.scenes.files import write_scenes

    truth = json.loads(write_scenes(tmp_path, 24, 5, sizes={(240, 320): 1, (320, 240): 1}).read_text())

    def evaluate(where: str) -> float:
        detect = Detector("scenes", device=where, precision="fp32", threshold=0.0)
        found = detect([tmp_path / image["file_name"] for image in truth["images"]])
        rows = [
            row
            for image, one in zip(truth["images"], found, strict=True)
            for row in result_rows(image["id"], one.category_ids.tolist(), one.scores.tolist(), one.boxes_xyxy.tolist())
        ]
        return average_precision(truth, rows).numbers()["AP"]

    on_device, on_cpu = evaluate(str(device)), evaluate("cpu")

    assert on_cpu > 0.3
    assert on_device == pytest.approx(on_cpu, abs=1e-4)
