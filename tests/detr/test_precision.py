"""What "auto" is on a machine, told without torch, and what several machines have in common."""

from __future__ import annotations

import pytest
import torch

from detr.detector import choose_precision
from detr.precision import common_precision, native_precision


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_what_the_detector_takes(device: str) -> None:
    assert native_precision(device) == choose_precision("auto", torch.device(device))


@pytest.mark.parametrize(
    ("each", "expected"),
    [({"bf16"}, "bf16"), ({"fp16"}, "fp16"), ({"bf16", "fp16"}, "fp32"), ({"bf16", "fp32"}, "fp32"), (set(), "fp32")],
)
def test_machines_that_differ_have_fp32_in_common(each: set[str], expected: str) -> None:
    assert common_precision(each) == expected
