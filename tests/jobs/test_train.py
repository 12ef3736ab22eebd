"""The training command: what a line asks for, what is refused, and what is printed in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.exits import run
from jobs.train import main, progress_line, report, shown_training
from pipelines.caps import Caps
from pipelines.cluster import silenced
from pipelines.errors import RayDetrError
from pipelines.report.config import TrainingReportConfig
from pipelines.report.training import TrainingReportSummary
from pipelines.store import StoreOptions
from pipelines.training.config import TrainConfig
from pipelines.training.recipe import RECIPES
from pipelines.training.run_status import TrainProgress
from pipelines.training.train import TrainSummary

ROOT = Path(__file__).parents[2]
BASE = ("--train", "s3://data/train", "--storage", "s3://runs", "--name", "first")
SUMMARY = TrainSummary(
    run="s3://runs/first", model="s3://runs/first/model", checkpoint="000000900-a-1", epochs=3, steps=900,
    metrics={"AP": 0.4206, "AP50": 0.624, "AP75": 0.4, "APs": -1.0, "APm": 0.5, "APl": 0.6, "AR1": 0.3, "images": 9},
    starts=(0,), seconds=3_725.0, resumed=False, was_finished=False,
)  # fmt: skip
HALF = TrainProgress(
    "train", epoch=1, epochs=12, step=1_500, steps_done=500, steps=1_000, workers=2, images_per_second=31.26,
    losses={"loss": 4.5678},
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Gives the configuration that a line asks for."""
    seen: list[TrainConfig] = []

    def train(config: TrainConfig, **others: Any) -> TrainSummary:
        seen.append(config)
        return SUMMARY

    monkeypatch.setattr("pipelines.training.train.train", train)

    def ask(*line: str) -> TrainConfig:
        # progress goes through a descriptor, which pytest's own standard error has not
        with (tmp_path / "stderr").open("w") as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            main([*BASE, *line])
        return seen[-1]

    return ask


def test_without_more_it_is_the_paper_from_imagenet_weights(asked: Callable[..., TrainConfig]) -> None:
    config = asked()

    assert config == TrainConfig(
        train="s3://data/train", storage="s3://runs", name="first", recipe=RECIPES["paper-300"],
        recipe_name="paper-300", network="detr-resnet-50", backbone_weights="resnet50",
    )  # fmt: skip


# option and value, and what comes of it
FLAGS: dict[str, tuple[list[str], Any]] = {
    "val": (["--val", "s3://data/val"], "s3://data/val"),
    "queries": (["--num-queries", "50"], 50),
    "position_embedding": (["--position-embedding", "learned"], "learned"),
    "shorter": (["--shorter", "600"], 600),
    "longest": (["--longest", "900"], 900),
    "workers": (["--num-workers", "2:4"], (2, 4)),
    "device": (["--device", "cpu"], "cpu"),
    "threads": (["--threads", "6"], 6),
    "prefetch_steps": (["--prefetch-steps", "5"], 5),
    "evaluate_epochs": (["--evaluate-epochs", "0"], 0),
    "keep": (["--keep", "1"], 1),
    "checkpoint_minutes": (["--checkpoint-minutes", "0.5"], 0.5),
    "caps": (["--max-minutes", "9", "--max-cost", "7", "--price-per-hour", "3.5"], Caps(9, 7, 3.5)),
    "log_steps": (["--log-steps", "50"], 50),
    "trackers": (["--log-to", "mlflow", "wandb"], ("mlflow", "wandb")),
    "fused": (["--no-fused"], False),
    "tf32": (["--no-tf32"], False),
    "compiled": (["--compile"], True),
    "gradient_checkpointing": (["--gradient-checkpointing"], True),
    "restarts": (["--restarts", "2"], 2),
    "collective_seconds": (["--collective-seconds", "30"], 30),
    "options": (
        ["--endpoint", "http://localhost:9000", "--region", "eu-1", "--profile", "lake"],
        StoreOptions(endpoint="http://localhost:9000", region="eu-1", profile="lake"),
    ),
    "shared_folders": (["--shared-folders"], True),
    "verbose": (["--verbose"], True),
    "backbone_weights": (["--backbone-weights", "s3://weights/resnet50.pth"], "s3://weights/resnet50.pth"),
}
OTHERWISE = {"train", "storage", "name", "recipe", "recipe_name", "finetune", "network"}  # tested on their own


