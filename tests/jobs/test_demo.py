"""The demo: what it may delete, and that it ends with a page."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.demo import main
from pipelines.errors import RayDetrError

ROOT = Path(__file__).parents[2]


def test_a_folder_that_the_demo_did_not_make_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph = tmp_path / "images" / "holiday.jpg"
    photograph.parent.mkdir()
    photograph.write_bytes(b"a photograph")

    with pytest.raises(SystemExit) as left:
        main(["--out", str(tmp_path)])

    assert left.value.code == 2
    assert "was not made by this command" in capsys.readouterr().err
    assert photograph.read_bytes() == b"a photograph"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").write_text("a file")

    with pytest.raises(SystemExit) as left:
        main(["--out", str(tmp_path / "demo")])

    assert left.value.code == 2


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")

    with pytest.raises(RayDetrError, match=r"cannot write to --out .*/file/demo: Not a directory\.$"):
        main(["--out", str(tmp_path / "file" / "demo")])
    with pytest.raises(RayDetrError, match=r"cannot write to --out .*: File name too long\.$"):
        main(["--out", str(tmp_path / ("long" * 99))])


def test_scenes_for_which_the_disk_has_no_room_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("detr.scenes.files._write", no_room)

    with pytest.raises(RayDetrError, match=r"cannot write to --out .*demo: No space left on device\.$"):
        main(["--out", str(tmp_path / "demo"), "--count", "1"])


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_demo_ends_with_a_page_and_prints_where_it_is(tmp_path: Path) -> None:
    # in a process of its own, because in this one Ray may be connected, with the GPUs that another test pretends
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    line = [sys.executable, "-m", "jobs.demo", "--out", str(tmp_path / "demo"), "--count", "4"]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)

    page = tmp_path / "demo" / "report.html"
    assert done.returncode == 0, done.stderr
    assert f"report: {page}" in done.stdout.splitlines()
    html = page.read_text()
    assert "<dt>images</dt><dd>4</dd>" in html
    assert "Against annotations" in html
    assert len(list((tmp_path / "demo" / "pictures").iterdir())) == 4
