"""The poison of these tests is poison: it strikes where it should, and nowhere else."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image

from detr.images.decoding import decode
from tests.faults.poison import Harm, Victim, environment, poison, victims

DECODE = "import sys, pathlib; from detr.images.decoding import decode; decode(pathlib.Path(sys.argv[1]).read_bytes())"


def picture(kind: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", (40, 30), (200, 100, 50))
    if kind == "heic":
        pillow_heif.from_pillow(image).save(buffer)
    else:
        image.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "heic"])
def test_poison_is_a_good_picture_to_whoever_does_not_ask_for_harm(kind: str) -> None:
    assert decode(poison(picture(kind), "segfault")).equal(decode(picture(kind)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "code", "kind"),
    [
        ("segfault", -11, "jpeg"), ("segfault", -11, "heic"), ("abort", -6, "jpeg"), ("exit", 3, "jpeg"),
        ("kill", -9, "jpeg"), ("raise", 1, "jpeg"),
    ],
)  # fmt: skip
def test_poison_ends_a_process_and_is_recorded_before(tmp_path: Path, harm: Harm, code: int, kind: str) -> None:
    (tmp_path / "image.jpg").write_bytes(poison(picture(kind), harm, log=tmp_path / "deaths"))

    process = subprocess.Popen(
        [sys.executable, "-c", DECODE, str(tmp_path / "image.jpg")], env=environment(), stderr=subprocess.DEVNULL
    )

    assert process.wait() == code
    assert victims(tmp_path / "deaths") == [Victim(harm, process.pid, is_child=True)]


@pytest.mark.slow
def test_poison_may_strike_once_only(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(poison(picture(), "exit", log=tmp_path / "deaths", times=1))
    command = [sys.executable, "-c", DECODE, str(tmp_path / "image.jpg")]

    assert [subprocess.run(command, env=environment(), check=False).returncode for _ in range(2)] == [3, 0]
