"""Monitor a CUDA GPU during measurements: clocks, power, temperature, throttling, busy share, memory."""

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from pipelines.benchmarks.machine import gpu_bus_id

QUERIED = ("clocks.sm", "power.draw", "temperature.gpu", "utilization.gpu")
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # names in newer and in older drivers
EVERY_MS = 100
HARMLESS = {0x0, 0x1}  # reasons of throttling: none, and "GPU is idle"


@contextmanager
def gpu_samples() -> Iterator[list[list[str]]]:
    """Collect a row of `QUERIED` and the reasons of throttling ten times a second; filled when the block ends.

    Without `nvidia-smi` the rows are empty.
    """
    rows: list[list[str]] = []
    address = gpu_bus_id()
    if address is None:
        yield rows
        return
    command = _query(_reasons_field(address), address)
    try:
        process = subprocess.Popen(  # noqa: S603 - a constant command
            [*command, "-lms", str(EVERY_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        yield rows
        return
    try:
        yield rows
    finally:
        process.terminate()
        output, _ = process.communicate()
        rows += parse_samples(output)


def parse_samples(output: str) -> list[list[str]]:
    """Return the complete rows of nvidia-smi's comma-separated output; the last line may be truncated."""
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    return [row for row in rows if len(row) == len(QUERIED) + 1]


def summary(rows: list[list[str]]) -> dict[str, Any]:
    """Return the median and extreme of each value, and the reasons of throttling that occurred."""
    if not rows:
        return {"samples": 0}
    clock, power, temperature, busy = ([_number(row[column]) for row in rows] for column in range(4))
    reasons = sorted({row[4] for row in rows if _reason(row[4]) not in HARMLESS})
    return {
        "samples": len(rows),
        "sm_clock_mhz": {"median": statistics.median(clock), "min": min(clock)},
        "power_w": {"median": statistics.median(power), "max": max(power)},
        "temperature_c": max(temperature),
        "utilization_percent": statistics.median(busy),
        "throttle_reasons": reasons,
    }


def peak_mb() -> float:
    """Return the peak GPU memory of torch's allocator in this process, in MB."""
    return torch.cuda.max_memory_allocated() / 1e6


def busy_share(call: Callable[[], object]) -> dict[str, Any]:
    """Return the share of one call's wall time in which a kernel ran, from the profiler's kernel times.

    The profiler slows the host down, so the share is a lower bound where the host is the limit.
    """
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - began
    kernels = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return {"busy_share": kernels / wall_s, "kernel_s": kernels}


def device_facts() -> dict[str, Any]:
    """Return name, memory, driver and library versions of the GPU; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": _driver(),
        "convolutions_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _query(reasons: str, address: str) -> list[str]:
    fields = ",".join((*QUERIED, reasons))
    return ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", address]


@cache
def _reasons_field(address: str) -> str:
    """Return the field name of throttling reasons in this machine's driver."""
    for name in REASONS:
        try:
            if subprocess.run(_query(name, address), capture_output=True, timeout=20, check=False).returncode == 0:  # noqa: S603
                return name
        except (OSError, subprocess.SubprocessError):
            break
    return REASONS[0]


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return 0.0  # "[N/A]": some virtual machines hide a sensor


def _reason(cell: str) -> int:
    try:
        return int(cell, 16)
    except ValueError:
        return 0
