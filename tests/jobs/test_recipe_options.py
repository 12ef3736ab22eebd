"""Every value of a recipe has an option, and nothing else has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from jobs.parser import CommandParser
from jobs.train import add_recipe_options, recipe_values
from pipelines.options import declared
from pipelines.training.recipe import RECIPES, Recipe, pixel_range, pixels, scale_phase


def parser() -> argparse.ArgumentParser:
    made = CommandParser("test", "A test.")
    add_recipe_options(made)
    return made


def values(*line: str) -> dict[str, Any]:
    return recipe_values(parser().parse_args(line))


def options() -> dict[str, str]:
    """The option of each field."""
    return {one.name: one.flag for one in declared(Recipe)}


def test_every_field_has_an_option_and_every_option_a_field() -> None:
    assert set(options()) == {field.name for field in fields(Recipe)}


def test_an_option_is_called_as_the_field_but_for_two_names_that_are_taken() -> None:
    other = {name: option for name, option in options().items() if option != f"--{name.replace('_', '-')}"}

    assert other == {"longest": "--train-longest", "scale_phases": "--scales"}


def test_what_is_not_given_is_the_presets() -> None:
    assert values() == {}
    assert parser().parse_args([]).recipe == "paper-300"


LINES: dict[str, tuple[Sequence[str], Any]] = {
    "epochs": (["--epochs", "12"], 12),
    "lr": (["--lr", "2e-4"], 2e-4),
    "lr_backbone": (["--lr-backbone", "0"], 0.0),
    "lr_drop": (["--lr-drop", "8"], 8),
    "schedule": (["--schedule", "cosine"], "cosine"),
    "constant_share": (["--constant-share", "0.5"], 0.5),
    "warm_up_steps": (["--warm-up-steps", "0"], 0),
    "weight_decay": (["--weight-decay", "0"], 0.0),
    "clip_max_norm": (["--clip-max-norm", "0.5"], 0.5),
    "effective_batch": (["--effective-batch", "32"], 32),
    "batch_size": (["--batch-size", "8"], 8),
    "set_cost_class": (["--set-cost-class", "2"], 2.0),
    "set_cost_bbox": (["--set-cost-bbox", "3"], 3.0),
    "set_cost_giou": (["--set-cost-giou", "4"], 4.0),
    "class_loss_coef": (["--class-loss-coef", "6"], 6.0),
    "bbox_loss_coef": (["--bbox-loss-coef", "7"], 7.0),
    "giou_loss_coef": (["--giou-loss-coef", "8"], 8.0),
    "eos_coef": (["--eos-coef", "0.2"], 0.2),
    "aux_loss": (["--no-aux-loss"], False),
    "warm_losses": (["--warm-losses"], True),
    "dropout": (["--dropout", "0"], 0.0),
    "freeze_backbone": (["--freeze-backbone", "stem_and_first"], "stem_and_first"),
    "augmentation": (["--augmentation", "none"], "none"),
    "flip": (["--flip", "0"], 0.0),
    "crop": (["--crop", "0"], 0.0),
    "scale_phases": (["--scales", "480,512"], ((1.0, (480, 512)),)),
    "longest": (["--train-longest", "1000"], 1000),
    "sized_for": (["--sized-for", "400"], 400),
    "crop_scales": (["--crop-scales", "400,500"], (400, 500)),
    "crop_range": (["--crop-range", "100:200"], (100, 200)),
    "one_shape_a_batch": (["--no-one-shape-a-batch"], False),
    "similar_sizes": (["--similar-sizes"], True),
    "bf16": (["--bf16"], True),
    "ema_decay": (["--ema-decay", "0.99"], 0.99),
    "seed": (["--seed", "0"], 0),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_an_option_sets_its_field_zeros_included(name: str) -> None:
    line, expected = LINES[name]

    found = values(*line)

    is_size = name in ("scale_phases", "longest", "crop_scales", "crop_range")
    assert found == {name: expected, **({"sized_for": 0} if is_size else {})}  # a size of one's own is not scaled
    assert type(found[name]) is type(expected)
    if name not in ("warm_losses", "schedule"):
        replace(RECIPES["paper-300"], **{"batch_size": 1, **found})


@pytest.mark.parametrize(
    ("line", "phases"),
    [
        (["480"], ((1.0, (480,)),)),
        (["480", "512", "544"], ((1.0, (480, 512, 544)),)),  # as other commands take lists
        (["480,512", "544"], ((1.0, (480, 512, 544)),)),
        (["0.3:80,96", "128,160"], ((0.3, (80, 96)), (1.0, (128, 160)))),
        (["0.3:80,96", "1:128,160"], ((0.3, (80, 96)), (1.0, (128, 160)))),
    ],
)
def test_scales_may_grow_with_the_run(line: list[str], phases: Any) -> None:
    assert values("--scales", *line) == {"scale_phases": phases, "sized_for": 0}


def test_lists_are_read() -> None:
    assert scale_phase("0.25:80,96") == (0.25, (80, 96))
    assert pixels("400,500") == (400, 500)
    assert pixel_range("384:600") == (384, 600)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--recipe", "papper"], "--recipe: invalid choice: 'papper'"),
        (["--epochs", "0"], "--epochs: 0 is not at least 1"),
        (["--epochs", "many"], "--epochs: 'many' is not a number"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--flip", "1.5"], "--flip: 1.5 is not in 0..1"),
        (["--flip", "nan"], "--flip: nan is not in 0..1"),
        (["--scales", "480,x"], "--scales: 'x' is not a number"),
        (["--scales", "2:480"], "--scales: 2 is not in 0..1"),
        (["--scales", ""], "--scales: '' is not a number"),
        (["--crop-range", "384"], "--crop-range: '' is not a number"),
        (["--crop-scales", "0"], "--crop-scales: 0 is less than 1"),
        (["--schedule", "linear"], "--schedule: invalid choice: 'linear'"),
        (["--epoch", "3", "--batchsize", "3"], "Did you mean --batch-size?"),
    ],
)
def test_an_invalid_value_is_refused_with_code_2(
    line: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(line)

    assert left.value.code == 2
    assert message in capsys.readouterr().err