def test_every_field_has_a_flag() -> None:
    assert {field.name for field in fields(TrainConfig)} == set(FLAGS) | OTHERWISE


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_sets_its_field_and_no_other(asked: Callable[..., TrainConfig], name: str) -> None:
    line, expected = FLAGS[name]

    assert asked(*line) == replace(asked(), **{name: expected})


def test_one_number_of_workers_is_both_bounds(asked: Callable[..., TrainConfig]) -> None:
    config = asked("--num-workers", "2")

    assert config.workers == (2, 2)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["--finetune", "scenes"], ("scenes", None, None)),
        (["--recipe", "scenes"], (None, "scenes", None)),
        (["--recipe", "scenes", "--network", "detr-resnet-50", "--freeze-backbone", "stem_and_first"],
         (None, "detr-resnet-50", "resnet50")),
        (["--network", "detr-resnet-101-dc5"], (None, "detr-resnet-101-dc5", "resnet101")),
        (["--backbone-weights", "none"], (None, "detr-resnet-50", None)),
        (["--recipe", "scenes", "--finetune", "owner/model"], ("owner/model", None, None)),
    ],
)  # fmt: skip
def test_where_the_weights_come_from(
    asked: Callable[..., TrainConfig], line: list[str], expected: tuple[str | None, ...]
) -> None:
    config = asked(*line)

    assert (config.finetune, config.network, config.backbone_weights) == expected


def test_a_recipe_is_a_preset_with_what_the_line_changes(asked: Callable[..., TrainConfig]) -> None:
    config = asked("--recipe", "finetune", "--finetune", "scenes", "--lr", "5e-5", "--epochs=7", "--batch_size", "4")

    assert config.recipe == replace(RECIPES["finetune"], lr=5e-5, epochs=7, batch_size=4)
    assert config.recipe_name == "finetune"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--finetune", "scenes", "--network", "scenes"], "give exactly one"),
        (
            ["--finetune", "scenes", "--num-queries", "50"],
            "queries: omit them with --finetune, whose model has its own",
        ),
        (["--finetune", "scenes", "--backbone-weights", "resnet50"], "has its own"),
        (["--network", "resnet"], "network: 'resnet' is not one of detr-resnet-50"),
        (["--network", "scenes"], "freeze backbone: scenes has trainable norms"),
        (["--name", "a/b"], "name: 'a/b' is not"),
        (["--effective-batch", "3"], "3 images are not a whole number of micro-batches of 2"),
        (["--lr", "nan"], "lr: nan is not"),
        (["--ema-decay", "1"], "ema decay: 1.0 must be"),
        (["--num-workers", "3:2"], "MIN is larger than MAX"),
        (["--num-workers", "0"], "0 is less than 1"),
        (["--evaluate-epochs", "-1"], "--evaluate-epochs: -1 is not at least 0"),
        (["--checkpoint-minutes", "0"], "minutes"),
        (["--crop-range", "600:384"], "crop_range"),
        (["--scales", "0.5:480"], "the last at 1"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--lerning-rate", "1"], "--lerning-rate is not an option"),
    ],
)
def test_a_line_that_cannot_be_is_refused_with_code_2(
    line: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*BASE, *line])

    assert left.value.code == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.startswith("ray-detr train: error: ")


