"""The command `label`: what its line means, what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.labelling.label
from jobs.label import duration, main, report, write_shard
from pipelines.caps import Caps
from pipelines.errors import BudgetExceeded, CapReached, UsageError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import LabelSummary, query_command
from pipelines.labelling.outcome import ShardReport, Work
from pipelines.labelling.progress import Progress
from pipelines.store import StoreOptions, TableOptions
from pipelines.table.schema import Row
from tests.pipelines.report.tables import dog_and_cat, publish, row

NEEDED = ["--images", "s3://lake/2026/", "--table", "s3://lake/detections", "--model", "scenes"]
SUMMARY = LabelSummary(
    table="s3://lake/detections",
    run_id="20261122-181503-a1b2",
    model="scenes@0123456789ab",
    images=1_204_113,
    images_this_start=1_204_113,
    changed_this_start=0,
    detections=9_810_552,
    errors={"missing": 8, "truncated": 22, "not_an_image": 11},
    already_labelled=0,
    duplicates=0,
    skipped={},
    files=37,
    seconds=2_931.0,
    labelling_seconds=2_900.0,
    resumed=False,
    max_error_rate=0.05,
    query=query_command("s3://lake/detections", "detr@1", StoreOptions(profile="lake")),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[LabelConfig]:
    """What the command asked the pipeline for, which answers with `SUMMARY`."""
    configs: list[LabelConfig] = []

    def label(
        config: LabelConfig,
        *,
        on_progress: Callable[[Progress], None],
        afterwards: ExitStack,
        on_shard: Callable[[str, ShardReport], None],
    ) -> LabelSummary:
        on_shard("night", ShardReport(3, 64, 320, {}, 1.0, 0.5, 0.25, 0.125))
        on_progress(Progress("planning"))
        configs.append(config)
        return replace(SUMMARY, max_error_rate=config.max_error_rate)

    monkeypatch.setattr(pipelines.labelling.label, "label", label)
    return configs


def test_the_shortest_line_has_the_defaults_of_the_library(asked: list[LabelConfig]) -> None:
    main(NEEDED)

    assert asked == [LabelConfig(("s3://lake/2026/",), "s3://lake/detections", "scenes")]


def test_every_option_arrives(asked: list[LabelConfig]) -> None:
    line = (
        "--threshold 0.1 --classes cat dog=0.5 --run-id night --new-run --actors 2:8 --shard-images 100 --device cpu "
        "--precision bf16 --batch-size 3 --max-error-rate 0.5 --sample 9 --seed 4 --keep station --via fsspec "
        "--image-column image "
        "--anonymous --endpoint http://127.0.0.1:9000 --region eu-west-1 --profile lake --request-payer "
        "--table-endpoint http://127.0.0.1:9001 --table-region eu-west-2 --table-profile us --max-minutes 9 "
        "--cpus-per-actor 4 --gpus-per-actor 0.5 "
        "--max-cost 7 --price-per-hour 3.5 --shared-folders --verbose"
    )

    main([*NEEDED, *line.split()])

    assert asked == [
        LabelConfig(
            ("s3://lake/2026/",),
            "s3://lake/detections",
            "scenes",
            threshold=0.1,
            classes=(("cat", None), ("dog", 0.5)),
            precision="bf16",
            batch_size=3,
            device="cpu",
            run_id="night",
            new_run=True,
            actors=(2, 8),
            cpus_per_actor=4,
            gpus_per_actor=0.5,
            shard_images=100,
            max_error_rate=0.5,
            sample=9,
            seed=4,
            keep=("station",),
            image_column="image",
            image_options=StoreOptions(
                via="fsspec",
                anonymous=True,
                request_payer=True,
                endpoint="http://127.0.0.1:9000",
                region="eu-west-1",
                profile="lake",
            ),
            table_access=TableOptions("http://127.0.0.1:9001", "eu-west-2", "us"),
            caps=Caps(9, 7, 3.5),
            shared_folders=True,
            verbose=True,
        )
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--actors 8:2", "argument --actors: 8:2: MIN is larger than MAX"),
        ("--actors 0", "argument --actors: 0 is less than 1"),
        ("--max-error-rate 5", "argument --max-error-rate: 5 is not in 0..1"),
        ("--classes cat=7", "argument --classes: 7 is not in 0..1"),
        ("--device tpu", "argument --device: invalid choice: 'tpu' (choose from 'auto', 'cpu', 'cuda')"),
        ("--run-id ../other", "run id: '../other' is not a valid folder name"),
        ("--keep uri", "keep: 'uri' is a column of the detection table itself"),
        ("--max-cost 5", "max cost: give --price-per-hour, the price of one node for an hour, too."),
        ("--no-such-option", "--no-such-option is not an option"),
    ],
)
def test_wrong_use_is_reported_before_anything_is_done(
    asked: list[LabelConfig], capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*NEEDED, *line.split()])

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err
    assert asked == []


def test_the_result_is_on_standard_output_and_the_progress_on_standard_error(
    asked: list[LabelConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    main(NEEDED)

    printed = capfd.readouterr()
    assert printed.out == report(SUMMARY, 0.05) + "\n"
    assert printed.err.splitlines()[-1] == "  planning"


def test_the_result_is_printed_before_a_local_ray_is_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []

    def label(config: LabelConfig, *, afterwards: ExitStack, **_: object) -> LabelSummary:
        afterwards.callback(lambda: printed.append(capfd.readouterr().out))
        return SUMMARY

    monkeypatch.setattr(pipelines.labelling.label, "label", label)
    main(NEEDED)

    assert printed == [report(SUMMARY, 0.05) + "\n"]


def test_a_table_that_is_no_basis_for_ap_is_told_how_to_make_one() -> None:
    hint = (
        "note:   detections below 0.05 are not kept. For AP (ray-detr evaluate), label into another table with "
        "--threshold 0"
    )

    assert report(SUMMARY, 0.05).splitlines()[-1] == hint
    assert "--threshold" not in report(SUMMARY, 0.0)


def test_whoever_labels_again_is_told_that_images_have_several_rows() -> None:
    hint = (
        "note:   images that had rows with other settings have several rows now. The query counts the newest row of "
        "each image, which is also what ray-detr export --latest copies"
    )

    assert report(SUMMARY, 0.0, relabel=True).splitlines()[-1] == hint
    assert hint not in report(SUMMARY)


def test_the_model_of_the_package_says_what_it_knows(
    asked: list[LabelConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    main(["--images", "lake", "--table", "table", "--model", "scenes", "--json"])

    printed = capfd.readouterr()
    assert printed.err.splitlines()[0] == (
        "note: the model scenes detects only six drawn shapes (disc, square, triangle, star, ring and cross). "
        "For photographs, give another model, such as --model facebook/detr-resnet-50"
    )
    assert json.loads(printed.out)


def test_another_model_says_nothing_of_shapes(asked: list[LabelConfig], capfd: pytest.CaptureFixture[str]) -> None:
    main(["--images", "lake", "--table", "table", "--model", "facebook/detr-resnet-50"])

    assert "shapes" not in capfd.readouterr().err


def test_json_is_the_whole_summary(asked: list[LabelConfig], capfd: pytest.CaptureFixture[str]) -> None:
    main([*NEEDED, "--json"])

    summary: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert (summary["images"], summary["errors"]["truncated"], summary["files"]) == (1_204_113, 22, 37)
    assert set(summary) == set(SUMMARY.__dataclass_fields__)


def test_a_report_of_the_run_is_written_after_the_result(
    asked: list[LabelConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table, page = str(tmp_path / "table"), tmp_path / "r.html"
    publish(table, [row("s3://lake/2026/a.jpg", dog_and_cat(0.9, 0.6))], "earlier")
    publish(table, [Row("s3://lake/2026/b.jpg", error_kind="empty")], SUMMARY.run_id)

    main(["--images", "s3://lake/2026/", "--table", table, "--model", "scenes", "--report", str(page)])

    assert capfd.readouterr().out.splitlines()[-1] == f"report: {page}"
    assert f"run {SUMMARY.run_id}" in page.read_text()
    assert "<dd>1 (100 %)</dd>" in page.read_text()


@pytest.mark.parametrize("is_json", [False, True])
def test_a_night_without_new_images_says_that_the_page_is_an_earlier_one(
    asked: list[LabelConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    is_json: bool,
) -> None:
    quiet = replace(SUMMARY, images=0, errors={}, skipped={}, already_labelled=41)
    monkeypatch.setattr("pipelines.labelling.label.label", lambda *_, **__: quiet)
    page = tmp_path / "r.html"
    page.write_text("the page of an earlier run")

    main([*NEEDED, "--report", str(page), *(["--json"] if is_json else [])])

    printed = capfd.readouterr()
    told = (printed.err if is_json else printed.out).splitlines()[-1]
    assert told == "report: not written, because no image was labelled; an earlier page stays as it is"
    assert page.read_text() == "the page of an earlier run"
    if is_json:
        assert json.loads(printed.out)["images"] == 0


def test_too_many_errors_are_reported_after_the_result(
    asked: list[LabelConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BudgetExceeded, match=r"^41 of 1,204,113 images have errors: a share of 3\.4e-05, but --max-"):
        main([*NEEDED, "--max-error-rate", "0"])

    assert capfd.readouterr().out.startswith("done: ")


def test_errors_that_were_there_before_are_shown_and_do_not_count(
    asked: list[LabelConfig], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    quiet = replace(SUMMARY, images=41, repeated_errors=41)
    monkeypatch.setattr("pipelines.labelling.label.label", lambda *_, **__: quiet)
    main(NEEDED)

    assert "errors: 41 (100 %): truncated 22, not_an_image 11, missing 8; 41 had the same error before" in (
        capfd.readouterr().out.splitlines()
    )

    monkeypatch.setattr(
        "pipelines.labelling.label.label", lambda *_, **__: replace(quiet, images=43, repeated_errors=33)
    )
    with pytest.raises(
        BudgetExceeded,
        match=r"^8 of 10 images have errors, without 33 that had the same error before: a share of 0\.8, but --max-",
    ):
        main(NEEDED)


def test_a_page_that_cannot_be_written_does_not_hide_too_many_errors(
    asked: list[LabelConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["--images", "lake", "--table", str(tmp_path / "gone"), "--model", "x/y", "--report", str(tmp_path / "r")]

    with pytest.raises(BudgetExceeded):  # the next start finds nothing to label, and ends with 0
        main([*line, "--max-error-rate", "0"])

    noted = f"note: table {(tmp_path / 'gone').as_uri()} has no published rows"
    assert capfd.readouterr().err.splitlines()[-1].startswith(noted)
    with pytest.raises(UsageError, match="has no published rows"):
        main(line)


def test_a_run_that_stops_at_a_limit_says_so_as_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise CapReached("the limit of 5 minutes (--max-minutes) is reached.", run_id="night-2", images=7, cost=None)

    monkeypatch.setattr("pipelines.labelling.label.label", stop)
    with pytest.raises(CapReached):
        main([*NEEDED, "--json"])

    assert json.loads(capfd.readouterr().out) == {
        "stopped": "the limit of 5 minutes (--max-minutes) is reached.",
        "table": "s3://lake/detections",
        "run_id": "night-2",
        "images": 7,
        "cost": None,
    }
    with pytest.raises(CapReached):
        main(NEEDED)
    assert capfd.readouterr().out == ""


def test_a_person_is_told_images_errors_and_where_they_are() -> None:
    assert report(SUMMARY).splitlines() == [
        "done: 1,204,113 images in 48 min 51 s (410.8 images/s), 9,810,552 detections",
        "errors: 41 (0.0034 %): truncated 22, not_an_image 11, missing 8",
        "table:  s3://lake/detections, 37 files of run 20261122-181503-a1b2",
        "query:  ray-detr query --table s3://lake/detections --model detr@1 --profile lake "
        '"SELECT label, count(*) AS detections FROM detections GROUP BY ALL ORDER BY 2 DESC"',
    ]


def test_what_was_left_out_what_had_changed_and_what_was_resumed_is_reported_where_there_is_any() -> None:
    summary = replace(
        SUMMARY,
        images=10,
        images_this_start=4,
        changed_this_start=3,
        errors={},
        already_labelled=1_000,
        skipped={".json": 2, "hidden": 1},
        resumed=True,
        files=1,
        seconds=8.0,
    )

    lines = report(summary).splitlines()

    assert lines[0] == "done: 10 images in 8.0 s (0.5 images/s), 9,810,552 detections"
    assert lines[1:-1] == [
        "changed: 3 images changed between listing and reading; their rows describe the version that was read",
        "resumed: run 20261122-181503-a1b2 had 4 images left. Run the command again to label images that were added "
        "after it was planned",
        "skipped: 1,000 images have rows already",
        "left out: .json 2, hidden 1",
        "table:  s3://lake/detections, 1 file of run 20261122-181503-a1b2",
    ]


def test_the_summary_says_how_busy_devices_were() -> None:
    work = Work(2.0, 3.0, 66.0, busy_seconds=48.0, actor_seconds=64.0, requests=1_200, size_bytes=3_000_000)

    lines = report(replace(SUMMARY, work=work)).splitlines()

    told = (
        "reading 2.0 s, decoding 3.0 s, network 1 min 6 s over all threads; devices busy 75 %; 1,200 requests, 3.0 MB"
    )
    assert f"work:   {told}" in lines


def test_nothing_to_do_is_success_in_one_line() -> None:
    summary = replace(SUMMARY, images=0, images_this_start=0, errors={}, files=0, already_labelled=1_204_113)

    labelled = "all 1,204,113 images have rows of scenes@0123456789ab already"
    assert report(summary) == f"nothing to do: {labelled}"
    assert report(summary, any_model=True) == "nothing to do: all 1,204,113 images have rows already"
    left_out = {"not modified since": 1_200, ".json": 2}
    assert report(replace(summary, skipped=left_out)) == (
        f"nothing to do: {labelled}; left out: not modified since 1,200, .json 2"
    )
    assert report(replace(summary, skipped=left_out, already_labelled=0)) == (
        "nothing to do: left out: not modified since 1,200, .json 2"
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (59.6, "1 min 0 s"), (2_931, "48 min 51 s"), (3_600, "1 h 0 min")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_what_ray_says_while_it_ends_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def label(config: LabelConfig, *, afterwards: ExitStack, **_: Any) -> LabelSummary:
        afterwards.callback(print, "a worker died")
        return SUMMARY

    monkeypatch.setattr(pipelines.labelling.label, "label", label)

    main([*NEEDED, "--json"])

    out, err = capfd.readouterr()
    assert json.loads(out)["run_id"] == SUMMARY.run_id
    assert "a worker died" in err


@pytest.mark.parametrize("name", ["transient", "passing"])
def test_the_former_name_of_transient_errors_means_the_same(asked: list[LabelConfig], name: str) -> None:
    main([*NEEDED, "--retry-errors", name])

    assert asked[0].retry_errors == "transient"
    assert asked[0].resume_identity()["retry_errors"] == "passing"  # as in the records of unfinished runs
    assert replace(asked[0], retry_errors="passing").resume_identity() == asked[0].resume_identity()
    assert replace(asked[0], retry_errors="all").resume_identity() != asked[0].resume_identity()


def test_the_former_name_is_not_offered(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*NEEDED, "--retry-errors", "some"])

    assert "--retry-errors: 'some' is not one of transient, all" in capfd.readouterr().err


def test_shards_are_logged_as_json_where_that_is_asked_for(
    asked: list[LabelConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    main(NEEDED)
    assert '"shard": 3' not in capsys.readouterr().err

    main([*NEEDED, "--log-json"])
    said = capsys.readouterr()
    assert '"event": "shard", "run_id": "night", "shard": 3, "images": 64' in said.err
    assert '"shard": 3' not in said.out


def test_a_shard_is_one_line_of_json_with_its_figures(capfd: pytest.CaptureFixture[str]) -> None:
    shard = ShardReport(7, 64, 320, {"truncated": 2}, 1.23456, 0.5, 0.25, 0.125, size_bytes=9_000, requests=65)

    write_shard("night", shard)

    (line,) = capfd.readouterr().err.splitlines()
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "event": "shard",
        "run_id": "night",
        "shard": 7,
        "images": 64,
        "detections": 320,
        "errors": {"truncated": 2},
        "seconds": 1.235,
        "fetch_seconds": 0.5,
        "decode_seconds": 0.25,
        "detect_seconds": 0.125,
        "busy_seconds": 0.0,
        "actor_seconds": 0.0,
        "changed": 0,
        "notes": [],
        "size_bytes": 9_000,
        "requests": 65,
        "batched": 0,
        "places": 0,
        "pixels": 0,
        "padded_pixels": 0,
    }
