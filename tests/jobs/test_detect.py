import json
import re
import subprocess
import sys
import webbrowser
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from detr import Detr, DetrConfig, save
from detr.classes import Category
from detr.config import BackboneConfig
from jobs.detect import main
from jobs.exits import run
from jobs.progress import shown
from pipelines.errors import RayDetrError
from tests.pipelines.lake.archives import parquet_of_images, tar_of

ROOT = Path(__file__).parents[2]
TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 8, (8, 16), (1, 1), norm="batch"),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=16,
    queries=3,
    categories=(Category(3, "cat"), Category(7, "dog")),
    shorter=32,
    longest=64,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = Detr(TINY)
    network.class_embed.bias.data = torch.tensor([5.0, 0.0, 0.0])  # a cat with each of its three queries
    folder = tmp_path_factory.mktemp("models") / "pets"
    save(network, folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three of 48 x 32 pixels in two folders, a page that is not an image, and notes."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, grey in (("b.jpg", 80), ("a.png", 120), ("more/b.jpg", 160)):
        Image.new("RGB", (48, 32), (grey, grey, grey)).save(folder / name)
    (folder / "page.jpg").write_text("<!doctype html><html></html>")
    (folder / "notes.txt").write_text("mine")
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_detections_are_reported_in_the_words_of_the_model_card(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(photos / "a.png"), "--model", model])

    first, *lines = capsys.readouterr().out.splitlines()
    number = r"-?\d+\.\d{1,2}"
    assert first == f"{photos / 'a.png'}: 3 detections"
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(
            rf"Detected cat with confidence 0\.9\d\d? at location \[{number}, {number}, {number}, {number}\]", line
        )


def test_nothing_above_the_threshold_is_told_too(photos: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(photos / "a.png"), "--model", model, "--threshold", "1"])

    assert capsys.readouterr().out == f"{photos / 'a.png'}: 0 detections\n"


def test_images_come_in_the_order_given_those_of_folders_by_name_and_others_go_on_after_an_unreadable_one(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(photos / "more" / "b.jpg"), str(photos), "--model", model, "--threshold", "1"])

    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        str(photos / name) for name in ("more/b.jpg", "a.png", "b.jpg")
    ]
    assert err.startswith(f"  loading the model\ncannot read {photos / 'page.jpg'}: not_an_image: ")
    assert err.count("\n") == 2


def test_images_inside_local_files_are_read_by_their_addresses(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = (photos / "a.png").read_bytes()
    (photos / "a.tar").write_bytes(tar_of({"cats/1.png": picture}))
    (photos / "b.parquet").write_bytes(parquet_of_images([picture]))
    monkeypatch.chdir(photos.parent)

    main(["photos/a.tar#/cats/1.png", f"{photos}/b.parquet#/image/000000000", "--model", model])

    first, *_, second = [line for line in capsys.readouterr().out.splitlines() if "detections" in line]
    assert first == "photos/a.tar#/cats/1.png: 3 detections"
    assert second == f"{photos}/b.parquet#/image/000000000: 3 detections"


def test_pictures_are_drawn_beside_each_other_and_never_over_the_images(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}

    main([str(photos), "--model", model, "--draw", str(photos)])

    assert {path: path.read_bytes() for path in before} == before
    drawn = sorted(path.name for path in photos.iterdir() if path.is_file() and path not in before)
    assert drawn == ["a.jpg", "b-2.jpg", "b-3.jpg"]
    assert [size_of(photos / name) for name in drawn] == [(48, 32)] * 3
    assert [line for line in capsys.readouterr().out.splitlines() if "drawn" in line] == [
        f"{photos / image}: 3 detections, drawn in {photos / name}"
        for image, name in (("a.png", "a.jpg"), ("b.jpg", "b-2.jpg"), ("more/b.jpg", "b-3.jpg"))
    ]


def test_no_other_file_is_written_over_whatever_its_address(photos: Path, model: str) -> None:
    (photos / "a.jpg").write_bytes(b"of a camera, beside a.png")
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}

    main([f"file://{photos}/b.jpg", str(photos / "a.png"), "--model", model, "--draw", str(photos)])

    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in photos.iterdir() if path not in before and path.is_file()) == [
        "a-2.jpg",
        "b-2.jpg",
    ]


