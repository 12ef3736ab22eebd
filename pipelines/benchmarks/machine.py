"""The machine of a measurement: processor, memory, GPU, versions."""

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


def _gpu() -> str | None:
    """Query the driver instead of torch, so that the harness does not import torch."""
    command = ["nvidia-smi", f"--query-gpu={GPU_FACTS}", "--format=csv,noheader", "-i", "0"]
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
