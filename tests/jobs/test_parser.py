"""What the parser of a command accepts, how its usage reads, and which sentence follows a mistake."""

from __future__ import annotations

import pytest

from jobs.options import add_options
from jobs.parser import CommandParser
from pipelines.labelling.config import LabelConfig


def parser() -> CommandParser:
    made = CommandParser("some", "Some command.")
    add_options(made, LabelConfig)
    return made


def test_underscores_in_the_names_of_options_are_hyphens() -> None:
    line = "--images my_lake --table=my_table --model a_model --max_images 5 --shard_images=7"

    args = parser().parse_args(line.split())

    assert (args.images, args.table, args.model) == (["my_lake"], "my_table", "a_model")
    assert (args.max_images, args.shard_images) == (5, 7)


def test_a_list_option_that_is_given_again_adds_to_its_list() -> None:
    line = "--images a b --images c --table t --table u --model m --keep x --keep y"

    args = parser().parse_args(line.split())

    assert (args.images, args.keep, args.table) == (["a", "b", "c"], ["x", "y"], "u")
    made = CommandParser("some", "Some command.")
    made.add_argument("--scales", nargs="+", type=int, default=[480, 800])
    assert made.parse_args(["--scales", "1", "--scales", "2", "3"]).scales == [1, 2, 3]
    assert made.parse_args([]).scales == [480, 800]


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
