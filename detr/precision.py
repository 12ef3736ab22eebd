"""What precision "auto" is, told without torch, and what several machines have in common."""

from collections.abc import Iterable
from typing import Literal

NativePrecision = Literal["fp32", "bf16", "fp16"]


def native_precision(device: str) -> NativePrecision:
    """Return what "auto" means on this machine's devices of a kind, as `detr.detector.choose_precision` does on one.

    Args:
        device: "cpu" or "cuda".
    """
    return "fp16" if device == "cuda" else "fp32"


def common_precision(each: Iterable[str]) -> NativePrecision:
    """Return the precision that all have; fp32, which every device has, where they differ or there is none."""
    found = set(each)
    for precision in ("bf16", "fp16"):
        if found == {precision}:
            return precision
    return "fp32"
