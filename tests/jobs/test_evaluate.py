"""The command `evaluate`: what its line means, what it prints, draws and writes, and its exit codes."""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pipelines.evaluation.evaluate_model
from jobs.evaluate import main, points
from jobs.exits import BUDGET_EXCEEDED, run
from pipelines.errors import BudgetExceeded, RayDetrError, UsageError
from pipelines.evaluation.evaluate import evaluate_table
from pipelines.evaluation.evaluate_model import ModelEvaluationConfig
from pipelines.store import StoreOptions
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.conftest import S3Server

BOX = [10.0, 10.0, 50.0, 50.0]


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    """A cat in each of a.jpg and b.jpg, both of 240 x 320 pixels."""
    path = tmp_path / "instances.json"
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 1, "file_name": "a.jpg", "height": 240, "width": 320},
                    {"id": 2, "file_name": "b.jpg", "height": 240, "width": 320},
                ],
                "annotations": [
                    {"id": number, "image_id": number, "category_id": 3, "iscrowd": 0, "bbox": [10, 10, 40, 40],
                     "area": 1600} for number in (1, 2)
                ],
                "categories": [{"id": 3, "name": "cat"}],
            }
        )
    )  # fmt: skip
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> str:
    return write_table(tmp_path / "table")


@pytest.fixture
def results(tmp_path: Path) -> str:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([{"image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9}]))
    return str(path)


def write_table(folder: Path, *, threshold: float = 0.0, configuration: dict[str, Any] | None = None) -> str:
    """A table with the cat of a.jpg and an image that nobody annotated; b.jpg is an error."""
    rows = [
        Row("s3://lake/a.jpg", height=240, width=320, detections=Detected([3], ["cat"], [0.9], [BOX])),
        Row("s3://lake/b.jpg", error_kind="truncated", error="it ends too early"),
        Row("s3://lake/c.jpg", height=240, width=320, detections=Detected([], [], [], [])),
    ]
    origin = Origin("pets@0123456789ab", threshold, "run-1", 0, datetime(2026, 11, 22, tzinfo=UTC))
    (folder / "data" / "run-1").mkdir(parents=True)
    data = encode(rows_to_table(rows, origin=origin), {"configuration": json.dumps(configuration or {})})
    (folder / "data" / "run-1" / "00000.parquet").write_bytes(data)
    return str(folder)


def test_the_twelve_numbers_and_the_counts_are_printed(
    table: str, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--table", table, "--annotations", annotations])

    assert capsys.readouterr().out == (
        "AP 0.505  AP50 0.505  AP75 0.505  APs none  APm 0.505  APl none\n"
        "AR1 0.500  AR10 0.500  AR100 0.500  ARs none  ARm 0.500  ARl none\n"
        "class-agnostic AP 0.505\n"
        "images: 2, of which 1 is labelled, with 1 detection of pets@0123456789ab\n"
        "1 image is an error in the table: nothing counts as detected there (b.jpg)\n"
        "1 row of the table belongs to an image without annotations: left out\n"
        "figures shown as none are undefined: no annotated box is small (below 32 x 32 pixels) or large (above 96 x 96 "
        "pixels)\n"
    )


def test_a_results_file_is_measured_alike(results: str, annotations: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--results", results, "--annotations", annotations])

    assert capsys.readouterr().out == (
        "AP 0.505  AP50 0.505  AP75 0.505  APs none  APm 0.505  APl none\n"
        "AR1 0.500  AR10 0.500  AR100 0.500  ARs none  ARm 0.500  ARl none\n"
        "class-agnostic AP 0.505\n"
        "images: 2, of which 1 has results: 1 detection\n"
        "1 image is not in the results: nothing counts as detected there (b.jpg)\n"
        "figures shown as none are undefined: no annotated box is small (below 32 x 32 pixels) or large (above 96 x 96 "
        "pixels)\n"
    )


def test_json_and_the_file_hold_the_same_figures(
    tmp_path: Path, table: str, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "metrics.json"

    main(["--table", table, "--annotations", annotations, "--json", "--output", str(output)])

    printed = capsys.readouterr().out
    assert printed == output.read_text()
    assert json.loads(printed)["AR100"] == 0.5
    assert json.loads(printed)["errors"] == ["b.jpg"]


def test_a_table_with_a_threshold_is_refused_unless_it_is_allowed(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--table", write_table(tmp_path / "table", threshold=0.5), "--annotations", annotations]

    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    assert "the rows have threshold 0.5" in capsys.readouterr().err

    main([*command, "--allow-thresholded"])
    out = capsys.readouterr().out
    assert out.startswith("AP 0.505")
    assert out.endswith(
        "detections with a score below 0.5 were not kept: the AP is lower than the model's by an unknown amount\n"
        "1 image has fewer than 100 detections, which official models give if `ray-detr label` has --threshold 0\n"
        "for comparison: without the detections below 1, too, the AP would be 0.000\n"
    )


def test_a_table_of_some_classes_is_refused_unless_it_is_allowed(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "table", configuration={"classes": [["cat", None]]})
    command = ["--table", table, "--annotations", annotations]

    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    assert "the rows have only the classes cat" in capsys.readouterr().err

    main([*command, "--allow-thresholded"])
    assert "\nonly cat were kept: nothing counts as detected for other classes\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "one of the arguments --table --results --model is required"),
        (["--table", "t", "--results", "r"], "argument --results: not allowed with argument --table"),
        (["--results", "r", "--run-id", "x"], "--run-id needs --table"),
        (["--model", "scenes", "--images", "lake", "--allow-thresholded"], "--allow-thresholded needs --table"),
        (["--table", "t", "--images", "lake"], "--images needs --model"),
        (["--results", "r", "--keep-table", "t"], "--keep-table needs --model"),
        (["--table", "t", "--device", "cpu"], "--device needs --model"),
        (["--table", "t", "--actors", "2"], "--actors needs --model"),
        (["--model", "scenes"], "--model needs --images"),
        (["--table", "t", "--tolerance", "0.1"], "--tolerance needs --expect-ap"),
        (["--table", "t", "--max-drop", "0.1"], "--max-drop needs --baseline"),
        (
            ["--table", "t", "--baseline", "a/b.json", "--output", "./a/b.json"],
            "would replace the baseline: give another",
        ),
        (["--table", "t", "--expect-ap", "0.42"], "give points, as published: 42.0 is an AP of 0.420"),
        (["--table", "t", "--expect-ap", "142"], "'142' is not in 0..100"),
        (["--table", "t", "--plot", "curves.txt"], "plot: 'curves.txt' does not end in one of"),
        (["--table", "t", "--picture-size", "240"], "'240' is not HEIGHTxWIDTH, such as 480x640"),
        (["--table", "t", "--picture-size", "320x240"], "no annotated image is 320 x 240 (height x width)"),
        (["--model", "scenes", "--images", "lake", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_wrong_use_is_refused_with_a_sentence_and_code_2(
    annotations: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--annotations", annotations])

    assert left.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_table_of_other_images_is_refused(tmp_path: Path, table: str, annotations: str) -> None:
    document = json.loads(Path(annotations).read_text())
    for image in document["images"]:
        image["file_name"] = f"other-{image['file_name']}"
    Path(annotations).write_text(json.dumps(document))

    with pytest.raises(UsageError, match=r"none of the 2 annotated images, such as other-a\.jpg, is in the table"):
        main(["--table", table, "--annotations", annotations, "--output", str(tmp_path / "metrics.json")])

    assert not (tmp_path / "metrics.json").exists()


def test_one_picture_size_and_one_run_can_be_asked_for(
    table: str, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--table", table, "--annotations", annotations, "--picture-size", "240x320", "--run-id", "run-1"])

    assert "images: 2," in capsys.readouterr().out
    with pytest.raises(RayDetrError, match="no published rows of run run-2"):
        main(["--table", table, "--annotations", annotations, "--run-id", "run-2"])


def test_the_figures_go_to_a_bucket_and_are_a_baseline_from_there(
    moto: S3Server, table: str, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = f"{moto.bucket()}/figures/week.json"
    reach = ["--endpoint", moto.endpoint, "--region", "us-east-1"]

    main(["--table", table, "--annotations", annotations, *reach, "--output", figures])
    main(["--table", table, "--annotations", annotations, *reach, "--baseline", figures])

    assert f"AP is 0.5050 and was 0.5050 in {figures}: no worse by more than 0.002" in capsys.readouterr().out


def test_the_figures_go_to_a_new_folder(tmp_path: Path, table: str, annotations: str) -> None:
    new = tmp_path / "new"

    main(["--table", table, "--annotations", annotations, "--output", str(new / "1" / "metrics.json")])
    main(["--table", table, "--annotations", annotations, "--plot", str(new / "2" / "curves.svg")])

    assert json.loads((new / "1" / "metrics.json").read_text())["AP"] == pytest.approx(0.505, abs=0.001)
    assert (new / "2" / "curves.svg").exists()


@pytest.mark.parametrize("option", ["--output", "--plot"])
def test_a_file_that_cannot_be_written_is_refused_before_the_table_is_read(
    tmp_path: Path, annotations: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SystemExit):
        main(["--table", "nowhere", "--annotations", annotations, option, str(tmp_path / "file" / "x.svg")])
    assert f"cannot be written: {tmp_path / 'file'} is not a folder" in capsys.readouterr().err


def test_the_disk_that_is_full_in_the_end_stops_with_a_sentence_after_the_figures(
    tmp_path: Path, table: str, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RayDetrError, match=r"cannot write the figures to /dev/full: No space left on device"):
        main(["--table", table, "--annotations", annotations, "--output", "/dev/full"])
    assert capsys.readouterr().out.startswith("AP 0.505")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder_in_place_of_the_annotations_is_refused_without_advice_to_name_it_otherwise(
    tmp_path: Path, table: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UsageError, match=rf"^cannot read the annotations: {prefix}{tmp_path} is a folder\. Name a file"
    ):
        main(["--table", table, "--annotations", f"{prefix}{tmp_path}"])


def test_a_plot_is_drawn_with_the_model_in_its_title(tmp_path: Path, table: str, annotations: str) -> None:
    main(["--table", table, "--annotations", annotations, "--plot", str(tmp_path / "curves.svg")])

    assert "<!-- pets@0123456789ab, 2 images -->" in (tmp_path / "curves.svg").read_text()


def test_an_expected_ap_passes_or_ends_with_code_3_after_the_figures(
    table: str, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--table", table, "--annotations", annotations]

    main([*command, "--expect-ap", "50.6"])
    assert capsys.readouterr().out.endswith("\nAP 50.50 is within 50.6 +- 0.2\n")

    with pytest.raises(SystemExit) as left:
        run(main, [*command, "--expect-ap", "50.6", "--tolerance", "0.05"])
    assert left.value.code == BUDGET_EXCEEDED == 3
    said = capsys.readouterr()
    assert said.out.startswith("AP 0.505")
    assert said.err == "error: AP 50.50 is not within 50.6 +- 0.05.\n"


def test_a_baseline_accepts_results_that_are_not_worse(
    tmp_path: Path, table: str, results: str, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "metrics.json"
    command = ["--table", table, "--annotations", annotations]
    main([*command, "--output", str(metrics)])
    gate = [*command, "--baseline", str(metrics), "--json"]
    capsys.readouterr()

    main(gate)
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(metrics.read_text())  # standard output stays JSON
    assert said.err == f"AP is 0.5050 and was 0.5050 in {metrics}: no worse by more than 0.002\n"

    better = json.loads(metrics.read_text())
    better["AP"] += 0.01
    metrics.write_text(json.dumps(better))
    with pytest.raises(
        BudgetExceeded, match=r"AP is 0\.5050 and was 0\.5150 in .*: worse by 0\.0100, but only 0\.002 is"
    ):
        main(gate)
    main([*gate, "--max-drop", "0.01"])

    with pytest.raises(BudgetExceeded, match=r"^AP 50\.50 is not within 60 \+- 0\.2; AP is 0\.5050 and was"):
        main([*gate, "--expect-ap", "60"])


def test_a_baseline_of_other_images_is_refused_before_the_table_is_read(tmp_path: Path, annotations: str) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"AP": 0.4, "images": 3, "annotations_sha256": "00"}))

    with pytest.raises(RayDetrError, match="was measured on 3 images, and 2 are annotated here"):
        main(["--table", "no-table", "--annotations", annotations, "--baseline", str(metrics)])


def test_a_model_is_evaluated_as_it_was_asked_for(
    table: str, annotations: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ModelEvaluationConfig] = []

    def evaluate(config: ModelEvaluationConfig, truth: Any, *, on_progress: Any) -> Any:
        asked.append(config)
        return evaluate_table(table, truth)

    monkeypatch.setattr(pipelines.evaluation.evaluate_model, "evaluate_model", evaluate)

    main(["--model", "detr.pth", "--images", "s3://a/", "s3://b/", "--annotations", annotations])
    main(["--model", "detr.pth", "--images", "s3://a/", "--annotations", annotations, "--keep-table", "kept",
          "--precision", "bf16", "--device", "cuda", "--batch-size", "3", "--actors", "2:4", "--verbose",
          "--anonymous", "--evaluator", "pycocotools"])  # fmt: skip

    assert asked == [
        ModelEvaluationConfig("detr.pth", ("s3://a/", "s3://b/"), precision="fp32", evaluator="ultrafast"),
        ModelEvaluationConfig(
            "detr.pth", ("s3://a/",), keep_table="kept", precision="bf16", device="cuda", batch_size=3, actors=(2, 4),
            options=StoreOptions(anonymous=True), verbose=True, evaluator="pycocotools",
        ),
    ]  # fmt: skip
    assert "AP 0.505" in capfd.readouterr().out
    assert ModelEvaluationConfig("detr.pth", ("s3://a/",)).precision == "fp32"  # on GPUs, too


@pytest.mark.parametrize("source", ["table", "results"])
def test_pycocotools_evaluates_where_it_is_asked_for(
    source: str, table: str, results: str, annotations: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pycocotools.cocoeval import COCOeval

    evaluations = []
    evaluate = COCOeval.evaluate
    monkeypatch.setattr(COCOeval, "evaluate", lambda self: evaluations.append(self) or evaluate(self))
    command = [f"--{source}", {"table": table, "results": results}[source], "--annotations", annotations]

    main(command)
    default = capsys.readouterr().out
    assert evaluations == []
    main([*command, "--evaluator", "pycocotools"])

    assert len(evaluations) == 2  # by class, and as if all classes were one
    assert capsys.readouterr().out == default


@pytest.mark.slow
@pytest.mark.parametrize("source", ["table", "results"])
def test_torch_is_not_imported_to_measure_a_file(source: str, table: str, results: str, annotations: str) -> None:
    """It takes seconds of CPU time and hundreds of megabytes, more than all the rest."""
    command = [f"--{source}", {"table": table, "results": results}[source], "--annotations", annotations]
    code = f"import sys; from jobs.evaluate import main; main({command}); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("text", ["-1", "100.5", "nan", "much"])
def test_points_are_0_to_100(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not in 0\.\.100"):
        points(text)


def test_what_is_wrong_with_the_annotations_is_printed_with_examples(
    annotations: str, results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(Path(annotations).read_text())
    content["annotations"] += [
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"id": 4, "image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4]},
        {"id": 5, "image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4]},
        {"id": 6, "image_id": 1, "category_id": 3, "bbox": None},
    ]
    Path(annotations).write_text(json.dumps(content))

    main(["--results", results, "--annotations", annotations])

    printed = capsys.readouterr().out
    assert (
        "1 annotation belongs to an image that the annotations do not declare: left out (annotation 3: image_id 9)\n"
        "2 annotations have categories that the annotations do not declare: nothing counts as detected there "
        "(annotation "
        "4: category_id 0; annotation 5: category_id 0)\n"
        "1 annotation has no box of four numbers: left out (annotation 6: bbox null)\n"
    ) in printed


def test_why_ap_is_undefined_is_said(annotations: str, results: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(Path(annotations).read_text())
    content["annotations"] = [{**one, "category_id": 0} for one in content["annotations"]]
    Path(annotations).write_text(json.dumps(content))

    main(["--results", results, "--annotations", annotations])

    printed = capsys.readouterr().out
    assert printed.startswith("AP none  AP50 none")
    assert printed.endswith(
        "AP is undefined: the images have no annotation that has a declared category and is not a crowd\n"
    )
