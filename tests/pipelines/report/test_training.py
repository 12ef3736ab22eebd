"""The report of a training run: what it stored, and validation pictures with what its model finds."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jobs.report import main
from pipelines.errors import RayDetrError
from pipelines.options import declared
from pipelines.report.config import ReportConfig, TrainingReportConfig
from pipelines.report.training import TrainingReportSummary, write_training_report
from pipelines.report.validation_pictures import spread
from tests.pipelines.report.test_report import data_of
from tests.pipelines.report.training_runs import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_run(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def page(run: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingReportSummary, str]:
    out = tmp_path_factory.mktemp("page") / "training.html"
    return write_training_report(TrainingReportConfig(run, out, pictures=3)), out.read_text()


def test_the_summary_says_what_the_run_came_to(page: tuple[TrainingReportSummary, str]) -> None:
    summary, html = page

    assert (summary.epochs, summary.steps, summary.pictures, summary.problem, summary.AP) == (2, 4, 3, None, 0.5)
    assert summary.bytes == len(html.encode())


def test_the_page_has_figures_of_the_log_and_of_the_checkpoint(page: tuple[TrainingReportSummary, str]) -> None:
    _, html = page

    for name, value in [
        ("state", "finished"),
        ("best AP", "0.500"),
        ("epochs", "2"),
        ("steps", "4"),
        # 4 steps of 8 images: three at 8 images/s, one at 4
        ("time in steps", "5 s"),
        ("images/s", "6.4"),
        ("waiting for data", "35 %"),
        ("worker restarts", "1"),
    ]:
        assert f"<dt>{name}</dt><dd>{value}</dd>" in html
    assert "AP over epochs. AP: first 0.25, last 0.5, lowest 0.25 at epoch 1, highest 0.5 at epoch 2." in html
    assert "Loss. total: first 8, last 3, lowest 3 at step 4, highest 8 at step 1." in html
    assert "other: first 1e-4" in html
    assert '<th scope="row">disc</th><td class="number">0.500</td><td class="number">3</td>' in html
    assert '<th scope="row">effective_batch</th><td class="address">8</td>' in html
    assert '<th scope="row">torch</th><td class="address">2.14.1</td>' in html
    assert "2026-11-22 12:03:00 to 2026-11-22 12:09:00" in html


def test_names_of_the_data_cannot_break_the_page(page: tuple[TrainingReportSummary, str]) -> None:
    assert "<b>star" not in page[1]
    assert "&lt;b&gt;star" in page[1]


def test_a_box_that_is_not_a_number_costs_neither_pictures_nor_controls(
    page: tuple[TrainingReportSummary, str],
) -> None:
    data = data_of(page[1])  # a browser reads no NaN

    sides = [box[2:6] for gallery in data["galleries"] for item in gallery["items"] for box in item["boxes"]]
    assert len(data["pictures"]) == 3
    assert all(math.isfinite(side) for box in sides for side in box)


def test_pictures_have_what_is_found_beside_the_truth(page: tuple[TrainingReportSummary, str]) -> None:
    data = data_of(page[1])

    assert [picture["uri"] for picture in data["pictures"]] == [
        "scene_5_000000.jpg", "scene_5_000001.jpg", "scene_5_000003.jpg",
    ]  # fmt: skip
    assert all(picture["source"].startswith("data:image/webp;base64,") for picture in data["pictures"])
    (gallery,) = data["galleries"]
    truth = [[box for box in item["boxes"] if box[6] == 1] for item in gallery["items"]]
    found = [[box for box in item["boxes"] if box[6] == 0] for item in gallery["items"]]
    assert all(box[1] is None for boxes in truth for box in boxes)
    assert all(0.05 <= box[1] <= 1 for boxes in found for box in boxes)
    # the model of the package knows these scenes: nearly every annotated box is found
    matched = sum(any(_overlaps(one, other) for other in found[n]) for n, boxes in enumerate(truth) for one in boxes)
    assert matched / sum(map(len, truth)) > 0.7


def _overlaps(one: list[Any], other: list[Any]) -> bool:
    left, top, right, bottom = (
        max(one[2], other[2]),
        max(one[3], other[3]),
        min(one[4], other[4]),
        min(one[5], other[5]),
    )
    both = max(0.0, right - left) * max(0.0, bottom - top)
    areas = [(box[4] - box[2]) * (box[5] - box[3]) for box in (one, other)]
    return one[0] == other[0] and both / (sum(areas) - both) > 0.5


def test_images_are_evenly_spread() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(2, 4) == [0, 1]
    assert spread(0, 4) == []


def test_a_run_without_validation_has_a_page_without_script(tmp_path: Path) -> None:
    run = write_run(tmp_path, has_val=False, is_finished=False)

    summary = write_training_report(TrainingReportConfig(run, tmp_path / "t.html"))

    html = (tmp_path / "t.html").read_text()
    assert summary.problem == "The run was started without --val, so there are no validation images to show."
    assert summary.problem in html
    assert "<script" not in html
    assert "<dt>state</dt><dd>not finished</dd>" in html
    assert "<dt>epochs</dt><dd>2 of 60</dd>" in html


def test_missing_or_other_shards_cost_only_the_pictures(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    index = tmp_path / "shards" / "index.json"
    index.write_text(index.read_text() + "\n")

    changed = write_training_report(TrainingReportConfig(run, tmp_path / "t.html"))
    shutil.rmtree(tmp_path / "shards")
    gone = write_training_report(TrainingReportConfig(run, tmp_path / "t.html"))

    assert changed.problem is not None
    assert changed.problem.endswith("are not those that the run was evaluated with.")
    assert gone.problem is not None
    assert "there are no training shards at" in gone.problem
    assert gone.problem.removeprefix("Validation images cannot be shown: ") in (tmp_path / "t.html").read_text()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RayDetrError, match="there is no training run at"):
        write_training_report(TrainingReportConfig(str(tmp_path), tmp_path / "t.html"))


def test_the_command_prints_what_it_wrote(run: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.html"

    main(["--training", run, "--out", str(out), "--pictures", "1", "--json"])
    written = TrainingReportSummary(**json.loads(capfd.readouterr().out))
    main(["--training", run, "--out", str(out), "--pictures", "1"])

    assert (written.pictures, written.bytes) == (1, out.stat().st_size)
    size = f"{written.bytes / 1e6:.1f} MB"
    assert capfd.readouterr().out == f"report: 2 epochs, 4 steps, 1 pictures, {size}: {out}\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--training", "runs/a", "--table", "t"], "not allowed with argument"),
        (
            ["--training", "runs/a", "--annotations", "x.json"],
            "--annotations applies only to --table, not for --training",
        ),
        (["--training", "runs/a", "--threshold", "0.505"], "threshold: 0.505 is not one of"),
        ([], "one of the arguments --table --training is required"),
    ],
)
def test_options_that_do_not_fit_are_wrong_use(
    line: list[str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(line)

    assert left.value.code == 2
    assert sentence in capfd.readouterr().err


def test_each_option_that_the_page_of_a_training_run_does_not_use_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = {field.name for field in fields(TrainingReportConfig)}
    unused = [one for one in declared(ReportConfig) if one.name not in used]
    assert {one.flag for one in unused} >= {"--seed", "--match-classes", "--run", "--keep-repeats"}

    for one in unused:
        given = {"match_classes": ["name"], "keep_repeats": []}.get(one.name, ["7"])
        with pytest.raises(SystemExit) as left:
            main(["--training", "nowhere", one.flag, *given])
        assert left.value.code == 2
        assert f"{one.flag} applies only to --table" in capsys.readouterr().err
