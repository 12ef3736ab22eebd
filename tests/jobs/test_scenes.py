import subprocess
import sys
from pathlib import Path

import pytest

from jobs.scenes import main
from pipelines.errors import RayDetrError


def test_the_command_writes_the_scenes_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "set"

    main(["--out", str(out), "--count", "2", "--seed", "4"])

    assert sorted(path.name for path in out.iterdir()) == [
        "instances.json", "scene_4_000000.jpg", "scene_4_000001.jpg",
    ]  # fmt: skip
    assert (
        capsys.readouterr().out == f"2 scenes of seed 4 are in {out}, their annotations in {out / 'instances.json'}\n"
    )


def test_the_same_command_again_is_content_with_what_it_finds(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--count", "1"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    main(["--out", str(tmp_path), "--count", "1"])

    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--out"),
        (["--out", "OUT", "--count", "0"], "cannot write 0 scenes of seed 0: give 1 to 1,000,000 scenes"),
        (["--out", "OUT", "--count", "2", "--seed", "-1"], "cannot write 2 scenes of seed -1"),
        (["--out", "OUT", "--count", "many"], "argument --count: invalid int value: 'many'"),
        (["--out", "FULL"], "FULL contains notes.txt, which does not belong to these scenes"),
    ],
)
def test_wrong_use_is_refused_with_a_sentence_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "notes.txt").write_text("mine")

    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["FULL", "notes.txt"]


def test_a_folder_that_cannot_be_made_stops_the_command_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(
        RayDetrError, match=r"cannot write scenes to .*/file/set: .*Not a directory.*Run the same command again"
    ):
        main(["--out", str(tmp_path / "file" / "set"), "--count", "1"])


def test_help_needs_neither_numpy_nor_torch() -> None:
    script = """
import contextlib, sys
from jobs.scenes import main
with contextlib.suppress(SystemExit):
    main(["--help"])
print(sorted({"numpy", "torch", "PIL", "ray"} & set(sys.modules)))
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "usage: ray-detr scenes --out DIR " in done.stdout
    assert done.stdout.endswith("[]\n")