def test_a_folder_is_not_detected_with_the_pictures_that_were_drawn_in_it(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for _ in range(2):
        main([str(photos), "--model", model, "--draw", str(photos / "drawn")])
        printed.append(capsys.readouterr().out)

    assert sorted(path.name for path in (photos / "drawn").iterdir()) == ["a.jpg", "b-2.jpg", "b.jpg"]
    assert printed[0] == printed[1]


@pytest.mark.parametrize("failure", [FloatingPointError("NaN in fp16"), torch.OutOfMemoryError("cuda has too little")])
def test_what_the_device_cannot_do_is_a_sentence(
    failure: Exception, photos: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr.detector.Detector.__call__", Mock(side_effect=failure))

    with pytest.raises(RayDetrError, match=rf"a\.png: {failure}"):
        main([str(photos / "a.png"), "--model", model])


def test_the_same_command_again_replaces_its_pictures(photos: Path, model: str, tmp_path: Path) -> None:
    for _ in range(2):
        main(
            [str(photos / "a.png"), str(photos / "b.jpg"), "--model", model, "--draw", str(tmp_path / "new" / "drawn")]
        )

    assert sorted(path.name for path in (tmp_path / "new" / "drawn").iterdir()) == ["a.jpg", "b.jpg"]


def test_open_gives_each_drawn_picture_to_the_viewer(
    photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.chdir(tmp_path)

    main([str(photos), "--model", model, "--draw", "drawn", "--open"])

    assert opened == [f"file://{tmp_path}/drawn/{name}" for name in ("a.jpg", "b.jpg", "b-2.jpg")]


def test_of_many_pictures_eight_are_opened(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or True)
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    folder, drawn = tmp_path / "photos", tmp_path / "drawn"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (24, 16)).save(folder / f"{number}.png")

    main([str(folder), "--model", model, "--draw", str(drawn), "--open"])

    assert opened == [f"file://{drawn}/{number}.jpg" for number in range(8)]
    assert capsys.readouterr().err.endswith(f"note: 8 of 10 pictures were opened; all are in {drawn}\n")


@pytest.mark.parametrize(
    ("display", "options", "sentence"),
    [
        (":0", ["--open"], "--open opens the pictures of --draw: give --draw DIR as well"),
        ("", ["--draw", "drawn", "--open"], "this machine has no display (DISPLAY, WAYLAND_DISPLAY and BROWSER are"),
    ],
)
def test_open_without_pictures_or_display_is_refused_before_the_model_is_loaded(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    display: str, options: list[str], sentence: str,
) -> None:  # fmt: skip
    for name in ("WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", display)

    with pytest.raises(SystemExit) as left:
        main([str(photos / "a.png"), "--model", "/not/looked/at", *options])

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("status", "code"), [(0, 0), (3, 1)])
def test_the_command_in_browser_gets_the_address_and_its_failure_is_reported(
    tmp_path: Path, status: int, code: int
) -> None:
    viewer, seen = tmp_path / "viewer", tmp_path / "seen"
    viewer.write_text(f'#!/bin/sh\necho "$1" > {seen}\nexit {status}\n')
    viewer.chmod(0o755)
    program = (
        "import sys; from pathlib import Path; from jobs._viewer import open_pictures; open_pictures([Path('a b.jpg')])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/nonexistent", "BROWSER": f"{viewer} %s", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert seen.read_text() == f"file://{tmp_path}/a%20b.jpg\n"
    assert done.returncode == code
    assert ("no program opened a b.jpg. The picture is written" in done.stderr) == bool(code)


def test_json_is_a_line_per_image_the_unreadable_ones_included(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(photos / "page.jpg"), str(photos / "a.png"), "--model", model, "--json"])

    page, image = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (page["image"], page["error_kind"]) == (str(photos / "page.jpg"), "not_an_image")
    assert (image["image"], image["height"], image["width"]) == (str(photos / "a.png"), 32, 48)
    assert [(one["label"], one["category_id"]) for one in image["detections"]] == [("cat", 3)] * 3
    assert len(image["detections"][0]["box"]) == 4


@pytest.mark.parametrize(("name", "code"), [("PHOTOS/page.jpg", 2), ("http://127.0.0.1:9/a.jpg", 1)])
def test_no_image_at_all_is_wrong_use_unless_a_store_is_the_reason(
    photos: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
) -> None:
    monkeypatch.setattr("pipelines.store.web.RETRY_SECONDS", 0.1)

    with pytest.raises(SystemExit) as left:
        run(main, [name.replace("PHOTOS", str(photos)), "--model", model])

    assert left.value.code == code
    assert capsys.readouterr().err.endswith("error: the image could not be read.\n")


def test_pictures_are_not_drawn_into_a_file(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(photos / "a.png"), "--model", "/not/looked/at", "--draw", str(photos / "a.png")])

    assert left.value.code == 2
    assert f"--draw {photos}/a.png is a file: give a folder" in capsys.readouterr().err


