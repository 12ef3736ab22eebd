"""The precisions that a network can compute in, by name. Does not import torch."""

from typing import Literal

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


def family_precision(precision: Precision) -> Precision:
    """Return the precision of a detector of `transformers`: its "auto" is fp32 on every device.

    Neither bf16 nor fp16 has been shown to keep the accuracy of all these models (docs/models.md).
    """
    return "fp32" if precision == "auto" else precision


def auto_precision(device_type: str) -> Literal["fp32", "fp16"]:
    """Return what "auto" means on devices of a kind, "cuda" or "cpu".

    It depends on nothing else, so all machines of a run use the same. Measured against float32's detections, bf16 loses
    0.017 to 0.03 of AP and fp16 less than 0.0001 (docs/measurements.md); CPUs have no fast fp16.
    """
    return "fp16" if device_type == "cuda" else "fp32"
