"""What a training run is given: checked at once, and its resume_identity part recorded."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from detr.config import LEARNED_CELLS, SCENES_CONFIG, VARIANTS
from detr.size_rule import resize_shape
from pipelines.store import StoreOptions
from pipelines.training.config import TrainConfig
from pipelines.training.recipe import RECIPES, Recipe

BASE = TrainConfig(train="s3://data/train", storage="s3://runs", name="first", finetune="scenes")


@pytest.mark.parametrize("name", ["first", "a", "R50.v2_b-1", "0" * 100])
def test_names_that_can_be_folders_are_taken(name: str) -> None:
    assert replace(BASE, name=name).run_uri == f"s3://runs/{name}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({"name": name}, "name: ") for name in ("", "a/b", ".hidden", "..", "a b", "-x", "0" * 101)),
        ({"finetune": None}, "give exactly one"),
        ({"network": "scenes"}, "give exactly one"),
        ({"finetune": None, "network": "detr-resnet-18"}, "'detr-resnet-18' is not one of detr-resnet-50, "),
        ({"backbone_weights": "resnet50"}, "with --finetune, whose model has its own"),
        ({"queries": 50}, "with --finetune, whose model has its own"),
        ({"position_embedding": "learned"}, "with --finetune, whose model has its own"),
        ({"finetune": None, "network": "scenes", "position_embedding": "rotary"}, "is not one of sine, learned"),
        *(
            ({"finetune": None, "position_embedding": "learned", **values}, message)
            for values, message in (
                ({"network": "detr-resnet-50-dc5"}, "train longest: 1333 pixels are too many for learned positions"),
                ({"network": "detr-resnet-50", "longest": 2000}, "cover 1568 with detr-resnet-50. Give --longest 1568"),
            )
        ),
        ({"device": "tpu"}, "'tpu' is not one of auto, cpu, cuda"),
        ({"workers": (0, None)}, "0:None is not a range"),
        ({"workers": (3, 2)}, "3:2 is not a range"),
        ({"workers": (None, 0)}, "1:0 is not a range"),
        *(
            ({name: 0}, f"{name.replace('_', ' ')}: 0 is not at least 1")
            for name in ("shorter", "longest", "threads", "prefetch_steps", "keep", "log_steps", "restarts",
                         "collective_seconds")
        ),
        ({"evaluate_epochs": -1}, "evaluate epochs"),
        ({"checkpoint_minutes": 0.0}, "minutes"),
        ({"checkpoint_minutes": float("nan")}, "minutes"),
        ({"trackers": ("mlflow", "comet")}, "'comet' is not one of mlflow, wandb"),
        # the small network has norms that are trained, and those cannot be frozen
        ({"finetune": None, "network": "scenes"}, "freeze"),
        ({"finetune": None, "network": "scenes", "recipe": replace(RECIPES["scenes"], lr_backbone=0.0)}, "freeze"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **values)


@pytest.mark.parametrize(
    ("network", "values"),
    [
        ("detr-resnet-50", {}),  # the paper's
        ("detr-resnet-50", {"longest": 1568}),
        ("detr-resnet-50-dc5", {"shorter": 480, "longest": 768, "recipe": replace(BASE.recipe, longest=784)}),
    ],
)
def test_learned_positions_cover_every_picture_that_is_accepted(network: str, values: dict[str, Any]) -> None:
    config = replace(BASE, finetune=None, network=network, position_embedding="learned", **values)

    stride, longest = VARIANTS[network].backbone.stride, max(config.longest or 0, config.recipe.longest)
    sides = (resize_shape(height, 1000, shorter=800, longest=longest) for height in range(100, 1000))
    assert max(-(-max(shape) // stride) for shape in sides) <= LEARNED_CELLS


def test_the_networks_are_the_official_ones_and_the_small_one() -> None:
    scratch = replace(BASE, finetune=None, network="scenes", recipe=RECIPES["scenes"])

    assert scratch.network_config() == SCENES_CONFIG
    assert replace(scratch, network="detr-resnet-101-dc5").network_config() == VARIANTS["detr-resnet-101-dc5"]
    assert BASE.network_config() is None


def test_a_local_storage_becomes_absolute_for_workers_are_elsewhere() -> None:
    assert replace(BASE, storage="runs").run_uri == f"file://{os.fspath(Path.cwd())}/runs/first"


def test_relative_shards_stay_where_they_were_when_the_configuration_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(BASE, train="shards", val="./shards/val", storage="runs")
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")

    assert config.places() == (
        f"file://{tmp_path}/runs/first",
        f"file://{tmp_path}/shards",
        f"file://{tmp_path}/shards/val",
    )
    assert (config.train, config.val) == config.places()[1:]


# what may differ from start to start, because the weights do not depend on it
FREE = {
    "storage", "name", "recipe_name", "workers", "device", "threads", "prefetch_steps",
    "evaluate_epochs", "keep", "checkpoint_minutes", "log_steps", "trackers", "fused", "compiled",
    "gradient_checkpointing", "restarts",
    "caps", "collective_seconds", "options", "verbose", "shared_folders", "tf32",
}  # fmt: skip

OTHERS: dict[str, Any] = {
    "train": "s3://data/other", "val": "s3://data/val", "finetune": "facebook/detr-resnet-50", "shorter": 600,
    "longest": 900,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_decides_the_weights_is_recorded(name: str) -> None:
    before, after = BASE.resume_identity(), replace(BASE, **{name: OTHERS[name]}).resume_identity()

    assert [key for key in before if before[key] != after[key]] == [name]


OTHER_RECIPES: dict[str, Any] = {
    "schedule": "cosine", "constant_share": 0.5, "effective_batch": 32, "batch_size": 4, "aux_loss": False,
    "dropout": 0.2, "freeze_backbone": "all", "augmentation": "none",
    "scale_phases": ((1.0, (500,)),), "crop_scales": (450,), "crop_range": (300, 400), "bf16": True,
    "similar_sizes": True,  # left out of the record while it is off, as earlier releases did not know it
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_value_of_the_recipe_is_recorded(field: str) -> None:
    if field in ("warm_losses", "one_shape_a_batch"):
        values: dict[str, Any] = {"one_shape_a_batch": True, "crop": 0.0}
        values |= {"warm_losses": True} if field == "warm_losses" else {}
    else:
        default = getattr(Recipe(), field)
        values = {field: OTHER_RECIPES.get(field, default / 2 if isinstance(default, float) else default)}
        if isinstance(default, int) and field not in OTHER_RECIPES:
            values = {field: default + 1}
        elif isinstance(default, float) and not default:
            values = {field: 0.25}
    before, after = BASE.resume_identity(), replace(BASE, recipe=replace(Recipe(), **values)).resume_identity()

    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed == {"train_longest" if key == "longest" else key for key in values}


def test_every_field_decides_or_is_known_not_to() -> None:
    assert {field.name for field in fields(TrainConfig)} == FREE | set(OTHERS) | {
        "recipe", "network", "backbone_weights", "queries", "position_embedding",
    }  # fmt: skip


def test_the_record_is_json_without_secrets() -> None:
    config = replace(BASE, train="https://user:secret@host/train?X-Amz-Signature=secret", finetune="scenes")

    record = config.resume_identity()

    assert json.loads(json.dumps(record)) == record
    assert "secret" not in json.dumps(record)


def test_the_options_reach_the_server() -> None:
    options = replace(BASE, options=StoreOptions(endpoint="http://localhost:9000", region="eu-1")).options

    assert (options.endpoint, options.region) == ("http://localhost:9000", "eu-1")