def test_the_address_of_a_local_folder_means_its_images(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spaced = photos.rename(photos.parent / "with space")

    main([f"file://{spaced}", "--model", model, "--json"])

    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(one["image"]).name for one in results] == ["a.png", "b.jpg", "b.jpg", "page.jpg"]
    with pytest.raises(SystemExit):
        main([f"file://{spaced}/nowhere", "--model", model])
    assert f"there is no file file://{spaced}/nowhere" in capsys.readouterr().err


def test_a_large_image_is_looked_at_tile_by_tile_and_a_small_one_as_before(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(name: str, *more: str) -> dict[str, Any]:
        main([str(photos / name), "--model", model, "--json", *more])
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    Image.new("RGB", (400, 64), (90, 90, 90)).save(photos / "wide.png")
    wide, tiled = found("wide.png"), found("wide.png", "--tiles", "64", "--overlap", "0")

    assert (tiled["height"], tiled["width"]) == (64, 400)
    assert len(tiled["detections"]) > len(wide["detections"]) == 3
    assert found("a.png", "--tiles", "64") == found("a.png")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: IMAGE"),
        (["PHOTOS/a.png", "nowhere.jpg"], "there is no file nowhere.jpg"),
        (["PHOTOS/empty"], "there is no image in the folder"),
        (["PHOTOS/a.png", "--threshold", "90"], "90 is not in 0..1"),
        (["PHOTOS/a.png", "--tiles", "640x"], "--tiles: '640x' is not SIZE or WIDTHxHEIGHT in pixels"),
        (["PHOTOS/a.png", "--tiles", "0"], "--tiles: 0 is too small; give sides of 64 pixels or more"),
        (["PHOTOS/a.png", "--tiles", "-640"], "--tiles: '-640' is not SIZE or WIDTHxHEIGHT in pixels"),
        (["PHOTOS/a.png", "--tiles", "640", "--overlap", "0.7"], "--overlap: 0.7 is not in 0..0.5"),
        (["PHOTOS/a.png", "--tiles", "640", "--overlap", "-0.1"], "--overlap: -0.1 is not in 0..0.5"),
        (["PHOTOS/a.png", "--overlap", "0.2"], "overlap: only tiles overlap; give their size with --tiles"),
        (["PHOTOS/a.png", "--device", "gpu"], "device: 'gpu' is not one of auto, cpu, cuda, cuda:N"),
    ],
)
def test_wrong_use_is_refused_with_a_sentence_and_code_2(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    (photos / "empty").mkdir()
    (photos / "empty" / "notes.txt").write_text("mine")

    with pytest.raises(SystemExit) as left:
        main([*(word.replace("PHOTOS", str(photos)) for word in arguments), "--model", model])

    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert sentence in err


def test_an_invalid_model_stops_before_any_image(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RayDetrError, match=r"photos"):
        main([str(photos / "a.png"), "--model", str(photos)])

    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_stops_with_a_sentence(photos: Path, model: str) -> None:
    with pytest.raises(RayDetrError, match=r"cannot write the picture .*notes\.txt/new/a\.jpg: Not a directory"):
        main([str(photos / "a.png"), "--model", model, "--draw", str(photos / "notes.txt" / "new")])
    with pytest.raises(RayDetrError, match=r"cannot write to --draw .*: File name too long"):
        main([str(photos / "a.png"), "--model", model, "--draw", str(photos / ("long" * 99))])


def test_a_path_that_cannot_be_read_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["long" * 99, "--model", model])

    assert left.value.code == 2
    assert "cannot read longlong" in capsys.readouterr().err


def test_progress_is_reported_on_standard_error_while_results_go_to_a_file(
    photos: Path, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.progress.shown", partial(shown, line_seconds=0.0))
    with (tmp_path / "out").open("w") as out, redirect_stdout(out):
        main([str(photos), "--model", model])

    said = capfd.readouterr().err.splitlines()
    assert said[0] == "  loading the model"
    assert any(re.fullmatch(r"  detect  \d of 4 images", line) for line in said)
    assert (tmp_path / "out").read_text().count("3 detections") == 3
