"""Options that configurations declare, what the values of single options mean, and what is refused."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest

from jobs.options import add_options, check_can_be_written, check_stays, count, make_config, share
from jobs.parser import CommandParser
from pipelines.labelling.config import LabelConfig
from pipelines.options import check_options, group, option

SOME = (
    "images", "table", "model", "threshold", "precision", "shard_images", "max_images", "sample", "seed", "keep",
    "image_column", "image_options", "table_access",
)  # fmt: skip


def parser() -> CommandParser:
    made = CommandParser("some", "Some command.")
    add_options(made, LabelConfig, only=SOME)
    return made


def test_what_is_left_out_has_its_default() -> None:
    args = parser().parse_args(["--images", "lake", "--table", "tab", "--model", "scenes"])

    assert vars(args) == {
        "images": ["lake"],
        "table": "tab",
        "model": "scenes",
        "threshold": 0.05,
        "precision": "auto",
        "shard_images": None,
        "max_images": None,
        "sample": None,
        "seed": 0,
        "keep": [],
        "image_column": None,
        "via": "auto",
        "anonymous": False,
        "endpoint": None,
        "region": None,
        "profile": None,
        "request_payer": False,
        "table_endpoint": None,
        "table_region": None,
        "table_profile": None,
    }


def test_options_that_take_several_values_take_them_in_one_go() -> None:
    line = "--images a b/*.jpg s3://c/d --table t --model m --keep station metres --sample 5 --seed -3"

    args = parser().parse_args(line.split())

    assert args.images == ["a", "b/*.jpg", "s3://c/d"]
    assert args.keep == ["station", "metres"]
    assert (args.sample, args.seed) == (5, -3)


@dataclass(frozen=True, slots=True)
class Where:
    """A group of options."""

    server: str | None = option("address of the server (none)", default=None, metavar="URL")


@dataclass(frozen=True, slots=True)
class Cooking:
    """A configuration that uses every way to declare an option."""

    dish: str = option("name of the dish")
    minutes: int = option("how long 100 % of it takes", default=5, metavar="N", at_least=1, at_most=90)
    spice: float = option("grams of spice", default=0.5, above=0)
    style: Literal["fried", "boiled"] = option("how it is cooked", default="fried")
    herbs: tuple[str, ...] = option("herbs to add (none)", default=())
    sizes: tuple[int, int] = option("width and height", default=(1, 2), parse=lambda text: tuple(map(int, text)))
    vegan: bool = option("without meat", default=False)
    lid: bool = option("with a lid", default=True)
    notes: str = "not an option"
    kitchen: Where = group(Where)
    table: Where = group(Where, prefix="table_")

    def __post_init__(self) -> None:
        check_options(self)


def cook(*line: str) -> Cooking:
    made = CommandParser("cook", None)
    add_options(made, Cooking)
    return make_config(made, Cooking, made.parse_args(["--dish", "soup", *line]))


def test_a_configuration_follows_from_its_declared_options() -> None:
    line = "--minutes 90 --spice 2 --style boiled --herbs dill mint --sizes 34 --vegan --no-lid --server a"

    assert cook() == Cooking("soup")
    assert cook(*line.split(), "--table-server", "b") == Cooking(
        "soup", 90, 2.0, "boiled", ("dill", "mint"), (3, 4), True, False, "not an option", Where("a"), Where("b")
    )


def test_the_help_has_choices_percent_signs_and_defaults() -> None:
    made = CommandParser("cook", None)
    add_options(made, Cooking)
    text = " ".join(made.format_help().split())

    assert "--dish DISH name of the dish --minutes N how long 100 % of it takes (5)" in text
    assert "--style {fried,boiled} how it is cooked (fried) --herbs HERBS [HERBS ...] herbs to add (none)" in text
    assert "--vegan without meat --lid, --no-lid with a lid (True)" in text
    assert "grams of spice (0.5)" in text
    assert made.format_usage() == "usage: ray-detr cook --dish DISH [OPTION ...]\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--minutes 0", "--minutes: 0 is not in 1..90"),
        ("--minutes soon", "--minutes: 'soon' is not a number"),
        ("--minutes 1.5", "--minutes: '1.5' is not a number"),
        ("--spice 0", "--spice: 0 is not above 0"),
        ("--spice nan", "--spice: nan is not above 0"),
        ("--style raw", "--style: invalid choice: 'raw'"),
        ("--sizes x", "--sizes: invalid literal"),
    ],
)
def test_values_beyond_the_limits_are_refused_by_the_command_line(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cook(*line.split())

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_what_a_configuration_refuses_ends_a_command_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    made = CommandParser("label", None)
    add_options(made, LabelConfig)
    args = made.parse_args(["--images", "i", "--table", "t", "--model", "m", "--max-images", "5", "--sample", "5"])

    with pytest.raises(SystemExit) as left:
        make_config(made, LabelConfig, args)

    assert left.value.code == 2
    assert "max images and sample exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1", 1.0), ("0.05", 0.05), ("5e-2", 0.05)])
def test_a_share_is_a_number_from_0_to_1(text: str, value: float) -> None:
    assert share(text) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1.01", "1.01 is not in 0..1"),
        ("-0.1", "-0.1 is"),
        ("nan", "nan is not in"),
        ("half", "'half' is not a number"),
    ],
)
def test_an_invalid_share_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=sentence):
        share(text)


def test_a_count_is_a_whole_number_from_1_on() -> None:
    assert count("2048") == 2048
    for text, sentence in (("0", "0 is less than 1"), ("-5", "-5 is"), ("1.5", "'1.5' is not a number"), ("", "''")):
        with pytest.raises(argparse.ArgumentTypeError, match=sentence):
            count(text)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--table t --model m", "required: --images"),
        ("--images i --model m", "required: --table"),
        ("--images i --table t", "required: --model"),
        ("--images i --table t --model m --precision int8", "invalid choice: 'int8'"),
        ("--images i --table t --model m --threshold 5", "5 is not in 0..1"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], line: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(line.split())

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("report", "--table t --out s3://bucket/report.html"),
        ("query", "--table t --out s3://bucket/rows.csv SELECT"),
        ("repeats", "--table t --out s3://bucket/page.html"),
        ("label", "--images i --table t --model scenes --report s3://bucket/report.html"),
        ("detect", "a.jpg --draw s3://bucket/drawn"),
        ("evaluate", "--table t --annotations a.json --plot s3://bucket/curves.png"),
        ("panoptic", "a.jpg --out s3://bucket/out"),
        ("train", "--train s --storage r --name n --finetune m --report s3://bucket/training.html"),
        ("scenes", "--out s3://bucket/scenes"),
    ],
)
def test_an_address_of_a_store_is_refused_where_a_path_is_needed(
    command: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        import_module(f"jobs.{command}").main(line.split())

    assert left.value.code == 2
    assert "is not a path on this machine" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for fits in (tmp_path / "file", tmp_path / "new" / "folder" / "page.html", Path("/dev/null"), None):
        check_can_be_written(parser(), "--out", fits)

    refused = {
        tmp_path: "is a folder: name a file",
        tmp_path / "file" / "page.html": f"cannot be written: {tmp_path / 'file'} is not a folder",
    }
    for file, reason in refused.items():
        with pytest.raises(SystemExit):
            check_can_be_written(parser(), "--out", file)
        assert f"error: --out {file} {reason}\n" in capsys.readouterr().err

    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(SystemExit):
        check_can_be_written(parser(), "--out", tmp_path / "new" / "page.html")
    assert f"permission denied in the folder {tmp_path}\n" in capsys.readouterr().err
    check_can_be_written(parser(), "--output", tmp_path / "file", in_place=True)
    with pytest.raises(SystemExit):
        check_can_be_written(parser(), "--out", tmp_path / "file")
    with pytest.raises(SystemExit):
        check_can_be_written(parser(), "--output", tmp_path / "other", in_place=True)
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) == tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        check_can_be_written(parser(), "--output", tmp_path / "file", in_place=True)
    assert f"--output {tmp_path / 'file'} cannot be written: permission denied\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "label --images lake --table table --model scenes --report",
        "train --train shards --storage runs --name first --report",
        "report --table table --out",
        "report --training run --out",
        "repeats --table table --out",
    ],
)
def test_every_command_that_writes_a_page_at_its_end_refuses_a_folder_first(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        import_module(f"jobs.{line.split()[0]}").main([*line.split()[1:], str(tmp_path)])

    assert left.value.code == 2
    assert f"{tmp_path} is a folder: name a file" in capsys.readouterr().err


def test_a_file_in_place_of_the_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table").touch()

    with pytest.raises(SystemExit):
        import_module("jobs.label").main(["--images", "lake", "--table", str(tmp_path / "table"), "--model", "scenes"])

    assert f"--table {tmp_path / 'table'} is a file: give a folder" in capsys.readouterr().err


def test_a_relative_place_in_the_folder_of_a_ray_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = CommandParser("x", None)
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    check_stays(parser, "--table", "table")
    monkeypatch.chdir(folder)
    for uri in ("/data/table", "s3://lake/table", f"file://{tmp_path}/table", None):
        check_stays(parser, "--table", uri)

    for uri in ("table", "file:table", str(folder / "table")):
        with pytest.raises(SystemExit) as left:
            check_stays(parser, "--table", uri)
        assert left.value.code == 2
        assert f"--table {uri}: the job runs in a temporary folder of Ray ({folder})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("label", "--images /x --model scenes --table table"),
        ("shard", "--annotations /x --images /x --out shards"),
        ("train", "--train /x --name n --recipe scenes --storage runs"),
        ("export", "--table /x --out rows"),
        ("query", "--table /x --out rows.csv SQL"),
        ("evaluate", "--table /x --annotations /x --output figures.json"),
        ("evaluate", "--model scenes --images /x --annotations /x --keep-table table"),
        ("evaluate", "--table /x --annotations /x --plot curve.png"),
        ("detect", "/x --draw drawn"),
    ],
)
def test_every_command_that_writes_refuses_such_a_place(
    command: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)

    with pytest.raises(SystemExit) as left:
        import_module(f"jobs.{command}").main(line.split())
    assert left.value.code == 2
    assert not list(folder.iterdir())
