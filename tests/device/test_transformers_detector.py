"""Detectors of `transformers` on a simulated GPU: no mixed devices, and what they find is what the CPU finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detr.detectors import load_detector
from detr.families import FAMILIES
from tests.device.simulated_cuda import SimulatedCuda
from tests.families import matches, random_images, write_family

HALF = ("deformable_detr", "rt_detr_v2", "yolos")


@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "fp32") for family in sorted(FAMILIES)), *((family, "bf16") for family in HALF)],
)
def test_a_family_finds_on_a_gpu_what_it_finds_on_a_cpu(
    cuda: SimulatedCuda, family: str, precision: Any, tmp_path: Path
) -> None:
    folder = write_family(family, tmp_path)
    images = random_images((50, 70), (50, 70))
    expected = load_detector(folder, device="cpu", precision=precision, threshold=0.0)(images)
    detector = load_detector(folder, device="cuda", precision=precision, threshold=0.0)
    cuda.reset()

    found = detector(images)

    assert detector.precision == precision
    assert cuda.waits["event"] == 1  # for the only download; those of other kinds are inside networks of `transformers`
    score, pixels = (0.02, 1.0) if precision == "bf16" else (1e-4, 0.01)  # autocast's operators differ between devices
    near = [matches(one, other, score=score, pixels=pixels) for one, other in zip(found, expected, strict=True)]
    assert near == [len(one) for one in expected]
