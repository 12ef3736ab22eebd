import re
import subprocess
import sys
from importlib import metadata

import pytest

from jobs.cli import commands, dispatch, overview, versions
from jobs.exits import run

HEAVY = {"torch", "torchvision", "ray", "pyarrow", "numpy", "PIL", "obstore", "fsspec", "boto3", "rich"}

SHOW_HELP = """
import contextlib, importlib, sys
with contextlib.suppress(SystemExit):
    importlib.import_module("jobs." + sys.argv[1]).main(["--help"])
print(sorted(name for name in sys.argv[2:] if name in sys.modules))
"""

SHOW_VERSION = """
import sys, time
from jobs.cli import dispatch
names, sys.argv[1:] = sys.argv[1:], ["--version"]
before = time.process_time()
dispatch()
seconds = time.process_time() - before
print(sorted(name for name in names if name in sys.modules))
print(seconds)
"""


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ray-detr", *words])
    run(dispatch, words)


def test_every_file_of_a_command_is_a_command() -> None:
    assert {"detect", "evaluate", "label", "scenes"} <= set(commands())
    assert not {"cli", "exits", "options", "progress", "__init__"} & set(commands())


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    asked(monkeypatch, *words)

    out = capsys.readouterr().out
    assert out.startswith("usage: ray-detr COMMAND [OPTION ...]\n")
    assert "\n  label             Detect objects in images and write one table row for each image.\n" in out
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and "--" not in line[:6]]
    assert listed == [name.replace("_", "-") for name in commands()]


@pytest.mark.parametrize("command", commands())
def test_each_command_has_one_short_line_in_the_overview(command: str) -> None:
    name = command.replace("_", "-")
    [line] = [line for line in overview().splitlines() if line.split()[:1] == [name]]

    assert len(line) <= 120
    assert line.endswith(".")


def test_help_with_a_command_prints_its_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(monkeypatch, "help", "label")
    helped = capsys.readouterr().out
    with pytest.raises(SystemExit):
        asked(monkeypatch, "label", "--help")

    assert helped == capsys.readouterr().out
    assert helped.startswith("usage: ray-detr label --images URI [URI ...] --table URI --model REF [OPTION ...]\n")


def test_the_version_names_what_a_report_needs_and_imports_none_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW_VERSION, *HEAVY], capture_output=True, text=True, check=True, timeout=20
    )

    line, imported, seconds = done.stdout.splitlines()
    pattern = r"ray-detr [\d.]+, Python 3\.\d+\.\d+, torch [\d.]+\S*, CUDA ([\d.]+|none), Ray [\d.]+"
    assert re.fullmatch(pattern, line)
    assert imported == "[]"
    assert float(seconds) < 0.5


def test_what_is_not_installed_is_named_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", nothing)

    assert versions().startswith("ray-detr (not installed), Python 3.")
    assert versions().endswith(", torch (not installed), CUDA none, Ray (not installed)")


@pytest.mark.parametrize("word", ["evaluate", "watch-preemption", "watch_preemption"])
def test_a_command_is_called_with_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(SystemExit) as left:
        asked(monkeypatch, word, "--help")

    assert left.value.code in (0, None)
    assert f"usage: ray-detr {word.replace('_', '-')} " in capsys.readouterr().out


def test_a_mistyped_command_gets_a_suggestion_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        asked(monkeypatch, "evalute")

    assert left.value.code == 2
    assert capsys.readouterr() == ("", "ray-detr: 'evalute' is not a command. Did you mean 'evaluate'?\n")


def test_a_word_that_resembles_no_command_is_told_where_they_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(monkeypatch, "zzz")

    assert "'zzz' is not a command. ray-detr --help lists the commands." in capsys.readouterr().err


@pytest.mark.parametrize("command", commands())
def test_the_help_of_a_command_needs_nothing_heavy(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, command, *HEAVY], capture_output=True, text=True, check=True
    )

    assert f"usage: ray-detr {command.replace('_', '-')} " in done.stdout
    assert done.stdout.endswith("[]\n")
