"""What `ray-detr repeats` prints, records and refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import exits
from jobs.repeats import main
from tests.pipelines.repeats.fixed_camera import picture_rows, publish

Run = Callable[..., str]


@pytest.fixture
def table(tmp_path: Path) -> str:
    place = str(tmp_path / "table")
    publish(place, picture_rows("/no such lake/cam1/", 20))
    return place


@pytest.fixture
def run(table: str, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> str:
        main(["--table", table, *map(str, words)])
        return capfd.readouterr().out

    return call


def selection_of(page: Path) -> dict[str, object]:
    """Return what the page's button downloads when nothing is unticked."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    return {**data["head"], "accepted": data["places"]}


def test_from_the_page_to_marks_and_back(run: Run, tmp_path: Path, table: str) -> None:
    page, file = tmp_path / "repeats.html", tmp_path / "repeats.json"
    assert run("--out", page).splitlines() == [
        "found: 2 places with 40 detections, of 20 images",
        f"page: {page}, 0.0 MB",
        f"then: ray-detr repeats --table {table} --accept repeats.json",
    ]
    file.write_text(json.dumps(selection_of(page)))
    assert run("--accept", file) == "accepted: 2 marks, in _marks/0001.json; the table has 2\n"
    assert run("--accept", file) == "accepted: 0 marks, 2 accepted before; the table has 2\n"
    listed = run().splitlines()
    assert listed[0].split() == ["id", "images", "class", "xmin,", "ymin,", "xmax,", "ymax", "folder"]
    assert [line.split()[1:3] + line.split("  ")[-1:] for line in listed[2:]] == [
        ["20", "animal", "/no such lake/cam1/"]
    ] * 2
    first = listed[2].split()[0]
    assert run("--withdraw", first) == "withdrew: 1 mark, in _marks/0002.json; the table has 1\n"
    assert run("--withdraw", file) == "withdrew: 1 mark, 1 withdrawn before, in _marks/0003.json; the table has 0\n"
    assert run() == "the table has no marks. --out FILE writes a page to accept some.\n"


def test_all_at_once_and_again_with_nothing_left(run: Run, tmp_path: Path) -> None:
    assert run("--accept-all") == (
        "found: 2 places with 40 detections, of 20 images\n"
        "accepted: 2 marks, in _marks/0001.json; the table has 2\n"
    )  # fmt: skip
    assert (
        run("--accept-all", "--json")
        == '{\n  "number": null,\n  "changed": 0,\n  "unchanged": 0,\n  "in_force": 2\n}\n'
    )
    assert [mark["images"] for mark in json.loads(run("--json"))] == [20, 20]
    assert run("--out", tmp_path / "page.html").startswith(
        "no place repeats: no place has the same class in 15 images of a folder and in 0.5 % of them (--least-images, "
        "--least-share), of 20 images; 40 detections are marked already"
    )
    summary = json.loads(run("--out", tmp_path / "page.html", "--json"))
    assert (summary["places"], summary["marked_before"]) == (0, 40)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"kind": "other"},
            "is not a file of the page that `ray-detr repeats --out` writes: its field `kind` has another value",
        ),
        ({"version": 2}, "is of version 2, and this release reads 1"),
        ({"table": "s3://other/table"}, "was made for the table s3://other/table, but this is file://"),
        ({"accepted": 7}, "it has no list `accepted`"),
        ({"accepted": [{"id": "x"}]}, "a mark has no valid 'folder'"),
        (None, "it is not an object"),
    ],
)
def test_a_file_of_something_else_is_refused(
    run: Run,
    tmp_path: Path,
    table: str,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, object] | None,
    sentence: str,
) -> None:
    run("--out", tmp_path / "page.html")
    file = tmp_path / "repeats.json"
    file.write_text("[1]" if change is None else json.dumps({**selection_of(tmp_path / "page.html"), **change}))

    with pytest.raises(SystemExit) as left:
        exits.run(main, ["--table", table, "--accept", str(file)])
    assert left.value.code == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "table" / "_marks").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--accept", "/no/such.json"), "/no/such.json does not exist. Download it again"),
        (("--withdraw", "0123456789ab"), "never had the mark 0123456789ab"),
        (("--out", "a.html", "--accept-all"), "not allowed with argument"),
        (("--accept-all", "--iou", "0.1"), "0.1 is not in 0.3..1"),
        (("--accept-all", "--least-images", "1"), "1 is not at least 2"),
        (("--iou", "0.5"), "--iou applies only to --out and --accept-all"),
        (("--withdraw", "0123456789ab", "--classes", "dog"), "--classes applies only to --out and --accept-all"),
        (("--accept-all", "--pictures", "3"), "--pictures applies only to --out"),
    ],
)
def test_wrong_use_is_refused(
    table: str, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SystemExit) as left:
        exits.run(main, ["--table", table, *words])
    assert left.value.code == 2
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize("words", [(), ("--accept-all",), ("--withdraw", "0123456789ab"), ("--accept", "a.json")])
def test_a_table_without_rows_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as left:
        exits.run(main, ["--table", str(tmp_path / "nothing"), *words])
    assert left.value.code == 2
    assert "has no published rows" in capfd.readouterr().err
