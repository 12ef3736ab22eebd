import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from jobs import train_scenes


@pytest.fixture(autouse=True)
def same_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "nice", lambda increment: increment)  # would last for all tests that follow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --out"),
        (["--minutes", "0"], "must be positive"),
        (["--export"], "checkpoint.safetensors does not exist: nothing to export"),
    ],
)
def test_a_command_that_cannot_be_obeyed_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if not arguments else ["--out", str(tmp_path)]

    with pytest.raises(SystemExit, match="2"):
        train_scenes.main([*out, *arguments])

    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_short_run_trains_measures_and_exports_and_is_finished_when_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--out", str(tmp_path), "--minutes", "0.005", "--scenes", "2"]

    train_scenes.main(command)

    said = capsys.readouterr().out
    assert "48 unseen scenes: AP 0.0" in said
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert sorted(config["id2label"].values()) == ["cross", "disc", "ring", "square", "star", "triangle"]
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        steps = json.loads(file.metadata()["progress"])["step"]
    assert steps >= 1

    train_scenes.main(command)
    assert f"resuming at step {steps}, 100.0%" in capsys.readouterr().out

    shutil.rmtree(tmp_path / "model")
    train_scenes.main([*command, "--export"])
    assert (tmp_path / "model" / "model.safetensors").exists()
