"""The poison of these tests is poison: it strikes where it should, and nowhere else."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from detr.images.decoding import decode
from tests.faults.poison import Harm, Victim, environment, poison, victims

DECODE = "import sys, pathlib; from detr.images.decoding import decode; decode(pathlib.Path(sys.argv[1]).read_bytes())"


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_poison_is_a_good_picture_to_whoever_does_not_ask_for_harm() -> None:
    assert decode(poison(jpeg(), "segfault")).equal(decode(jpeg()))


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "code"), [("segfault", -11), ("abort", -6), ("exit", 3), ("kill", -9), ("raise", 1)])
def test_poison_ends_a_process_and_is_recorded_before(tmp_path: Path, harm: Harm, code: int) -> None:
    (tmp_path / "image.jpg").write_bytes(poison(jpeg(), harm, log=tmp_path / "deaths"))

    process = subprocess.Popen(
        [sys.executable, "-c", DECODE, str(tmp_path / "image.jpg")], env=environment(), stderr=subprocess.DEVNULL
    )

    assert process.wait() == code
    assert victims(tmp_path / "deaths") == [Victim(harm, process.pid, is_child=True)]


@pytest.mark.slow
def test_poison_may_strike_once_only(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(poison(jpeg(), "exit", log=tmp_path / "deaths", times=1))
    command = [sys.executable, "-c", DECODE, str(tmp_path / "image.jpg")]

    assert [subprocess.run(command, env=environment(), check=False).returncode for _ in range(2)] == [3, 0]
