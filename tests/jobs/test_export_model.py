from __future__ import annotations

import math
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detr import exported
from detr.checkpoints.checkpoint import save
from detr.model import Detr
from jobs.export_model import main
from pipelines import model_export
from pipelines.errors import RayDetrError, UsageError
from tests.detr.test_exported import TINY, skip_where_pooling_is_exported_for_some_sizes


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save(Detr(TINY).eval(), tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.mark.slow  # importing and running the compiler
def test_a_file_is_written_when_it_gives_what_the_network_gives(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_where_pooling_is_exported_for_some_sizes()
    out = tmp_path / "exported" / "tiny.pt2"
    monkeypatch.setattr(model_export, "MOST_DIFFERENCE", -1.0)
    with pytest.raises(RayDetrError, match=r"^the pt2 file of tiny@\w{12} differs from the network by .* Nothing was"):
        main(["--model", model, "--out", str(out), "--to", "pt2"])
    assert list(out.parent.iterdir()) == []
    monkeypatch.undo()

    main(["--model", model, "--out", str(out), "--to", "pt2", "--padding", "plain"])

    assert [path.name for path in out.parent.iterdir()] == ["tiny.pt2"]
    assert "plain padding); scores and boxes differ from the network's by " in capsys.readouterr().out
    logits, boxes = torch.export.load(out).module()(torch.zeros(1, 3, 40, 50), torch.zeros(1, 40, 50, dtype=torch.bool))
    assert logits.shape == (1, 4, 3)
    assert boxes.shape == (1, 4, 4)


def test_a_file_that_gives_nan_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pixels: Tensor, _mask: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(pixels), 4, 3), math.nan), torch.zeros(len(pixels), 4, 4)

    monkeypatch.setattr(exported, "write_onnx", lambda _model, path, *, padding: path.write_bytes(b"x"))
    monkeypatch.setattr(model_export, "_onnx_runner", lambda _path: broken)

    with pytest.raises(RayDetrError, match="differs from the network by nan"):
        main(["--model", model, "--out", str(tmp_path / "model.onnx")])
    assert not (tmp_path / "model.onnx").exists()


def test_a_program_for_some_sizes_only_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.11 makes them."""

    def guarded(pixels: Tensor, _mask: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("Guard failed: (-1 + pixels.size()[3]) // 2 % 2 == 0")

    monkeypatch.setattr(exported, "write_onnx", lambda _model, path, *, padding: path.write_bytes(b"x"))
    monkeypatch.setattr(model_export, "_onnx_runner", lambda _path: guarded)

    with pytest.raises(RayDetrError, match=r"^torch \S+ exports this network for images of some sizes only \(Guard"):
        main(["--model", model, "--out", str(tmp_path / "model.onnx")])
    assert list(tmp_path.glob("*.onnx")) == list(tmp_path.glob(".*.onnx")) == []


def test_a_file_that_exists_and_a_wrong_suffix_are_refused(model: str, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_text("keep")

    with pytest.raises(UsageError, match=r"mine\.onnx exists already"):
        main(["--model", model, "--out", str(tmp_path / "mine.onnx")])
    with pytest.raises(UsageError, match=r"model.bin does not end in \.onnx"):
        main(["--model", model, "--out", str(tmp_path / "model.bin")])
    assert (tmp_path / "mine.onnx").read_text() == "keep"


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("file", "File exists"), ("file/new", "Not a directory"), ("long" * 99, "File name too long")],
)
def test_a_file_that_cannot_be_written_is_one_sentence(model: str, tmp_path: Path, folder: str, reason: str) -> None:
    (tmp_path / "file").write_text("a file")

    with pytest.raises(RayDetrError, match=rf"^cannot write .*/model\.onnx: {reason}\.$"):
        main(["--model", model, "--out", str(tmp_path / folder / "model.onnx")])


def test_a_program_on_a_full_disk_is_one_sentence(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "export_program", lambda _model, *, padding: padding)
    monkeypatch.setattr(torch.export, "save", lambda _program, file: file.write(bytes(200_000)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RayDetrError, match=r"^cannot write .*/new/model\.pt2: File too large\.$"):
            main(["--model", model, "--out", str(tmp_path / "new" / "model.pt2"), "--to", "pt2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_tilde_is_the_home_folder(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "model.onnx").touch()

    with pytest.raises(UsageError, match=r"home/model\.onnx exists already"):
        main(["--model", model, "--out=~/model.onnx"])


def test_without_the_packages_one_sentence_says_what_to_install(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    with pytest.raises(UsageError, match=r"needs onnxscript, which is not installed.*pip install 'ray-detr\[onnx\]'"):
        main(["--model", model, "--out", str(tmp_path / "model.onnx")])


def test_a_place_in_a_store_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--model", "scenes", "--out", "s3://bucket/scenes.onnx"])

    assert left.value.code == 2
    assert "--out: s3://bucket/scenes.onnx is not a path on this machine" in capsys.readouterr().err
