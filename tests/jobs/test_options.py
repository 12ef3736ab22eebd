"""What the values of shared options mean, and what is refused."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import pytest

from jobs.options import (
    CommandParser,
    actor_range,
    add_model_options,
    add_source_options,
    check_stays,
    class_threshold,
    count,
    share,
)


def parser() -> CommandParser:
    made = CommandParser("some", "Some command.")
    add_source_options(made)
    add_model_options(made)
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


def test_underscores_in_the_names_of_options_are_hyphens() -> None:
    line = "--images my_lake --table=my_table --model a_model --max_images 5 --shard_images=7"

    args = parser().parse_args(line.split())

    assert (args.images, args.table, args.model) == (["my_lake"], "my_table", "a_model")
    assert (args.max_images, args.shard_images) == (5, 7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--treshold 5", "--treshold is not an option. Did you mean --threshold?"),
        ("--endpont=x", "--endpont is not an option. Did you mean --endpoint?"),
        ("--max_imags 5", "--max-imags is not an option. Did you mean --max-images?"),
        ("--xyzzy", "--xyzzy is not an option. ray-detr some --help lists the options."),
    ],
)
@pytest.mark.parametrize("before", [[], ["--images", "i", "--table", "t", "--model", "m"]])
def test_an_unknown_option_is_one_line_with_the_nearest_option(
    capsys: pytest.CaptureFixture[str], before: list[str], line: str, message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args([*before, *line.split()])

    assert left.value.code == 2
    assert capsys.readouterr() == ("", f"ray-detr some: error: {message}\n")


def test_what_follows_two_hyphens_is_not_taken_for_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    made = CommandParser("some", None, usage="--slot NAME -- COMMAND")
    made.add_argument("--slot", required=True)
    made.add_argument("command", nargs="+", metavar="COMMAND")

    with pytest.raises(SystemExit):
        made.parse_args(["--", "label", "--imagess", "lake"])

    assert capsys.readouterr().err.endswith("error: the following arguments are required: --slot\n")
    assert made.format_usage() == "usage: ray-detr some --slot NAME -- COMMAND\n"


@pytest.mark.parametrize(
    ("typed", "program"),
    [
        ("/usr/bin/ray-detr", "ray-detr watch-preemption"),
        ("/code/jobs/watch_preemption.py", "python -m jobs.watch_preemption"),
        ("/code/jobs/cli.py", "ray-detr watch-preemption"),
    ],
)
def test_the_usage_names_the_program_that_was_typed(monkeypatch: pytest.MonkeyPatch, typed: str, program: str) -> None:
    monkeypatch.setattr("sys.argv", [typed, "--help"])

    assert CommandParser("watch-preemption", None).format_usage() == f"usage: {program} [OPTION ...]\n"


def test_the_usage_has_what_is_required_and_nothing_else() -> None:
    made = CommandParser("some", None)
    made.add_argument("mode", choices=("fast", "slow"))
    made.add_argument("--out", required=True, metavar="DIR")
    one = made.add_mutually_exclusive_group(required=True)
    one.add_argument("--table", metavar="URI")
    one.add_argument("--share", metavar="100%")
    made.add_argument("--seed")

    usage = "usage: ray-detr some {fast,slow} --out DIR (--table URI | --share 100%) [OPTION ...]\n"
    assert made.format_usage() == usage
    assert made.format_help().startswith(usage)


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
def test_what_is_no_share_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=sentence):
        share(text)


def test_a_count_is_a_whole_number_from_1_on() -> None:
    assert count("2048") == 2048
    for text, sentence in (("0", "0 is less than 1"), ("-5", "-5 is"), ("1.5", "'1.5' is not a number"), ("", "''")):
        with pytest.raises(argparse.ArgumentTypeError, match=sentence):
            count(text)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("2:8", (2, 8)), ("4", (4, 4)), ("2:", (2, None)), (":8", (None, 8)), ("3:3", (3, 3)), (":", (None, None))],
)
def test_a_range_of_actors(text: str, bounds: tuple[int | None, int | None]) -> None:
    assert actor_range(text) == bounds


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("8:2", "8:2: MIN is larger than MAX"),
        ("0:2", "0 is less than 1"),
        ("a:b", "'a' is not a number"),
        ("1:2:3", "'2:3' is not"),
    ],
)
def test_what_is_no_range_of_actors_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=sentence):
        actor_range(text)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("cat", ("cat", None)),
        ("cat=0.5", ("cat", 0.5)),
        ("traffic light=0", ("traffic light", 0.0)),
        ("a=b=0.25", ("a=b", 0.25)),
    ],
)
def test_a_class_may_have_its_own_threshold(text: str, meaning: tuple[str, float | None]) -> None:
    assert class_threshold(text) == meaning


def test_a_threshold_that_is_none_is_refused() -> None:
    for text, sentence in (("cat=2", "2 is not in"), ("cat=high", "'high'"), ("cat=", "''")):
        with pytest.raises(argparse.ArgumentTypeError, match=sentence):
            class_threshold(text)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--table t --model m", "required: --images"),
        ("--images i --model m", "required: --table"),
        ("--images i --table t", "required: --model"),
        ("--images i --table t --model m --max-images 5 --sample 5", "not allowed with argument"),
        ("--images i --table t --model m --precision int8", "invalid choice: 'int8'"),
        ("--images i --table t --model m --threshold 5", "5 is not in 0..1"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], line: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(line.split())

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


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
