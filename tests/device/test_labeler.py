"""The labeler's path on a simulated GPU: decoding threads, batches in flight, rows as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detr.detector import Detector
from detr.model import Detr
from detr.tiled_detector import TiledDetector
from detr.tiles import Tiling
from tests.device.simulated_cuda import SimulatedCuda
from tests.memory_store import memory_store
from tests.pipelines.labelling.failing_lake import Lake
from tests.pipelines.labelling.test_labeler import TINY, labeler, picture, rows


def detector(device: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    return Detector(Detr(TINY).eval(), device=device, threshold=0.0, precision="fp32", **options)


def test_a_shard_waits_once_a_batch_and_gives_the_rows_of_the_cpu(cuda: SimulatedCuda) -> None:
    lake = Lake(memory_store("memory://lake"))
    objects = [lake.put(f"{n:02}.jpg", picture(40 + 5 * (n % 2), 30)) for n in range(9)]
    objects.append(lake.put("broken.jpg", picture()[:600]))
    on_gpu, on_cpu = memory_store(), memory_store()
    device = detector("cuda", batch_size=4)
    labeler(on_cpu, lake, detector("cpu"), [objects]).label(0)
    cuda.reset()

    report = labeler(on_gpu, lake, device, [objects]).label(0)

    assert (report.images, report.errors) == (10, {"truncated": 1})
    # ten images: one batch of four of the first shape, one of the second, and one of the rest. The host waits for
    # "event" once a batch, or not at all where it has waited for a later one
    assert set(cuda.waits) == {"event"}
    assert cuda.waits["event"] <= 3
    for row, expected in zip(rows(on_gpu), rows(on_cpu), strict=True):
        assert (row["uri"], row["error_kind"]) == (expected["uri"], expected["error_kind"])
        for found, other in zip(row["detections"] or (), expected["detections"] or (), strict=True):
            assert found["label"] == other["label"]
            assert list(found["box"].values()) == pytest.approx(list(other["box"].values()), abs=0.01)


def test_tiles_share_batches_on_the_device_and_give_the_rows_of_the_cpu(cuda: SimulatedCuda) -> None:
    lake = Lake(memory_store("memory://lake"))
    sizes = [(40, 30), (160, 112), (64, 64)]  # one has seven views
    objects = [lake.put(f"{n}.jpg", picture(*size)) for n, size in enumerate(sizes)]
    objects.append(lake.put("broken.jpg", picture(160, 112)[:900]))
    on_gpu, on_cpu = memory_store(), memory_store()
    inner, tiling = detector("cuda", batch_size=8), Tiling(64, 64, 0.25)
    labeler(on_cpu, lake, TiledDetector(detector("cpu"), tiling), [objects], max_pixels=20_000).label(0)
    cuda.reset()

    report = labeler(on_gpu, lake, TiledDetector(inner, tiling), [objects], max_pixels=20_000).label(0)

    assert (report.images, report.errors) == (4, {"truncated": 1})
    assert set(cuda.waits) == {"event"}
    assert cuda.waits["event"] <= 3  # a batch of the two that fit, and one or two of the views
    for row, expected in zip(rows(on_gpu), rows(on_cpu), strict=True):
        found, other = row["detections"] or (), expected["detections"] or ()
        assert [one["label"] for one in found] == [one["label"] for one in other]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in other], abs=1e-5)


def test_the_next_batch_is_in_the_network_before_detections_are_waited_for(
    cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(memory_store("memory://lake"))
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(6)]
    device = detector("cuda", batch_size=2)
    events: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            events.append(name)
            return call(*arguments)

        return noted

    monkeypatch.setattr(device, "submit", noting("submit", device.submit))
    monkeypatch.setattr(device, "read", noting("read", device.read))

    labeler(memory_store(), lake, device, [objects]).label(0)

    assert events == ["submit", "submit", "read", "submit", "read", "read"]
