"""The command `review`: what a line asks for, what is refused, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.review import exported_report, imported_report, main
from pipelines.review import corrected_shards, export
from pipelines.review.config import CorrectionsConfig, ReviewConfig
from pipelines.review.corrected_shards import CorrectionsSummary
from pipelines.review.export import ReviewSummary
from pipelines.shards.sharding import ShardSummary
from pipelines.store import StoreOptions

PLACES = ["--table", "table", "--out", "out"]
GIVEN = ReviewSummary(
    batch=2, out="out", files=("tasks.json",), images=40, asked=50, boxes=120, classes=("cat", "dog"), available=900,
    exported_before=50,
)  # fmt: skip
SHARDS = ShardSummary(
    out="s3://b/shards", images=37, annotations=130, files=1, size_bytes=3_200_000,
    report={"left_out_changed": 1, "images": 37, "annotations": 130},
    examples={"left_out_changed": ("image 3: changed",)},
    seconds=2.0, was_done=False,
)  # fmt: skip
TAKEN = CorrectionsSummary(
    batches=(1, 2), reviewed=38, boxes=131, without_boxes=4, skipped=1, not_reviewed=1, repeated=3, unmatched=2,
    other_size=("task 7 shows 60 x 80 pixels",), classes=("cat", "dog"), shards=SHARDS,
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asks for; it gets a summary without any work."""
    configs: list[Any] = []

    def export_review(config: ReviewConfig, **_: object) -> ReviewSummary:
        configs.append(config)
        return GIVEN

    def shard_corrections(config: CorrectionsConfig, **_: object) -> CorrectionsSummary:
        configs.append(config)
        return TAKEN

    monkeypatch.setattr(export, "export_review", export_review)
    monkeypatch.setattr(corrected_shards, "shard_corrections", shard_corrections)
    return configs


def test_a_short_line_takes_the_defaults(asked: list[Any]) -> None:
    main([*PLACES, "--export", "random"])
    main([*PLACES, "--import", "a.json", "b.json"])

    assert asked == [
        ReviewConfig("table", "out", "random"),
        CorrectionsConfig("table", "out", ("a.json", "b.json")),
    ]


def test_every_option_arrives(asked: list[Any]) -> None:
    store = ["--endpoint", "http://h:1", "--region", "eu", "--profile", "lake"]
    main([
        *PLACES, "--export", "disagreement", "--count", "9", "--to", "labelstudio", "--threshold", "0.5", "--run", "b",
        "--against", "a", "--seed", "3", "--classes-of", "scenes", "--image-urls", "s3://l/", "https://h/", *store,
    ])  # fmt: skip
    main([
        *PLACES, "--import", "a.json", "--classes-of", "scenes", "--add-classes", "fox", "owl", "--max-missing", "0.5",
        "--max-unusable", "0.25", *store,
    ])  # fmt: skip

    options = StoreOptions(endpoint="http://h:1", region="eu", profile="lake")
    assert asked == [
        ReviewConfig("table", "out", "disagreement", 9, "labelstudio", 0.5, "b", "a", 3, "scenes",
                     ("s3://l/", "https://h/"), options),
        CorrectionsConfig("table", "out", ("a.json",), "scenes", ("fox", "owl"), 0.5, 0.25, options),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ([], "one of the arguments --export --import is required"),
        (["--export", "best"], "invalid choice: 'best'"),
        (["--export", "random", "--import", "a.json"], "not allowed with"),
        (["--export", "random", "--add-classes", "fox"], "--add-classes applies only to --import"),
        (["--import", "a.json", "--count", "3"], "--count applies only to --export"),
        (["--export", "disagreement"], "against: disagreement needs the earlier run"),
        (["--export", "random", "--out", "table/x"], "is inside the table"),
        (["--export", "random", "--count", "0"], "0 is not at least 1"),
    ],
)
def test_a_wrong_line_is_refused(
    line: list[str], sentence: str, asked: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*PLACES, *line])

    assert left.value.code == 2
    assert sentence in capfd.readouterr().err
    assert asked == []


def test_the_report_of_a_batch_says_what_to_do_with_it() -> None:
    config = ReviewConfig("s3://lake/detections", "out", "least-certain")

    assert exported_report(GIVEN, config).splitlines() == [
        "batch 2: 40 images (of 50 asked for) with 120 boxes, least-certain, of 900 that could be chosen, 50 exported "
        "before",
        "classes, 2: cat, dog (those that the rows have; --classes-of MODEL gives all classes of a model)",
        "correct: in Label Studio, with the labelling interface interface.xml, import tasks.json",
        "files: out",
        "then: ray-detr review --table s3://lake/detections --import FILE --out SHARDS",
    ]


def test_the_next_command_of_a_batch_can_be_copied_into_a_shell() -> None:
    config = ReviewConfig("my tables/night", "out", "least-certain")

    last = exported_report(GIVEN, config).splitlines()[-1]

    assert last == "then: ray-detr review --table 'my tables/night' --import FILE --out SHARDS"


def test_the_report_of_corrections_counts_what_was_left_out() -> None:
    assert imported_report(TAKEN).splitlines() == [
        "batches 1, 2: 38 images reviewed, 131 boxes, 4 images without boxes; 1 skipped, 1 not reviewed",
        "found: further answers for reviewed images: 3, the newest one is used",
        "found: tasks or images that belong to no batch of this table: 2, left out",
        "found: images whose proportions differ in the tool: 1, left out (task 7 shows 60 x 80 pixels)",
        "found: images that have changed since they were labelled: 1, left out (image 3: changed)",
        "done: 37 images with 130 annotations in 2.0 s (18.5 images/s)",
        "shards: s3://b/shards, 3.2 MB in 1 file",
        "train: ray-detr train --train s3://b/shards --recipe finetune --finetune MODEL --storage URI --name NAME",
    ]


def test_summaries_come_as_json(asked: list[Any], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main([*PLACES, "--export", "random", "--json"])
    assert json.loads(capfd.readouterr().out)["files"] == ["tasks.json"]

    main([*PLACES, "--import", "a.json", "--json"])
    assert json.loads(capfd.readouterr().out)["shards"]["images"] == 37
