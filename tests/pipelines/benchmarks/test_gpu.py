import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmarks import gpu, gpu_stages, machine
from pipelines.benchmarks.gpu import parse_samples, summary
from pipelines.benchmarks.gpu_tests import OUTCOME, TestRun

ROWS = """1980, 612.40, 55, 99, 0x0000000000000000
1965, 640.00, 57, 100, 0x0000000000000004
345, 110.00, 41, 0, 0x0000000000000001
1980, 6"""


def test_samples_of_the_driver_become_medians_and_extremes_and_the_last_cut_line_is_left_out() -> None:
    found = summary(parse_samples(ROWS))

    assert found == {
        "samples": 3,
        "sm_clock_mhz": {"median": 1965.0, "min": 345.0},
        "power_w": {"median": 612.4, "max": 640.0},
        "temperature_c": 57.0,
        "utilization_percent": 99.0,
        "throttle_reasons": ["0x0000000000000004"],
    }


def test_a_sensor_that_a_virtual_machine_hides_is_not_an_error() -> None:
    assert summary(parse_samples("1980, [N/A], 55, 99, [N/A]"))["power_w"] == {"median": 0.0, "max": 0.0}


def test_without_samples_nothing_is_claimed() -> None:
    assert summary([]) == {"samples": 0}


class Driver:
    """Stands in for libcuda of a process that sees one GPU, whose number in nvidia-smi is another."""

    def cuInit(self, _flags: int) -> int:  # noqa: N802 - the driver's names
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 7
        return 0 if ordinal == 0 else 101

    def cuDeviceGetPCIBusId(self, address: Any, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        address.value = b"0000:C1:00.0"
        return 0 if length >= 13 and device.value == 7 else 1


def test_nvidia_smi_is_asked_about_the_gpu_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Recorded:
        def __init__(self, command: list[str], **_: object) -> None:
            asked.extend([command] if command[0] == "nvidia-smi" else [])
            self.returncode, self.stdout = 0, "a card"

        def terminate(self) -> None: ...

        def communicate(self) -> tuple[str, str]:
            return "", ""

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    monkeypatch.setattr(subprocess, "Popen", Recorded)
    monkeypatch.setattr(subprocess, "run", Recorded)

    with gpu.gpu_samples():
        pass

    assert machine.machine_facts()["gpu"] == "a card"
    assert len(asked) == 3  # the driver's names, the samples, the facts
    assert {tuple(command[command.index("-i") :][:2]) for command in asked} == {("-i", "0000:C1:00.0")}


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)

    with gpu.gpu_samples() as rows:
        pass
    assert rows == []
    assert machine.machine_facts()["gpu"] is None


def test_outcomes_of_tests_are_read_from_the_lines_of_pytest() -> None:
    output = """
tests/gpu/test_parity.py::test_a_batch PASSED                            [ 50%]
tests/gpu/test_parity.py::test_half[bf16 - padded] FAILED                [100%]
tests/gpu/test_other.py::test_new
"""

    assert OUTCOME.findall(output) == [
        ("tests/gpu/test_parity.py::test_a_batch", "PASSED"),
        ("tests/gpu/test_parity.py::test_half[bf16 - padded]", "FAILED"),
    ]


def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout" / "tests" / "gpu"
    folder.mkdir(parents=True)
    (tmp_path / "checkout" / "tests" / "conftest.py").write_text("raise ImportError('libraries that are not here')")
    (tmp_path / "checkout" / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['gpu', 'ray']\n")
    (folder / "test_one.py").write_text(
        """
import pytest

pytestmark = pytest.mark.gpu

def test_good():
    pass

def test_bad():
    assert 1 == 2

@pytest.mark.ray
def test_through_ray():
    raise AssertionError
"""
    )
    return tmp_path / "checkout"


@pytest.mark.slow
def test_gpu_tests_run_without_the_rest_of_the_tests_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    tests = TestRun(tree(tmp_path), device="cuda")

    first = tests.run(tmp_path, 120)
    second = tests.run(tmp_path, 120)

    assert first["counts"] == {"failed": 1, "passed": 1}
    assert first["failed"] == ["tests/gpu/test_one.py::test_bad"]
    assert first["state"] == "failed"
    assert "assert 1 == 2" in first["output"]
    assert second["counts"] == {}
    assert second["state"] == "done"


@pytest.mark.slow
def test_a_rehearsal_runs_the_tests_on_the_cpu_and_skipped_tests_are_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("GPU_TESTS_DEVICE", "meta")  # of another call
    (tree(tmp_path) / "tests" / "gpu" / "test_one.py").write_text(
        """
import os
import pytest

@pytest.mark.gpu
def test_one():
    if os.environ.get("GPU_TESTS_DEVICE") is None:
        pytest.skip("needs a GPU")
    assert os.environ["GPU_TESTS_DEVICE"] == "cpu"
"""
    )
    rehearsal = TestRun(tmp_path / "checkout", device="cpu")
    measured = TestRun(tmp_path / "checkout", device="cuda")

    assert rehearsal.run(tmp_path, 120) | {"seconds": 0} == {
        "state": "done", "seconds": 0, "counts": {"passed": 1}, "failed": []
    }  # fmt: skip
    for counts in ({"skipped": 1}, {}):  # the first tests, and the rest of them
        stage = measured.run(tmp_path, 120)
        assert (stage["state"], stage["reason"]) == ("skipped", "every test was skipped")
        assert stage["counts"] == counts


def test_the_precision_that_gpus_use_by_default_is_measured_plain_and_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(gpu_stages, "_speed", lambda _settings, _folder, name, *_: names.append(name))

    gpu_stages.network({"smoke": False}, tmp_path)
    gpu_stages.compiled({"smoke": False}, tmp_path)

    for batch in (32, 8, 1):
        assert f"ours, detector, fp16, batch {batch}" in names
        assert f"transformers, network, fp16, batch {batch}" in names
    assert "ours, network, fp16, batch 32, compiled" in names


def test_a_checkout_without_gpu_tests_is_reported(tmp_path: Path) -> None:
    assert TestRun(tmp_path, device="cuda").run(tmp_path, 10) == {
        "state": "skipped",
        "reason": "there is no tests/gpu",
    }
