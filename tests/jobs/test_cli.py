import subprocess
import sys

import pytest

from jobs.cli import commands, main

HEAVY = {"torch", "torchvision", "ray", "pyarrow", "numpy", "PIL", "obstore", "fsspec", "boto3", "rich", "detr"}

SHOW_HELP = """
import contextlib, importlib, sys
with contextlib.suppress(SystemExit):
    importlib.import_module("jobs." + sys.argv[1]).main(["--help"])
print(sorted(name for name in sys.argv[2:] if name in sys.modules))
"""


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ray-detr", *words])
    main()


def test_every_file_of_a_command_is_a_command() -> None:
    assert {"detect", "evaluate", "label", "scenes"} <= set(commands())
    assert not {"cli", "exits", "options", "progress", "__init__"} & set(commands())


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    asked(monkeypatch, *words)

    out = capsys.readouterr().out
    assert out.startswith("usage: ray-detr COMMAND [OPTION ...]\ncommands: ")
    assert all(name.replace("_", "-") in out for name in commands())


@pytest.mark.parametrize("word", ["evaluate", "watch-preemption", "watch_preemption"])
def test_a_command_is_called_with_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(SystemExit) as left:
        asked(monkeypatch, word, "--help")

    assert left.value.code in (0, None)
    assert f"usage: jobs.{word.replace('-', '_')}" in capsys.readouterr().out


def test_a_mistyped_command_gets_a_suggestion_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        asked(monkeypatch, "evalute")

    assert left.value.code == 2
    assert capsys.readouterr() == ("", "ray-detr: 'evalute' is not a command. Did you mean 'evaluate'?\n")


def test_what_is_like_no_command_gets_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(monkeypatch, "zzz")

    assert "'zzz' is not a command. commands: " in capsys.readouterr().err


@pytest.mark.parametrize("command", commands())
def test_the_help_of_a_command_needs_nothing_heavy(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, command, *HEAVY], capture_output=True, text=True, check=True
    )

    assert f"usage: jobs.{command}" in done.stdout
    assert done.stdout.endswith("[]\n")
