"""What "auto" is on a machine, told without torch, and what several machines have in common."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from detr import precision
from detr.detector import choose_precision
from detr.precision import common_precision, native_precision


def test_a_cpu_has_what_the_detector_takes_on_it() -> None:
    assert native_precision("cpu") == choose_precision("auto", torch.device("cpu"))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([8], "bf16"), ([9, 8, 12], "bf16"), ([7], "fp16"), ([7, 6], "fp16"), ([7, 8], "fp32"), ([], "fp32")],
)
def test_gpus_have_what_all_of_them_have(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[int], expected: str
) -> None:
    def found() -> Iterator[int]:
        return iter(capabilities)

    monkeypatch.setattr(precision, "_gpu_capabilities", found)

    assert native_precision("cuda") == expected


def test_a_machine_without_nvidias_library_has_no_gpu_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)

    assert native_precision("cuda") == "fp32"


class Library:
    """NVIDIA's management library on a machine with two GPUs, of which one does not answer."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == "nvmlDeviceGetCount_v2":
                arguments[0]._obj.value = 2
            if name == "nvmlDeviceGetCudaComputeCapability":
                arguments[1]._obj.value = 9
            return int(name == "nvmlDeviceGetHandleByIndex_v2" and arguments[0] == 1)

        return call


def test_nvidias_library_tells_the_capability_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Library())

    assert list(precision._gpu_capabilities()) == [9]


@pytest.mark.parametrize(
    ("each", "expected"),
    [({"bf16"}, "bf16"), ({"fp16"}, "fp16"), ({"bf16", "fp16"}, "fp32"), ({"bf16", "fp32"}, "fp32"), (set(), "fp32")],
)
def test_machines_that_differ_have_fp32_in_common(each: set[str], expected: str) -> None:
    assert common_precision(each) == expected
