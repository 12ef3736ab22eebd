import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.evaluate import main
from pipelines.run import RunStopped
from pipelines.table import Detected, Origin, Row, encode, rows_to_table

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


def write_table(folder: Path, *, threshold: float = 0.0) -> str:
    """A table with the cat of a.jpg and an image that nobody annotated; b.jpg is an error."""
    rows = [
        Row("s3://lake/a.jpg", height=240, width=320, detections=Detected([3], ["cat"], [0.9], [BOX])),
        Row("s3://lake/b.jpg", error_kind="truncated", error="it ends too early"),
        Row("s3://lake/c.jpg", height=240, width=320, detections=Detected([], [], [], [])),
    ]
    origin = Origin("pets@0123456789ab", threshold, "run-1", 0, datetime(2026, 11, 22, tzinfo=UTC))
    (folder / "data" / "run-1").mkdir(parents=True)
    (folder / "data" / "run-1" / "00000.parquet").write_bytes(encode(rows_to_table(rows, origin=origin)))
    return str(folder)


def test_the_twelve_numbers_and_the_counts_are_printed(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--table", write_table(tmp_path / "table"), "--annotations", annotations])

    assert capsys.readouterr().out == (
        "AP 0.505  AP50 0.505  AP75 0.505  APs none  APm 0.505  APl none\n"
        "AR1 0.500  AR10 0.500  AR100 0.500  ARs none  ARm 0.500  ARl none\n"
        "class-agnostic AP 0.505\n"
        "images: 2, of which 1 is labelled, with 1 detection of pets@0123456789ab\n"
        "1 image is an error in the table: nothing counts as found there (b.jpg)\n"
        "1 row of the table is of an image without annotations: left out\n"
    )


def test_json_and_the_file_hold_the_same_figures(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "metrics.json"
    table = write_table(tmp_path / "table")

    main(["--table", table, "--annotations", annotations, "--json", "--output", str(output)])

    printed = capsys.readouterr().out
    assert printed == output.read_text()
    assert json.loads(printed)["AR100"] == 0.5
    assert json.loads(printed)["errors"] == ["b.jpg"]


def test_a_table_with_a_threshold_is_refused_unless_it_is_allowed(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--table", write_table(tmp_path / "table", threshold=0.05), "--annotations", annotations]

    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    assert "the rows have threshold 0.05" in capsys.readouterr().err

    main([*command, "--allow-thresholded"])
    out = capsys.readouterr().out
    assert out.startswith("AP 0.505")
    assert out.endswith("below score 0.05 nothing was kept: AP is lower than the model's\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--table"),
        (["--picture-size", "240"], "'240' is not HEIGHTxWIDTH, such as 480x640"),
        (["--picture-size", "320x240"], "no annotated image is 320 x 240 (height x width)"),
    ],
)
def test_wrong_use_is_refused_with_a_sentence_and_code_2(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    table = write_table(tmp_path / "table")

    with pytest.raises(SystemExit) as left:
        main([*arguments, "--annotations", annotations, *(["--table", table] if arguments else [])])

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_one_picture_size_and_one_run_can_be_asked_for(
    tmp_path: Path, annotations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "table")

    main(["--table", table, "--annotations", annotations, "--picture-size", "240x320", "--run-id", "run-1"])

    assert "images: 2," in capsys.readouterr().out


def test_a_file_that_cannot_be_written_stops_with_a_sentence(tmp_path: Path, annotations: str) -> None:
    table = write_table(tmp_path / "table")

    with pytest.raises(RunStopped, match=r"cannot write the figures to .*nowhere/metrics\.json: No such file"):
        main(["--table", table, "--annotations", annotations, "--output", str(tmp_path / "nowhere" / "metrics.json")])
