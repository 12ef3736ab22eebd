"""The detector on a simulated GPU: no mixed devices, and the host waits once a batch."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from detr.batching import HostBatch, Prepared
from detr.config import BackboneConfig, DetrConfig
from detr.detector import Detector
from detr.model import Detr
from detr.postprocess import Detections
from tests.device.simulated_cuda import SimulatedCuda

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "bottleneck", 8, (8, 16), (1, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=16,
    queries=6,
    shorter=64,
    longest=107,
)


def network() -> Detr:
    torch.manual_seed(0)
    return Detr(TINY).eval()


def images(*sizes: tuple[int, int]) -> list[Prepared]:
    draw = torch.Generator().manual_seed(1)
    return [
        Prepared(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw), 2 * height, 3 * width)
        for height, width in sizes
    ]


ONE_SHAPE = images((64, 96), (64, 96), (64, 96))
PADDED = images((64, 90), (60, 96), (64, 96))


def test_pictures_of_one_shape_are_not_padded(cuda: SimulatedCuda) -> None:
    detector = Detector(network(), device="cuda", batch_size=2)

    batches = detector.batches([(63, 95)] * 3)

    assert [(len(batch.indices), batch.height, batch.width) for batch in batches] == [(2, 63, 95), (1, 63, 95)]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("batch", [ONE_SHAPE, PADDED], ids=["one shape", "padded"])
def test_the_host_waits_once_a_batch_for_its_detections(
    cuda: SimulatedCuda, precision: Literal["fp32", "tf32", "bf16", "fp16"], batch: list[Prepared]
) -> None:
    detector = Detector(network(), device="cuda", precision=precision, threshold=0.0)
    cuda.reset()

    found = detector.detect(batch, shape=(64, 96))

    assert cuda.waits == {"event": 1}
    # 3 pictures of 64 x 96 with 3 colours; 4 sizes of 8 bytes. Back come 6 queries with 6 numbers of 4 bytes
    assert cuda.copies == {"upload": 3 * 64 * 96 * 3 + 3 * 4 * 8, "download": 3 * 6 * 6 * 4}
    assert [len(one) for one in found] == [6, 6, 6]
    assert {one.boxes_xyxy.dtype for one in found} == {torch.float32}


@pytest.mark.parametrize("batch", [ONE_SHAPE, PADDED], ids=["one shape", "padded"])
def test_fp32_detections_are_those_of_the_cpu(cuda: SimulatedCuda, batch: list[Prepared]) -> None:
    found = Detector(network(), device="cuda", precision="fp32", threshold=0.0).detect(batch, shape=(64, 96))

    expected = Detector(network(), device="cpu", precision="fp32", threshold=0.0).detect(batch, shape=(64, 96))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_several_batches_are_in_the_network_before_the_first_is_read(cuda: SimulatedCuda) -> None:
    detector = Detector(network(), device="cuda", precision="fp32", threshold=0.0)
    cuda.reset()

    pending = [detector.submit(written(detector, batch)) for batch in (ONE_SHAPE, PADDED)]

    assert cuda.waits == {}
    last, first = pending[1].result(), pending[0].result()
    assert cuda.waits == {"event": 1}  # the second batch ends after the first
    for one, other in zip(first + last, detector.detect(ONE_SHAPE) + detector.detect(PADDED), strict=True):
        assert_same(one, other)


def test_a_call_waits_once_for_each_batch(cuda: SimulatedCuda) -> None:
    detector = Detector(network(), device="cuda", threshold=0.0, batch_size=2)
    pictures = [image.pixels for image in images((64, 96), (64, 96), (64, 96), (64, 96), (80, 64))]
    cuda.reset()

    assert len(detector(pictures)) == 5

    assert set(cuda.waits) == {"event"}
    assert cuda.waits["event"] <= 3  # none for a batch that ended before another which was waited for


def test_busy_seconds_are_those_of_the_batches_on_the_device(cuda: SimulatedCuda) -> None:
    """The simulated device takes a millisecond for each operation."""
    detector = Detector(network(), device="cuda", precision="fp32", threshold=0.0)

    def busy_after(*batches: list[Prepared]) -> float:
        pending = [detector.submit(written(detector, batch)) for batch in batches]
        cuda.upload(torch.zeros(1))  # work between the batches and their results is not theirs
        assert detector.take_busy_seconds() == 0
        for one in pending:
            one.result()
        return detector.take_busy_seconds()

    exact, padded = busy_after(ONE_SHAPE), busy_after(PADDED)

    assert 0.05 < exact < padded < 1  # seconds: of hundreds of operations; the masks of padding are some of them
    assert busy_after(ONE_SHAPE, PADDED) == pytest.approx(exact + padded)


def test_auto_is_fp16_on_a_gpu(cuda: SimulatedCuda) -> None:
    assert Detector(network(), device="cuda").precision == "fp16"


def test_nan_from_the_device_is_reported(cuda: SimulatedCuda) -> None:
    broken = network()
    nn.init.constant_(broken.class_embed.bias, float("nan"))

    with pytest.raises(FloatingPointError, match=r"produced NaN or infinite values in bf16; use precision fp32"):
        Detector(broken, device="cuda", precision="bf16").detect(ONE_SHAPE)


def written(detector: Detector, batch: list[Prepared]) -> HostBatch:
    host = detector.host_batch(len(batch), 64, 96)
    for place, image in enumerate(batch):
        host.write(place, image)
    return host


def assert_same(found: Detections, expected: Detections) -> None:
    assert found.labels == expected.labels
    assert_close(found.scores, expected.scores, 1e-5)
    assert_close(found.boxes_xyxy, expected.boxes_xyxy, 0.01)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
