"""Which precision a machine has by itself, told without torch: what "auto" means there."""

import ctypes
from collections.abc import Iterable, Iterator
from typing import Literal

NativePrecision = Literal["fp32", "bf16", "fp16"]

_BF16_CAPABILITY = 8  # Ampere: older GPUs compute bfloat16 in software


def native_precision(device: str) -> NativePrecision:
    """Return what "auto" means on this machine's devices of a kind, as `detr.detector.choose_precision` does on one.

    Args:
        device: "cpu" or "cuda". Of several GPUs that differ, and where NVIDIA's driver does not answer, it is fp32.
    """
    if device != "cuda":
        return "fp32"
    return common_precision("bf16" if major >= _BF16_CAPABILITY else "fp16" for major in _gpu_capabilities())


def common_precision(each: Iterable[str]) -> NativePrecision:
    """Return the precision that all have; fp32, which every device has, where they differ or there is none."""
    found = set(each)
    for precision in ("bf16", "fp16"):
        if found == {precision}:
            return precision
    return "fp32"


def _gpu_capabilities() -> Iterator[int]:
    """Yield the major compute capability of each GPU, hidden ones included, by NVIDIA's management library."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    count, gpu, major, minor = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if library.nvmlInit_v2() != 0:
        return
    try:
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return
        for index in range(count.value):
            if (
                library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(gpu)) == 0
                and library.nvmlDeviceGetCudaComputeCapability(gpu, ctypes.byref(major), ctypes.byref(minor)) == 0
            ):
                yield major.value
    finally:
        library.nvmlShutdown()
