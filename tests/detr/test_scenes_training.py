from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from detr.boxes import cxcywh_to_xyxy
from detr.checkpoint import load
from detr.config import SCENES_CONFIG, BackboneConfig
from detr.hub_config import IMAGE_MEAN, IMAGE_STD
from detr.scenes_pool import RATIOS, PoolScenes, draw_pool, open_pool
from detr.scenes_training import (
    CLIP_NORM,
    Progress,
    ScenesTraining,
    Trainer,
    draw_batch,
    export,
    normalise,
    phase,
    rate_factor,
    scene_loss,
    train,
)

TINY = replace(
    SCENES_CONFIG,
    backbone=BackboneConfig(
        name="tiny", block="basic", stem_width=4, stage_widths=(4, 8, 8), depths=(1, 1, 1), norm="batch"
    ),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=16,
)
SIX_STEPS = ScenesTraining(
    budget_seconds=6, micro_batches=2, micro_batch_images=2, log_seconds=1, checkpoint_seconds=2, evaluate_seconds=3
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[PoolScenes, ...]:
    folder = tmp_path_factory.mktemp("pool")
    draw_pool(folder, 2, short_side=48)
    return open_pool(folder)


def black_with_a_white_box() -> PoolScenes:
    images = np.zeros((1, 48, 64, 3), dtype=np.uint8)
    images[0, 12:24, 16:48] = 255
    labels = np.array([[2, -1]])
    return PoolScenes(images, labels, np.array([[[0.5, 0.375, 0.5, 0.25], [0, 0, 0, 0]]], dtype=np.float32))


def seconds() -> Iterator[float]:
    return iter(count(0.0, 1.0))


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    modules = {"model": trainer.model, "ema": trainer.ema, "position": trainer.position_head}
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def test_the_rate_warms_up_stays_and_falls_to_a_hundredth() -> None:
    assert rate_factor(0.0, 0) == pytest.approx(1 / 150)
    assert rate_factor(0.0, 74) == pytest.approx(0.5)
    assert rate_factor(0.4, 1000) == 1
    assert rate_factor(0.7, 1000) == pytest.approx(0.505)  # half-way of the cosine
    assert rate_factor(1.0, 1000) == pytest.approx(0.01)


def test_sides_grow_and_the_side_measured_at_is_never_at_the_edge_of_those_trained_on() -> None:
    phases = [phase(share) for share in (0.0, 0.3, 0.6, 1.0)]

    assert [max(sides) for sides, _ in phases] == [112, 160, 208, 208]
    assert all(min(sides) < measured < max(sides) for sides, measured in phases)
    assert phase(0.6)[1] == SCENES_CONFIG.shorter


def test_pool_scenes_are_kept_and_drawn_again_only_when_missing(tmp_path: Path) -> None:
    said: list[str] = []
    draw_pool(tmp_path, 1, short_side=32, report=said.append)
    first = open_pool(tmp_path)
    (tmp_path / "03-images.npy").unlink()

    draw_pool(tmp_path, 1, short_side=32, report=said.append)

    assert said[len(RATIOS) :] == ["drew 1 scenes of ratio 1.33"]
    assert [scenes.images.shape for scenes in first][::10] == [(1, 32, 32, 3), (1, 32, 80, 3)]
    for before, after in zip(first, open_pool(tmp_path), strict=True):
        assert np.array_equal(before.images, after.images)
        assert np.array_equal(before.boxes_cxcywh, after.boxes_cxcywh)


def test_a_target_of_the_pool_has_the_real_objects_only() -> None:
    target = black_with_a_white_box().target(0)

    assert target.labels.tolist() == [2]
    assert target.boxes_cxcywh.tolist() == [[0.5, 0.375, 0.5, 0.25]]


def test_drawn_batches_have_one_shape_by_the_size_rule_and_boxes_around_their_objects() -> None:
    shapes = set()
    for seed in range(12):
        batch = draw_batch([black_with_a_white_box()], 3, (32, 48), Generator().manual_seed(seed))
        height, width = batch.pixels.shape[-2:]
        shapes.add((height, width))
        for pixels, target in zip(batch.pixels, batch.targets, strict=True):
            box = cxcywh_to_xyxy(target.boxes_cxcywh[0]) * torch.tensor([width, height, width, height])
            xmin, ymin, xmax, ymax = box.round().int().tolist()
            inside = pixels[:, ymin + 1 : ymax - 1, xmin + 1 : xmax - 1].mean()
            corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
            assert abs(inside - corners) > 2
            around = pixels[:, ymin - 3, xmin:xmax].mean()
            assert abs(around - corners) < 0.1
    assert shapes == {(32, 42), (42, 32), (48, 64), (64, 48)}


def test_pixels_are_normalised_as_the_detector_does() -> None:
    pixels = normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2))

    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        assert pixels[0, channel, 0, 0].item() == pytest.approx(-mean / std, rel=1e-5)
        assert pixels[1, channel, 0, 0].item() == pytest.approx((1 - mean) / std, rel=1e-5)


def test_every_parameter_learns(pool: tuple[PoolScenes, ...]) -> None:
    trainer = Trainer(TINY, SIX_STEPS)
    batch = draw_batch(pool, 2, (64,), Generator().manual_seed(0))

    total, parts = scene_loss(trainer.model, trainer.position_head, batch, num_boxes=3.0)
    total.backward()  # type: ignore[no-untyped-call]

    learning = [*trainer.model.named_parameters(), *trainer.position_head.named_parameters()]
    assert [name for name, parameter in learning if parameter.grad is None] == []
    assert {"loss_ce", "loss_ce_0", "dense_ce", "dense_giou", "position"} <= parts.keys()


