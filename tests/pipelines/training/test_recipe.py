"""The presets are the published ones, and a recipe that cannot be is refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from pipelines.training.recipe import RECIPES, Recipe, differing_batch

# facebookresearch/detr, main.py: its flags and their defaults
PUBLISHED = {
    "lr": 1e-4, "lr_backbone": 1e-5, "batch_size": 2, "weight_decay": 1e-4, "epochs": 300, "lr_drop": 200,
    "clip_max_norm": 0.1, "set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2, "bbox_loss_coef": 5,
    "giou_loss_coef": 2, "eos_coef": 0.1, "aux_loss": True, "seed": 42,
}  # fmt: skip


def test_the_paper_has_the_originals_values_on_eight_gpus_of_two_images() -> None:
    paper = RECIPES["paper-300"]

    assert {name: getattr(paper, name) for name in PUBLISHED} == PUBLISHED
    assert (paper.effective_batch, paper.micro_batches, paper.class_loss_coef) == (16, 8, 1.0)
    assert (paper.schedule, paper.warm_up_steps, paper.ema_decay, paper.bf16, paper.warm_losses) == (
        "step", 0, 0.0, False, False,
    )  # fmt: skip
    assert paper.dropout is None  # the network's own, 0.1


def test_the_papers_augmentation() -> None:
    augment = RECIPES["paper-300"].augment(0.5)

    assert augment.scales == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (augment.longest, augment.flip, augment.crop) == (1333, 0.5, 0.5)
    assert (augment.crop_scales, augment.crop_range) == ((400, 500, 600), (384, 600))


def test_the_released_weights_were_trained_longer_on_batches_of_64_at_the_same_rates() -> None:
    released = RECIPES["released-500"]

    assert released == replace(RECIPES["paper-300"], epochs=500, lr_drop=400, effective_batch=64)


def test_the_losses_have_the_recipes_factors() -> None:
    losses = Recipe(
        set_cost_class=1.5, set_cost_bbox=2.5, set_cost_giou=3.5, class_loss_coef=4.5, bbox_loss_coef=5.5,
        giou_loss_coef=6.5, eos_coef=0.7, aux_loss=False,
    ).losses  # fmt: skip

    match, weights = losses.match_weights, losses.weights
    assert (match.classification, match.l1, match.giou) == (1.5, 2.5, 3.5)
    assert (weights.classification, weights.l1, weights.giou, weights.no_object) == (4.5, 5.5, 6.5, 0.7)
    assert (losses.auxiliary, losses.warm) == (False, False)


def test_the_schedule_has_the_recipes_numbers() -> None:
    steps = Recipe(epochs=10, lr_drop=4, warm_up_steps=2).learning_schedule
    cosine = Recipe(epochs=10, schedule="cosine", constant_share=0.5).learning_schedule

    assert steps.factor(epoch=0, step=0, share=0.0) == 0.5
    assert steps.factor(epoch=4, step=50, share=0.4) == pytest.approx(0.1)
    assert cosine.factor(epoch=5, step=50, share=0.5) == 1.0
    assert cosine.factor(epoch=9, step=99, share=1.0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("share", "scales"), [(0.0, (96,)), (0.29, (96,)), (0.3, (128, 160)), (0.99, (128, 160)), (1.0, (128, 160))]
)
def test_scales_grow_with_the_run(share: float, scales: tuple[int, ...]) -> None:
    recipe = Recipe(scale_phases=((0.3, (96,)), (1.0, (128, 160))))

    assert recipe.scales(share) == scales
    assert recipe.augment(share).scales == scales


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_is_a_value_of_json(name: str) -> None:
    recipe = RECIPES[name]

    assert json.loads(json.dumps(recipe.as_json())).keys() == asdict(recipe).keys() - {"similar_sizes"}
    assert recipe.micro_batches * recipe.batch_size == recipe.effective_batch


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({name: value}, name.replace("_", " "))
            for name in (
                "lr", "lr_backbone", "weight_decay", "clip_max_norm", "eos_coef", "set_cost_class", "set_cost_bbox",
                "set_cost_giou", "class_loss_coef", "bbox_loss_coef", "giou_loss_coef",
            )
            for value in (-0.1, float("nan"), float("inf"))
        ),
        *(
            ({name: 0}, f"{name.replace('_', ' ')}: 0 is not at least 1")
            for name in ("epochs", "lr_drop", "effective_batch", "batch_size", "longest")
        ),
        *(({name: 1.5}, f"{name}: 1.5 is not in 0..1") for name in ("flip", "crop", "dropout")),
        ({"warm_up_steps": -1}, "warm up steps"),
        ({"seed": -1}, "seed"),
        ({"ema_decay": 1.0}, "ema decay: 1.0"),  # it would never move
        ({"constant_share": 1.0, "schedule": "cosine"}, "constant_share"),
        ({"schedule": "linear"}, "'linear' is not one of step, cosine"),
        ({"effective_batch": 16, "batch_size": 3}, "16 images are not a whole number of micro-batches of 3"),
        ({"effective_batch": 4, "batch_size": 8}, "4 images are not a whole number of micro-batches of 8"),
        ({"warm_losses": True}, "give --one-shape-a-batch, too"),
        ({"one_shape_a_batch": True}, "give --crop 0, too"),
        ({"scale_phases": ()}, "phases"),
        ({"scale_phases": ((0.5, (96,)),)}, "the last at 1"),
        ({"scale_phases": ((0.5, (96,)), (0.2, (96,)), (1.0, (96,)))}, "growing"),
        ({"scale_phases": ((0.0, (96,)), (1.0, (96,)))}, "growing"),
        ({"scale_phases": ((0.5, (96,)), (0.5, (96,)), (1.0, (96,)))}, "growing"),
        ({"scale_phases": ((0.5, (128, 96)), (1.0, (96,)))}, "ascending"),
        ({"scale_phases": ((0.5, ()), (1.0, (96,)))}, "scales"),
        ({"crop_range": (600, 384)}, "crop_range"),
        ({"augmentation": "mixup"}, "mixup"),
        ({"freeze_backbone": "half"}, "half"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


def test_another_effective_batch_than_the_presets_is_reported() -> None:
    paper = RECIPES["paper-300"]

    assert differing_batch("paper-300", replace(paper, epochs=7)) is None
    assert differing_batch("paper-300", replace(paper, batch_size=4)) is None
    assert differing_batch("paper-300", replace(paper, effective_batch=64)) == (
        "the effective batch is 64 images, but the recipe paper-300 has 16: its learning rates (0.0001, backbone "
        "1e-05) are not scaled"
    )


def test_a_record_names_similar_sizes_only_where_they_are_wanted() -> None:
    """Runs that were begun before there was a choice go on."""
    assert "similar_sizes" not in Recipe().as_json()
    assert Recipe(similar_sizes=True).as_json()["similar_sizes"] is True
    assert not any(recipe.similar_sizes for recipe in RECIPES.values())


def test_one_shape_and_similar_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"similar sizes: .* give --no-one-shape-a-batch, too"):
        replace(RECIPES["scenes"], similar_sizes=True)


def test_sizes_follow_those_of_the_model() -> None:
    scaled = RECIPES["finetune"].for_model(192, 320)

    assert scaled.scale_phases == ((1.0, (115, 123, 131, 138, 146, 154, 161, 169, 177, 184, 192)),)
    assert (scaled.longest, scaled.crop_scales, scaled.crop_range) == (320, (96, 120, 144), (92, 144))


def test_sizes_stay_the_papers_for_a_model_of_the_papers_size() -> None:
    same = RECIPES["finetune"].for_model(800, 1333)

    assert same == replace(RECIPES["finetune"], sized_for=0)


def test_the_recipe_of_scenes_is_for_the_size_of_that_model_and_grows_with_a_larger_one() -> None:
    assert RECIPES["scenes"].for_model(192, 320).scales(1.0) == (144, 160, 176, 192, 208)
    assert RECIPES["scenes"].for_model(384, 640).scales(1.0) == (288, 320, 352, 384, 416)


def test_sizes_of_ones_own_are_not_scaled() -> None:
    own = replace(RECIPES["finetune"], scale_phases=((1.0, (300,)),), sized_for=0)

    assert own.for_model(192, 320) == own


def test_sizes_of_a_tiny_model_are_whole_pixels_each_once() -> None:
    assert RECIPES["finetune"].for_model(8, 12).scales(0.5) == (5, 6, 7, 8)


def test_a_record_of_a_recipe_without_scaling_is_that_of_earlier_releases() -> None:
    assert "sized_for" not in Recipe().as_json()
    assert RECIPES["finetune"].as_json()["sized_for"] == 800
