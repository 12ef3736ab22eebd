"""Commands with a model of `transformers`: what they print, and what they refuse in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import detect, plan
from pipelines.errors import UsageError
from pipelines.training.config import TrainConfig
from pipelines.training.recipe import RECIPES
from pipelines.training.train import train as train_run
from tests.families import own_detections, random_images, write_family
from tests.pipelines.conftest import write_drawn_shards


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("rt_detr", tmp_path_factory.mktemp("models") / "herd")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_detect_prints_what_the_pipeline_finds(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image,) = random_images((50, 70))
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"<html>")

    detect.main([str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(model), "--threshold", "0", "--json"])

    seen, unseen = map(json.loads, capsys.readouterr().out.splitlines())
    (own,) = own_detections(model, [image])
    expected = sorted((one["score"], one["label"]) for one in own)
    assert unseen["error_kind"] == "not_an_image"
    assert sorted(one["label"] for one in seen["detections"]) == sorted(label for _, label in expected)
    assert sorted(one["score"] for one in seen["detections"]) == pytest.approx(
        [score for score, _ in expected], abs=1e-4
    )


def test_half_precision_is_taken_from_the_command_line_and_auto_is_fp32(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_images((50, 70))[0].save(tmp_path / "a.png")
    scores = {}
    for precision in ("auto", "fp32", "bf16"):
        detect.main(
            [str(tmp_path / "a.png"), "--model", str(model), "--precision", precision, "--threshold", "0", "--json"]
        )
        scores[precision] = [one["score"] for one in json.loads(capsys.readouterr().out)["detections"]]

    assert scores["auto"] == scores["fp32"] != scores["bf16"]
    assert scores["bf16"] == pytest.approx(scores["fp32"], abs=0.02)


@pytest.mark.slow
def test_plan_finds_its_rows_and_train_refuses_it_with_what_does_train_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_images((50, 70))[0].save(tmp_path / "a.png")
    write_drawn_shards(str(tmp_path / "shards"), ((2, 2),))

    plan.main(
        ["--images", str(tmp_path / "a.png"), "--table", str(tmp_path / "table"), "--model", str(model), "--json"]
    )
    planned = json.loads(capsys.readouterr().out)

    assert planned["model"].startswith("herd@")
    assert planned["images"] == 1
    config = TrainConfig(
        train=str(tmp_path / "shards"), storage=str(tmp_path / "runs"), name="a", recipe=RECIPES["finetune"],
        finetune=str(model),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"cannot train herd@\w{12}, a RT-DETR model; .* transformers' T"):
        train_run(config)


def test_plan_and_label_mean_fp32_by_auto_also_where_rows_are_in_bf16(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("pipelines.labelling.plan.summarise_plan", lambda config, **_: asked.append(config.precision))
    line = ["--images", str(tmp_path), "--table", str(tmp_path / "table"), "--model", str(model)]

    for precision in ([], ["--precision", "bf16"]):
        with pytest.raises(AttributeError):  # of the plan that is not made
            plan.main([*line, *precision])

    assert asked == ["fp32", "bf16"]