def test_losses_fall_on_scenes_seen_again_and_again() -> None:
    trainer = Trainer(TINY, replace(SIX_STEPS, budget_seconds=1000))
    scenes = [black_with_a_white_box()]

    losses = [trainer.train_step(scenes) for _ in range(15)]

    for part in ("loss_ce", "loss_bbox", "dense_ce", "dense_bbox", "position"):
        assert losses[-1][part] < losses[0][part], part
    assert losses[-1]["loss_ce"] < 0.9 * losses[0]["loss_ce"]


def test_what_is_drawn_depends_on_the_step_and_the_seed_alone(pool: tuple[PoolScenes, ...]) -> None:
    first, again, later = (Trainer(TINY, SIX_STEPS) for _ in range(3))
    later.step = 1

    losses = [trainer.train_step(pool)["loss_bbox"] for trainer in (first, again, later)]

    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_the_average_follows_the_weights_and_the_statistics(pool: tuple[PoolScenes, ...]) -> None:
    trainer = Trainer(TINY, SIX_STEPS)
    start = {name: value.clone() for name, value in trainer.ema.state_dict().items()}

    trainer.train_step(pool)

    now, average = trainer.model.state_dict(), trainer.ema.state_dict()
    for name in ("class_embed.weight", "backbone.0.body.bn1.running_var"):
        # the first decay is 1 / 20
        torch.testing.assert_close(average[name], start[name] / 20 + now[name] * 19 / 20)
        assert not torch.equal(now[name], start[name])


def test_gradients_are_clipped_before_the_step(pool: tuple[PoolScenes, ...]) -> None:
    trainer = Trainer(TINY, SIX_STEPS)

    raw = trainer.train_step(pool)["gradient_norm"]

    kept = [p.grad for group in trainer.optimizer.param_groups for p in group["params"]]
    assert raw > CLIP_NORM
    assert torch.stack([gradient.norm() for gradient in kept]).norm().item() == pytest.approx(CLIP_NORM, rel=1e-3)


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(pool: tuple[PoolScenes, ...], tmp_path: Path) -> None:
    whole = Trainer(TINY, SIX_STEPS)
    clock = seconds()
    train(whole, pool, tmp_path / "whole", report=lambda _: None, evaluate=lambda _: None, clock=lambda: next(clock))

    class Killed(Exception):
        pass

    def kill(trainer: Trainer) -> None:
        raise Killed

    clock = seconds()
    with pytest.raises(Killed):  # after step 3; the last checkpoint is of step 2
        train(
            Trainer(TINY, SIX_STEPS),
            pool,
            tmp_path / "part",
            report=lambda _: None,
            evaluate=kill,
            clock=lambda: next(clock),
        )
    resumed = Trainer(TINY, SIX_STEPS)
    resumed.load(tmp_path / "part")
    assert (resumed.step, resumed.images, resumed.seconds) == (2, 8, 2.0)
    train(resumed, pool, tmp_path / "part", report=lambda _: None, evaluate=lambda _: None, clock=lambda: next(clock))

    assert (resumed.step, resumed.images, resumed.seconds) == (whole.step, whole.images, whole.seconds) == (6, 24, 6.0)
    ours, expected = state(resumed), state(whole)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_progress_and_evaluations_come_at_their_times(pool: tuple[PoolScenes, ...], tmp_path: Path) -> None:
    clock = seconds()
    told: list[Progress] = []
    evaluated: list[int] = []

    train(
        Trainer(TINY, replace(SIX_STEPS, log_seconds=2)),
        pool,
        tmp_path / "checkpoint",
        report=told.append,
        evaluate=lambda trainer: evaluated.append(trainer.step),
        clock=lambda: next(clock),
    )

    assert [(progress.step, progress.images, progress.share) for progress in told] == [
        (2, 8, pytest.approx(1 / 3)),
        (4, 16, pytest.approx(2 / 3)),
        (6, 24, 1.0),
    ]
    assert evaluated[:-1] == [3, 6]
    assert evaluated[-1] == 6  # once more at the end, whatever the clock says


def test_the_average_is_exported_as_a_model_that_loads(pool: tuple[PoolScenes, ...], tmp_path: Path) -> None:
    trainer = Trainer(TINY, SIX_STEPS)
    trainer.train_step(pool)
    pixels = draw_batch(pool, 2, (64,), Generator().manual_seed(0)).pixels

    loaded = load(export(trainer, tmp_path / "model"))

    assert loaded.config.categories == SCENES_CONFIG.categories
    assert (loaded.config.shorter, loaded.config.longest) == (192, 320)
    torch.testing.assert_close(loaded(pixels, None).logits, trainer.ema(pixels, None).logits)


def test_another_configuration_is_refused_on_resume(tmp_path: Path) -> None:
    Trainer(TINY, SIX_STEPS).save(tmp_path / "checkpoint")

    with pytest.raises(ValueError, match=r"is of another run .*'seed': 0.* now .*'seed': 1"):
        Trainer(TINY, replace(SIX_STEPS, seed=1)).load(tmp_path / "checkpoint")


def test_a_resumed_run_may_have_more_time(tmp_path: Path) -> None:
    trainer = Trainer(TINY, SIX_STEPS)
    trainer.seconds = 6.0
    trainer.save(tmp_path / "checkpoint")

    longer = Trainer(TINY, replace(SIX_STEPS, budget_seconds=12))
    longer.load(tmp_path / "checkpoint")

    assert (trainer.share, longer.share) == (1.0, 0.5)


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ScenesTraining(budget_seconds=0)
