"""What "auto" means on a kind of device."""

from __future__ import annotations

import pytest
import torch

from detr.detector import choose_precision
from detr.precision import auto_precision, family_precision


@pytest.mark.parametrize(("device", "expected"), [("cpu", "fp32"), ("cuda", "fp16"), ("cuda:1", "fp16")])
def test_auto_is_fp16_on_every_gpu_and_fp32_on_every_cpu(device: str, expected: str) -> None:
    assert choose_precision("auto", torch.device(device)) == expected
    assert auto_precision(torch.device(device).type) == expected


def test_auto_is_fp32_for_models_of_transformers_and_what_is_asked_for_is_taken() -> None:
    assert family_precision("auto") == "fp32"
    assert family_precision("bf16") == "bf16"
