"""The command `plan`: what a run would do, in a few lines, and nothing is written."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import detr.checkpoints.checkpoint
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from jobs.plan import main, predicted, report, size
from pipelines.errors import RayDetrError, SettingsMismatch, UsageError
from pipelines.labelling.labelled_keys import labelled_keys
from pipelines.labelling.plan import PlanSummary, write_plan
from pipelines.labelling.publish import commit_part
from pipelines.labelling.run import RunRequest, finish_run
from pipelines.labelling.trial import Prediction
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from pipelines.models import load_model
from pipelines.store import StoreOptions, open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table, with_settings
from tests.pipelines.labelling.runs import start_run

if TYPE_CHECKING:
    from pipelines.store import Store

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NOTHING = Detected([], (), [], [])


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"x" * 300)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "table"))


def rows_of(lake: Path, names: list[str], model: str) -> Any:
    listed = [item for item in list_objects([str(lake)]) if isinstance(item, LakeObject)]
    rows = [Row(item.uri, item.etag, detections=NOTHING) for item in listed if Path(item.uri).name in names]
    return rows_to_table(rows, origin=Origin(model, 0.5, "old", 0, NOW))


def publish(table: Store, lake: Path, names: list[str], model: str) -> None:
    table.put(f"data/{model}/00000.parquet", encode(rows_of(lake, names, model)))


def line(lake: Path, table: Store, *more: str) -> list[str]:
    return ["--images", str(lake), "--table", table.uri, *more]


def test_it_says_what_a_run_would_do_and_writes_nothing(
    lake: Path, table: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(line(lake, table, "--shard-images", "2"))

    assert capsys.readouterr().out.splitlines() == [
        "to label:   5 images, 1.5 kB, 3 shards of 2 images at most",
        "left out:   .txt 1",
    ]
    assert not (tmp_path / "table").exists()


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[str, str]:
    """The place of a small model, and what rows call it."""
    torch.manual_seed(0)
    network = Detr(DetrConfig(BackboneConfig("tiny", "bottleneck", 8, (32, 64), (1, 1)), 16, 2, 1, 1, 16, queries=3))
    detr.checkpoints.checkpoint.save(network.eval(), tmp_path / "tiny")
    return str(tmp_path / "tiny"), load_model(str(tmp_path / "tiny"), StoreOptions())[1].id


def test_without_a_model_the_rows_of_any_count_and_with_one_its_own(
    lake: Path, table: Store, tiny: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place, model = tiny
    publish(table, lake, ["0.jpg", "1.jpg"], model)
    publish(table, lake, ["1.jpg", "2.jpg"], "other@1")

    main(line(lake, table))
    assert capsys.readouterr().out.splitlines()[:2] == [
        "to label:   2 images, 600 bytes, 1 shard of 2,048 images at most",
        "labelled:   3 images have rows of some model",
    ]

    main(line(lake, table, "--model", place))
    assert capsys.readouterr().out.splitlines()[:2] == [
        "to label:   3 images, 900 bytes, 1 shard of 2,048 images at most",
        f"labelled:   2 images have rows of {model}",
    ]


def test_the_options_of_label_predict_what_label_would_do(
    lake: Path, table: Store, tiny: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place, model = tiny
    request = RunRequest(model, "1", {"threshold": 0.05, "classes": None, "precision": "auto"}, 2, {}, run_id="old")
    run, _ = start_run(table, request, now=NOW, tail="a1b2")
    table.put("data/old-00000.parquet", encode(with_settings(rows_of(lake, ["0.jpg", "1.jpg"], model), run.settings)))
    finish_run(table, "old", now=NOW, totals={"rows": 2, "detections": 0, "errors": {}})

    def planned(*more: str) -> str:
        main(line(lake, table, "--model", place, *more))
        return capsys.readouterr().out.partition(",")[0]

    assert planned() == "to label:   3 images"
    assert planned("--precision", "fp32") == "to label:   3 images"
    assert planned("--threshold", "0", "--relabel") == "to label:   5 images"
    assert planned("--precision", "bf16", "--relabel") == "to label:   5 images"
    main(line(lake, table, "--model", place, "--tiles", "640", "--relabel"))
    assert capsys.readouterr().out.startswith("to label:   5 images, 1.5 kB, 1 shard of 256 images at most")
    for more, difference in (
        (["--threshold", "0.5"], "threshold 0.05, now 0.5"),
        (["--classes", "cat=0.3"], "classes all, now cat=0.3"),
        (["--precision", "bf16"], "precision fp32, now bf16"),
        (["--tiles", "640x480"], "tiles none, now 640x480; overlap none, now 0.2"),
    ):
        with pytest.raises(SettingsMismatch, match=re.escape(f"with other settings ({difference})")):
            planned(*more)
    with pytest.raises(UsageError, match="'dgo' is not a class of"):
        planned("--classes", "dgo")


def test_a_file_in_place_of_the_table_is_refused(
    lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table").touch()

    with pytest.raises(SystemExit) as left:
        main(["--images", str(lake), "--table", str(tmp_path / "table")])

    assert left.value.code == 2
    assert f"--table {tmp_path / 'table'} is a file: give a folder" in capsys.readouterr().err


def test_settings_without_a_model_are_refused(lake: Path, table: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (
        ["--threshold", "0"],
        ["--classes", "cat"],
        ["--relabel"],
        ["--precision", "fp32"],
        ["--tiles", "640"],
    ):
        with pytest.raises(SystemExit) as left:
            main(line(lake, table, *more))
        assert left.value.code == 2
        assert f"{more[0]} needs --model" in capsys.readouterr().err


def test_a_run_that_would_be_resumed_is_reported_with_what_it_has_done(
    lake: Path, table: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = start_run(table, RunRequest("m@1", "1", {}, 2, {}, run_id="night"), now=NOW, tail="a1b2")
    nothing = labelled_keys(())
    list(write_plan(table, run.run_id, list_objects([str(lake)]), nothing.contains, shard_images=2))
    commit_part(table, run.run_id, 1, rows_of(lake, ["2.jpg", "3.jpg"], "m@1"), token="t")

    main(line(lake, table))

    assert capsys.readouterr().out.splitlines()[-1] == (
        "unfinished: run night is resumed first; it has labelled 2 of the 5 images that it has planned"
    )


def test_the_first_images_or_a_sample_are_planned_alone(
    lake: Path, table: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--max-images", "--sample"):
        main(line(lake, table, option, "3"))

        assert capsys.readouterr().out.startswith("to label:   3 images, 900 bytes, ")


def test_json_is_the_whole_summary(lake: Path, table: Store, capsys: pytest.CaptureFixture[str]) -> None:
    main(line(lake, table, "--json"))

    assert json.loads(capsys.readouterr().out) == {
        "images": 5,
        "size_bytes": 1500,
        "unknown_sizes": 0,
        "shards": 1,
        "segments": 1,
        "labelled": 0,
        "duplicates": 0,
        "skipped": {".txt": 1},
        "unfinished_run": None,
        "unfinished_images": 0,
        "unfinished_done": 0,
        "model": None,
        "shard_images": 2048,
    }


def test_what_is_wrong_with_the_line_is_wrong_use(lake: Path, table: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for more, sentence in (
        (["--shard-images", "0"], "0 is not in 1..1,000,000,000"),
        (["--keep", "uri"], "keep: 'uri' is a column"),
    ):
        with pytest.raises(SystemExit) as left:
            main(line(lake, table, *more))

        assert left.value.code == 2
        assert sentence in capsys.readouterr().err


def test_what_is_wrong_with_the_world_stops_it(lake: Path, table: Store, tmp_path: Path) -> None:
    with pytest.raises(RayDetrError, match="there is nothing at"):
        main(line(tmp_path / "other", table))
    with pytest.raises(RayDetrError, match="no-model"):
        main(line(lake, table, "--model", str(tmp_path / "no-model")))


def test_all_that_is_left_out_has_its_line() -> None:
    summary = PlanSummary(
        images=1_204_113,
        size_bytes=391_200_000_000,
        unknown_sizes=12,
        shards=588,
        segments=10,
        labelled=738_122,
        duplicates=3,
        skipped={".json": 2, "hidden": 1},
        unfinished_run=None,
    )

    assert report(summary, model="detr@1", shard_images=2_048).splitlines() == [
        "to label:   1,204,113 images, 391.2 GB and 12 of unknown size, 588 shards of 2,048 images at most",
        "labelled:   738,122 images have rows of detr@1",
        "duplicates: 3 further mentions of the same images",
        "left out:   .json 2, hidden 1",
    ]


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (3_231_173, "3.2 MB"), (2 * 10**15, "2,000.0 TB")],
)
def test_a_size_has_the_unit_that_suits_it(size_bytes: int, shown: str) -> None:
    assert size(size_bytes) == shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--trial 100", "--trial needs --model"),
        ("--model scenes --trial 100 --max-images 5", "omit --max-images and --sample"),
        ("--model scenes --price-per-hour 3", "--price-per-hour needs --trial"),
    ],
)
def test_a_trial_needs_what_it_is_of(capsys: pytest.CaptureFixture[str], options: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--images", "s3://lake/", "--table", "s3://lake/t", *options.split()])

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_prediction_is_shown_with_its_intervals() -> None:
    found = Prediction(500, 25.0, (20.0, 30.0), 11.2, (9.3, 14.0), 2, 91.84, (76.26, 114.8))

    assert predicted(found).splitlines() == [
        "trial:      500 images: 25.00 images/s (20.00 to 30.00) on 2 nodes",
        "predicted:  11.20 hours (9.30 to 14.00)",
        "price:      91.84 (76.26 to 114.80)",
    ]
