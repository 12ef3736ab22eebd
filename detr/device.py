"""Copies of tensors to a device and back, its clock, and the precision of its float32."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Download:
    """A tensor that is being copied to host memory."""

    host: Tensor
    arrived: torch.cuda.Event | None = None

    def result(self) -> Tensor:
        """Wait until the tensor has arrived and return it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host


class Transfer(Protocol):
    """Copies between host memory and one device. No code outside this module may use streams or pinned memory."""

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialised host memory that `upload` can copy from asynchronously."""
        ...

    def upload(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return copies on the device for the calling thread's next operations, without waiting.

        `tensors` must come from `memory` and must not be written afterwards.
        """
        ...

    def download(self, tensor: Tensor) -> Download:
        """Start copying a tensor from the device to host memory, without waiting."""
        ...

    def release(self) -> None:
        """Release the unused memory that the device's allocator caches."""
        ...


class CpuTransfer:
    """Transfers if the device is the CPU: nothing is copied."""

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Transfer.memory`."""
        return torch.empty(shape, dtype=dtype)

    def upload(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See `Transfer.upload`."""
        return tensors

    def download(self, tensor: Tensor) -> Download:
        """See `Transfer.download`."""
        return Download(tensor)

    def release(self) -> None:
        """See `Transfer.release`."""


class CudaTransfer:
    """Transfers from and to pinned memory; uploads use their own stream, so that they overlap with computation.

    PyTorch's allocator of pinned memory caches freed blocks and reuses them when the copies that read them have ended.
    Therefore pinned memory does not exceed the peak use, rounded up to powers of two.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Transfer.memory`."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def upload(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See `Transfer.upload`."""
        with torch.cuda.stream(self._copies):
            copies = tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copies)
        for copy in copies:
            copy.record_stream(computing)  # their memory may be reused when this stream has used them
        return copies

    def download(self, tensor: Tensor) -> Download:
        """See `Transfer.download`."""
        host = self.memory(tuple(tensor.shape), tensor.dtype)
        host.copy_(tensor, non_blocking=True)
        # blocking: the waiting thread sleeps, because decoding threads need its core
        arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self._device))
        return Download(host, arrived)

    def release(self) -> None:
        """See `Transfer.release`."""
        torch.cuda.empty_cache()


def transfer_for(device: torch.device) -> Transfer:
    """Return the transfer object for a device."""
    return CudaTransfer(device) if device.type == "cuda" else CpuTransfer()


Mark = float | torch.cuda.Event
"""A point in the work of a device: a time in seconds on a CPU, an event of the current stream on a GPU."""


class DeviceClock:
    """Sums the time that a device computes. Thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._lock = threading.Lock()

    def mark(self) -> Mark:
        """Mark the end of what the calling thread has queued on the device, without waiting."""
        if self._device.type == "cpu":
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self._device))
        return mark

    def add(self, began: Mark, ended: Mark) -> None:
        """Add the time between two marks of one thread. Waits until the device has reached the second."""
        if isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
            ended.synchronize()
            seconds = began.elapsed_time(ended) / 1000
        else:
            assert isinstance(began, float)
            assert isinstance(ended, float)
            seconds = ended - began
        with self._lock:
            self._seconds += seconds

    def take(self) -> float:
        """Return the seconds that were added since the last call."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
        return seconds


@contextmanager
def float32_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Compute float32 convolutions and matrix products exactly, or in TensorFloat-32, until the context ends.

    TensorFloat-32 rounds the operands to 10 bits of mantissa (float32 has 23). PyTorch uses it for cuDNN's convolutions
    by default. The settings apply to the whole process; they are restored at the end.
    """
    # PyTorch 2.14 declares no types for these
    cudnn: Any = torch.backends.cudnn
    operators: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [operator.fp32_precision for operator in operators]
    try:
        for operator in operators:
            operator.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for operator, setting in zip(operators, before, strict=True):
            operator.fp32_precision = setting


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a tensor on a device, or the tensor itself if it is already there, without waiting.

    A tensor outside pinned memory is copied to it first, which is cheap for a small one.
    """
    if tensor.device.type == "cpu" and device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
