"""What the demo may delete; that it runs is `make demo`'s to show."""

from pathlib import Path

import pytest

from jobs.demo import main
from pipelines.errors import RayDetrError


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