@pytest.mark.parametrize("missing", ["--train", "--storage", "--name"])
def test_what_is_needed_is_asked_for(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = BASE.index(missing)

    with pytest.raises(SystemExit):
        main([*BASE[:place], *BASE[place + 2 :]])

    assert f"the following arguments are required: {missing}" in capsys.readouterr().err


def test_the_report_says_what_came_out_and_what_to_do_with_it() -> None:
    assert report(SUMMARY).splitlines() == [
        "done: 3 epochs, 900 steps in 1 h 2 min",
        "AP 0.421  AP50 0.624  AP75 0.400  APs none  APm 0.500  APl 0.600",
        "model: s3://runs/first/model, checkpoint 000000900-a-1",
        "label: ray-detr label --model s3://runs/first/model --images URI --table URI",
    ]


def test_the_report_of_a_run_with_interruptions() -> None:
    summary = replace(SUMMARY, starts=(0, 1_250), resumed=True, metrics=None, node_hours=2.07, cost=6.21)
    lines = report(summary).splitlines()

    assert lines[0].endswith(" (resumed)")
    assert lines[1] == "cost: 6.21 for 2.07 node hours"
    assert lines[2] == "workers were started 2 times, at steps 0, 1,250"
    assert lines[3].startswith("model: ")


def test_the_report_of_a_run_that_was_finished() -> None:
    line = report(replace(SUMMARY, was_finished=True, starts=())).splitlines()[0]

    assert line == "nothing to do: s3://runs/first is finished, 3 epochs, 900 steps"


def test_the_summary_comes_as_json(asked: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    asked("--json")

    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {field.name for field in fields(TrainSummary)}
    assert (found["metrics"]["AP"], found["starts"]) == (0.4206, [0])


def test_a_report_is_written_of_the_run_and_named_last(
    asked: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written: list[TrainingReportConfig] = []

    def write_training_report(config: TrainingReportConfig) -> TrainingReportSummary:
        written.append(config)
        return TrainingReportSummary(
            config.out, 1_234_567, epochs=3, steps=900, pictures=0, problem="no shards", AP=0.42
        )

    monkeypatch.setattr("pipelines.report.training.write_training_report", write_training_report)
    out = tmp_path / "page.html"

    config = asked("--report", str(out), "--region", "eu-1")

    assert written == [TrainingReportConfig("s3://runs/first", out, options=config.options)]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"report: 3 epochs, 900 steps, 0 pictures, 1.2 MB: {out}",
        "no pictures: no shards",
    ]
    asked("--report", str(out), "--json")
    assert json.loads(capsys.readouterr().out)["steps"] == 900  # the report is named on standard error


def test_stages_and_notes_go_to_standard_error_and_a_stopped_run_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(
        config: TrainConfig, *, on_progress: Callable[[TrainProgress], None], say: Callable[[str], None]
    ) -> TrainSummary:
        on_progress(TrainProgress("starting workers"))
        say("few images")
        raise RayDetrError("the store is gone.")

    monkeypatch.setattr("pipelines.training.train.train", train)
    with (tmp_path / "stderr").open("w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit) as left:
            run(main, list(BASE))

    assert left.value.code == 1
    assert (tmp_path / "stderr").read_text() == "  starting workers\nnote: few images\nerror: the store is gone.\n"
    assert capsys.readouterr().out == ""


def test_help_names_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    for line, _ in FLAGS.values():
        assert line[0] in done.stdout
    assert done.stdout.splitlines()[0].startswith("usage: python -m jobs.train ")


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (TrainProgress("connecting to Ray"), "  connecting to Ray"),
        (TrainProgress("evaluate", epoch=1, steps=10, workers=2), "  evaluate"),
        (TrainProgress("train", epochs=3, workers=1), "  train"),
        (HALF, "  train  epoch 2 of 12  step 500 of 1,000  31.3 images/s  loss 4.568  2 workers"),
        (
            TrainProgress("train", epochs=1, steps=3, workers=1, AP=0.41234, best=0.42),
            "  train  epoch 1 of 1  step 0 of 3  0.0 images/s  AP 0.412 (best 0.420)  1 worker",
        ),
        (
            TrainProgress("train", epochs=1, steps=3, workers=1, AP=-1.0, best=-1.0),
            "  train  epoch 1 of 1  step 0 of 3  0.0 images/s  AP none (best none)  1 worker",
        ),
    ],
)
def test_one_line_says_epoch_step_rate_loss_figure_and_workers(progress: TrainProgress, shown: str) -> None:
    assert progress_line(progress) == shown


def test_a_log_file_gets_stages_and_notes_as_they_come(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream, shown_training(stream) as (show, say):
        show(TrainProgress("connecting to Ray"))
        say("the effective batch is 8 images")
        show(TrainProgress("starting workers"))
        show(HALF)
        show(TrainProgress("evaluate"))

    assert log.read_text().splitlines() == [
        "  connecting to Ray",
        "note: the effective batch is 8 images",
        "  starting workers",
        "  evaluate",
    ]


def test_notes_are_printed_while_lines_of_ray_are_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    with open(2, "w", closefd=False) as stream, shown_training(stream) as (_, say), silenced():
        os.write(2, b"a line of Ray\n")
        say("the tracker wandb failed")

    assert capfd.readouterr().err == "note: the tracker wandb failed\n"
