"""The machine of a measurement: processor, memory, GPU, versions."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "ray",
    "numpy",
    "pillow",
    "pycocotools",
    "openvino",
    "onnxruntime",
    "daft",
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
GPU_FACTS = "name,driver_version,memory.total"


def machine_facts() -> dict[str, Any]:
    """Return processor, cores, memory, operating system, Python, installed packages, and the GPU if there is one."""
    info = _read("/proc/cpuinfo")
    flags = set(_after(info, "flags").split())
    return {
        "cpu": _after(info, "model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: version for name in PACKAGES if (version := installed(name)) is not None},
        "load_average": round(os.getloadavg()[0], 2),
    }


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu_bus_id() -> str | None:
    """Return the PCI address of the GPU that "cuda" means in torch, for `nvidia-smi -i`; None without a GPU.

    The driver numbers the GPUs of CUDA_VISIBLE_DEVICES from 0, and nvidia-smi all of them, in another order. Does not
    import torch.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetPCIBusId(address, len(address), device)
    )
    return None if failed else address.value.decode()


def _gpu() -> str | None:
    address = gpu_bus_id()
    if address is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={GPU_FACTS}", "--format=csv,noheader", "-i", address]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None


def _after(text: str, name: str) -> str:
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(name)), "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
