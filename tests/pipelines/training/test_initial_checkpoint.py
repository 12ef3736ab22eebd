"""What a run begins with: the data's classes, known weights where there are some, and words about the rest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import detr
import detr.checkpoints.checkpoint
from detr.classes import SCENE_CATEGORIES, Category
from detr.config import SCENES_CONFIG, DetrConfig
from detr.model import Detr
from detr.positions import LearnedPositions
from detr.size_rule import SizeRule
from pipelines.errors import RayDetrError
from pipelines.shards.reader import ShardIndex
from pipelines.training.checkpoints import TrainingPosition, load_checkpoint
from pipelines.training.config import TrainConfig
from pipelines.training.initial_checkpoint import initial_model, training_sizes, write_initial_checkpoint
from pipelines.training.learner import Learner
from pipelines.training.recipe import RECIPES, Recipe
from pipelines.training.training_run import open_run
from tests.memory_store import memory_store

CATEGORIES = (Category(1000, "Disc"), Category(7, "boat"), Category(40, "star"))
FINETUNE = TrainConfig(train="/data", storage="/runs", name="a", finetune="scenes", recipe=RECIPES["finetune"])
SCRATCH = TrainConfig(train="/data", storage="/runs", name="a", network="scenes", recipe=RECIPES["scenes"])


def test_fine_tuning_keeps_what_is_known_by_name_and_says_what_is_new() -> None:
    said: list[str] = []

    model, trainable_norm = initial_model(FINETUNE, CATEGORIES, say=said.append)

    assert said == ["2 of 3 classes are known to scenes, 1 start from random weights: boat"]
    assert not trainable_norm
    assert model.config.categories == CATEGORIES
    before = detr.load("scenes")
    names = [category.name for category in SCENE_CATEGORIES]
    for index, origin in ((0, names.index("disc")), (2, names.index("star")), (3, len(names))):
        assert torch.equal(model.class_embed.weight[index], before.class_embed.weight[origin])
    assert torch.equal(model.query_embed.weight, before.query_embed.weight)


def test_nothing_is_said_where_all_classes_are_known() -> None:
    said: list[str] = []

    initial_model(FINETUNE, SCENE_CATEGORIES, say=said.append)

    assert said == []


def test_many_new_classes_are_reported_in_part() -> None:
    said: list[str] = []

    initial_model(FINETUNE, [Category(number, f"class {number}") for number in range(20)], say=said.append)

    assert said[0].endswith("class 0, class 1, class 2, class 3, class 4, class 5, class 6, class 7, ...")


def test_from_scratch_the_network_is_of_the_seed_with_norms_that_are_trained() -> None:
    model, trainable_norm = initial_model(SCRATCH, CATEGORIES, say=print)
    same, _ = initial_model(SCRATCH, CATEGORIES, say=print)
    other, _ = initial_model(replace(SCRATCH, recipe=replace(SCRATCH.recipe, seed=1)), CATEGORIES, say=print)

    assert trainable_norm
    assert (model.config.categories, model.config.queries) == (CATEGORIES, SCENES_CONFIG.queries)
    assert torch.equal(model.query_embed.weight, same.query_embed.weight)
    assert not torch.equal(model.query_embed.weight, other.query_embed.weight)


def test_queries_positions_and_sides_are_the_users() -> None:
    config = replace(SCRATCH, queries=50, shorter=96, position_embedding="learned")
    model, _ = initial_model(config, CATEGORIES, say=print)

    assert len(model.query_embed.weight) == 50
    assert isinstance(model.backbone[1], LearnedPositions)
    assert (model.config.shorter, model.config.longest) == (96, SCENES_CONFIG.longest)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(FINETUNE, finetune="/nowhere/model"), "/nowhere/model"),
        (replace(SCRATCH, backbone_weights="/nowhere/resnet.pth"), "/nowhere/resnet.pth"),
    ],
)
def test_weights_that_are_not_available_stop_the_run(config: TrainConfig, message: str) -> None:
    with pytest.raises(RayDetrError, match=message):
        initial_model(config, CATEGORIES, say=print)


def test_classes_that_cannot_be_distinguished_stop_the_run() -> None:
    with pytest.raises(RayDetrError, match=r"the classes of scenes cannot be replaced: .*'boat' appears 2 times"):
        initial_model(FINETUNE, [Category(1, "boat"), Category(2, "boat")], say=print)


def test_the_start_is_a_checkpoint_of_step_0_that_a_learner_begins_from(tmp_path: Path) -> None:
    store = memory_store()
    run = open_run(
        store, SCRATCH.resume_identity(), start_id="start", now=datetime(2026, 11, 22, tzinfo=UTC), versions={}
    )

    write_initial_checkpoint(run, SCRATCH, ShardIndex((), CATEGORIES, images=5, annotations=9, other={}), say=print)

    saved = run.latest()
    assert saved is not None
    loaded = load_checkpoint(store, saved)
    assert loaded.position == TrainingPosition(0, 0, 0)
    assert (loaded.training_tensors, loaded.trainable_norm) == ({}, True)
    learner = Learner(loaded.model, SCRATCH.recipe, device=torch.device("cpu"), trainable_norm=True)
    assert any(name.endswith("num_batches_tracked") for name in learner.network.state_dict())
    expected, _ = initial_model(SCRATCH, CATEGORIES, say=print)
    assert torch.equal(learner.network.query_embed.weight, expected.query_embed.weight)


@pytest.mark.parametrize(("images", "is_told"), [(9_999, True), (10_000, False)])
def test_few_images_for_a_beginning_are_reported(images: int, is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = replace(SCENES_CONFIG.backbone, norm="frozen")
    small = replace(SCENES_CONFIG, backbone=backbone, shorter=800, longest=1333)
    monkeypatch.setattr("pipelines.training.config.NETWORKS", {"detr-resnet-50": small})
    config = replace(FINETUNE, finetune=None, network="detr-resnet-50")
    run = open_run(
        memory_store(), config.resume_identity(), start_id="start", now=datetime(2026, 11, 22, tzinfo=UTC), versions={}
    )
    said: list[str] = []

    write_initial_checkpoint(
        run, config, ShardIndex((), CATEGORIES, images=images, annotations=9, other={}), say=said.append
    )

    assert [sentence.partition(" are few")[0] for sentence in said] == (["9,999 images"] if is_told else [])


def test_training_at_the_model_s_own_sizes_is_said() -> None:
    sentence = training_sizes(FINETUNE, SCENES_CONFIG)

    assert sentence == (
        "images are trained with shorter sides of 115 to 192 pixels, because the model is used at 192 (the recipe is "
        "for 800)"
    )


@pytest.mark.parametrize(
    ("scales", "network", "message"),
    [
        (
            (480, 800),
            SCENES_CONFIG,
            "of 480 to 800 pixels, but the model is used at 192, where it may find fewer objects",
        ),
        (
            (480, 800),
            SCENES_CONFIG,
            "Omit --scales, --crop-scales, --crop-range and --train-longest, or give --shorter 800",
        ),
        ((96, 128), SCENES_CONFIG, "of 96 to 128 pixels, but the model is used at 192"),
        ((480, 640), DetrConfig(), "of 480 to 640 pixels, but the model is used at 800"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_said_out_loud(
    scales: tuple[int, ...], network: DetrConfig, message: str
) -> None:
    recipe = replace(RECIPES["finetune"], scale_phases=((1.0, scales),), sized_for=0)

    sentence = training_sizes(replace(FINETUNE, recipe=recipe), network)

    assert sentence is not None
    assert message in sentence


@pytest.mark.parametrize(
    ("recipe", "network"),
    [
        (RECIPES["finetune"], DetrConfig()),
        (RECIPES["scenes"], SCENES_CONFIG),
        (replace(RECIPES["finetune"], scale_phases=((1.0, (128, 192)),), sized_for=0), SCENES_CONFIG),
        (replace(RECIPES["finetune"], augmentation="none", sized_for=0), SCENES_CONFIG),
    ],
)
def test_nothing_is_said_of_sizes_that_fit(recipe: Recipe, network: DetrConfig) -> None:
    assert training_sizes(replace(FINETUNE, recipe=recipe), network) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (SizeRule("transformers", 192, 320), SizeRule("transformers", 96, 320)),
        (SizeRule("fit", 192, 320, 320, 192), SizeRule("original", 96, 320)),
        (SizeRule("none", 192, 320), SizeRule("original", 96, 1333)),  # the file says no sides then
    ],
)
def test_a_shorter_side_that_is_asked_for_replaces_what_it_can(
    tmp_path: Path, before: SizeRule, after: SizeRule
) -> None:
    backbone = replace(SCENES_CONFIG.backbone, norm="frozen")
    box = (before.height, before.width)
    config = replace(SCENES_CONFIG, backbone=backbone, resizing=before.resizing, box=box, pre_norm=True)
    detr.checkpoints.checkpoint.save(Detr(config), tmp_path / "model")

    model, _ = initial_model(replace(FINETUNE, finetune=str(tmp_path / "model"), shorter=96), CATEGORIES, say=print)

    assert model.config.size_rule == after
