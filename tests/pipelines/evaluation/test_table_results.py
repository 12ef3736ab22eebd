"""Which rows of a table count for which image, and boxes on the picture that was annotated."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation import table_results
from pipelines.evaluation.evaluate import Evaluation, evaluate_table
from pipelines.evaluation.explanations import explanations
from pipelines.evaluation.table_results import RowChoice
from pipelines.labelling.run import RunRequest, begin_run
from pipelines.lake.images import ImageStores
from pipelines.lake.member_files import MemberIndexes
from pipelines.store import StoreOptions, open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

ORIENTATION = 274  # EXIF's tag

Found = tuple[int, float, list[float]]  # category id, score, box as corners

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CAT_BOX, DOG_BOX = [10.0, 10.0, 50.0, 50.0], [0.0, 0.0, 200.0, 100.0]
CAT: Found = (3, 0.9, CAT_BOX)
DOG: Found = (7, 0.8, DOG_BOX)


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    """A cat in a.jpg, a dog in b.jpg."""
    return write_annotations(tmp_path / "instances.json", {"a.jpg": (3, CAT_BOX), "b.jpg": (7, DOG_BOX)})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table"


def write_annotations(path: Path, boxes: Mapping[str, tuple[int, list[float]]]) -> str:
    truth = {
        "images": [
            {"id": number, "file_name": name, "height": 240, "width": 320} for number, name in enumerate(boxes, start=1)
        ],
        "annotations": [
            {
                "id": number, "image_id": number, "category_id": category, "iscrowd": 0,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": (box[2] - box[0]) * (box[3] - box[1]),
            }
            for number, (category, box) in enumerate(boxes.values(), start=1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }  # fmt: skip
    path.write_text(json.dumps(truth))
    return str(path)


def labelled(uri: str, *found: Found, height: int = 240, width: int = 320) -> Row:
    detected = Detected(
        [one[0] for one in found], ["cat" if one[0] == 3 else "dog" for one in found],
        [one[1] for one in found], [one[2] for one in found],
    )  # fmt: skip
    return Row(uri, height=height, width=width, detections=detected)


def publish(
    table: Path, rows: Sequence[Row], *, run_id: str = "run-1", file: int = 0, threshold: float = 0.0, hours: int = 0,
    model: str = "pets@0123456789ab", configuration: Mapping[str, object] | None = None, settings: str | None = None,
) -> None:  # fmt: skip
    origin = Origin(model, threshold, run_id, file, NOON + timedelta(hours=hours), settings)
    path = table / "data" / run_id / f"{file:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = None if configuration is None else {"configuration": json.dumps(configuration)}
    path.write_bytes(encode(rows_to_table(rows, origin=origin), metadata))


def evaluated(table: Path, annotations: str, **options: Any) -> Evaluation:
    return evaluate_table(str(table), annotations, **options)


def ap(evaluation: Evaluation) -> float:
    return round(evaluation.average_precision.AP, 9)  # pycocotools says 0.9999999999999998 for "all"


def test_annotations_may_name_folders(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "folders.json", {"val2017/a.jpg": (3, CAT_BOX)})
    publish(table, [labelled("https://host/bucket/a.jpg?signature=abc", CAT)])

    assert ap(evaluated(table, annotations)) == 1.0


def test_rows_of_several_settings_are_refused_and_one_can_be_chosen(table: Path, annotations: str) -> None:
    all_scores, high = '{"precision":"fp32","threshold":0.0}', '{"precision":"fp32","threshold":0.5}'
    publish(table, [labelled("a.jpg", CAT), labelled("b.jpg", DOG)], settings=all_scores)
    publish(table, [labelled("a.jpg")], run_id="run-2", hours=1, threshold=0.5, settings=high)

    with pytest.raises(
        UsageError, match=r"have several settings \(1 with .*0\.0\}, 1 with .*0\.5\}\).* Choose one with --settings"
    ):
        evaluated(table, annotations)
    chosen = evaluated(table, annotations, choice=RowChoice(settings=all_scores))
    assert (ap(chosen), chosen.missing) == (1.0, ())
    other = evaluated(table, annotations, choice=RowChoice(settings=high), allow_thresholded=True)
    assert (other.missing, other.detections) == (("b.jpg",), 0)
    with pytest.raises(UsageError, match=r"no row of an annotated image has the settings \{\}\. `ray-detr runs`"):
        evaluated(table, annotations, choice=RowChoice(settings="{}"))


def test_rows_without_settings_have_those_of_their_run(table: Path, annotations: str) -> None:
    store = open_store(str(table))
    request = RunRequest("pets@0123456789ab", "1", {"threshold": 0.0, "precision": "fp32"}, 64, {}, "run-1")
    run = begin_run(store, request, after=None, shard_images=64, precision="fp32", now=NOON, tail="0001")
    assert run is not None
    publish(table, [labelled("a.jpg", CAT)])  # as an earlier release
    publish(table, [labelled("b.jpg", DOG)], run_id="run-2", hours=1, settings=run.settings)

    assert ap(evaluated(table, annotations)) == 1.0
    assert ap(evaluated(table, annotations, choice=RowChoice(settings=run.settings))) == 1.0


def test_two_images_of_one_file_name_are_refused_with_both_addresses(table: Path, annotations: str) -> None:
    publish(table, [labelled("s3://lake/1/a.jpg", CAT), labelled("s3://lake/2/a.jpg", CAT)])

    with pytest.raises(
        RayDetrError, match=r"two images with the file name 'a\.jpg'.* s3://lake/1/a\.jpg and s3://lake/2/a"
    ):
        evaluated(table, annotations)


def test_equal_names_do_not_matter_where_nothing_is_annotated(table: Path, annotations: str) -> None:
    rows = [labelled("1/a.jpg", CAT), labelled("1/b.jpg", DOG), labelled("1/c.jpg"), labelled("2/c.jpg")]
    publish(table, rows)

    evaluation = evaluated(table, annotations)

    assert (ap(evaluation), evaluation.unannotated) == (1.0, 2)


def test_images_of_one_name_in_several_folders_are_distinguished(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "twice.json", {"1/a.jpg": (3, CAT_BOX), "2/a.jpg": (3, CAT_BOX)})
    publish(table, [labelled("s3://lake/x/2/a.jpg", CAT), labelled("s3://lake/x/quite/other/a.jpg", CAT)])

    evaluation = evaluate_table(str(table), annotations)

    assert (evaluation.missing, evaluation.unannotated, evaluation.matched_otherwise) == (("1/a.jpg",), 1, ())


def test_rows_that_may_be_of_two_annotated_images_are_refused(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "twice.json", {"1/a.jpg": (3, CAT_BOX), "2/a.jpg": (3, CAT_BOX)})
    publish(table, [labelled("a.jpg", CAT)])

    with pytest.raises(
        RayDetrError, match=r"a\.jpg may belong to the annotated image '1/a\.jpg' or '2/a\.jpg', and no"
    ):
        evaluate_table(str(table), annotations)


def test_images_that_are_spelled_otherwise_are_matched_and_said(table: Path, tmp_path: Path) -> None:
    annotations = write_annotations(
        tmp_path / "spelled.json", {"data\\A%20b.JPG": (3, CAT_BOX), "data\\u\u0308.jpg": (3, CAT_BOX)}
    )
    publish(table, [labelled("s3://lake/data/a b.jpg", CAT), labelled("s3://lake/data/\u00fc.jpg", CAT)])

    evaluation = evaluate_table(str(table), annotations)

    assert evaluation.missing == ()
    assert evaluation.matched_otherwise == (
        "data\\A%20b.JPG is s3://lake/data/a b.jpg",
        "data\\u\u0308.jpg is s3://lake/data/\u00fc.jpg",
    )


def test_images_that_lie_in_other_folders_are_matched_where_all_do_and_said(table: Path, tmp_path: Path) -> None:
    names = {"train/a.jpg": (3, CAT_BOX), "val/b.jpg": (3, CAT_BOX)}
    annotations = write_annotations(tmp_path / "moved.json", names)
    publish(table, [labelled("s3://lake/a.jpg", CAT), labelled("s3://lake/c.jpg", CAT)])

    evaluation = evaluate_table(str(table), annotations)

    assert (evaluation.missing, evaluation.unannotated) == (("val/b.jpg",), 1)
    assert evaluation.matched_otherwise == ("train/a.jpg is s3://lake/a.jpg",)


def test_rows_of_two_models_are_refused(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)], model="one@111111111111")
    publish(table, [labelled("b.jpg", DOG)], model="two@222222222222", run_id="run-2")

    with pytest.raises(RayDetrError, match="rows come from 2 models, one@111111111111, two@222222222222"):
        evaluated(table, annotations)
    assert evaluated(table, annotations, choice=RowChoice(run_id="run-2")).models == ("two@222222222222",)


def test_rows_that_keep_some_classes_only_are_reported_and_refused_where_it_is_not_allowed(
    table: Path, annotations: str
) -> None:
    restricted = {"threshold": 0.0, "classes": [["dog", None], ["cat", 0.5]]}
    publish(table, [labelled("a.jpg", CAT)], file=0, configuration={"classes": None})
    publish(table, [labelled("b.jpg", DOG)], file=1, configuration=restricted)
    publish(table, [labelled("z.jpg", DOG)], file=2, configuration={"classes": [["horse", None]]})

    with pytest.raises(ValueError, match=r"only the classes cat, dog: .* Label into another table without --classes"):
        evaluated(table, annotations)
    assert evaluated(table, annotations, allow_thresholded=True).kept_classes == ("cat", "dog")

    publish(table, [labelled("b.jpg", DOG)], run_id="run-2", hours=1, configuration={"classes": None})
    assert evaluated(table, annotations).kept_classes is None


def test_metadata_that_no_run_wrote_is_named(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)], configuration={"classes": ["cat"]})

    with pytest.raises(RayDetrError, match=r"00000\.parquet is damaged: its metadata"):
        evaluated(table, annotations)


def test_rows_of_one_model_and_of_some_addresses_can_be_chosen(table: Path, annotations: str) -> None:
    publish(table, [labelled("1/a.jpg", CAT), labelled("1/b.jpg", DOG)], model="one@111111111111")
    publish(table, [labelled("2/a.jpg"), labelled("1/b.jpg")], model="two@222222222222", run_id="run-2", hours=1)

    one = evaluated(table, annotations, choice=RowChoice(model="one@111111111111"))
    first = evaluated(table, annotations, choice=RowChoice(model="two@222222222222", uris={"1/a.jpg", "1/b.jpg"}))

    assert (ap(one), one.missing) == (1.0, ())
    assert (ap(first), first.missing) == (0.0, ("a.jpg",))


def test_images_whose_annotations_have_another_size_are_named(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT, height=120, width=160), labelled("b.jpg", DOG)])

    evaluation = evaluated(table, annotations)

    assert (evaluation.other_size, evaluation.unread, evaluation.turned_back) == (("a.jpg",), (), ())


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_are_turned_back_where_the_stored_picture_was_annotated(
    table: Path, annotations: str, tmp_path: Path, orientation: int
) -> None:
    """The cat of a.jpg was annotated on 240 x 320 stored pixels; the row is of the upright picture."""
    uri, upright_box, (height, width) = write_turned(tmp_path / "a.jpg", orientation)
    publish(table, [labelled(uri, (3, 0.9, upright_box), height=height, width=width), labelled("b.jpg", DOG)])

    evaluation = evaluated(table, annotations)

    assert (height, width) == (320, 240)
    assert ap(evaluation) == 1.0
    assert (evaluation.turned_back, evaluation.other_size) == (("a.jpg",), ())
    sentences = " ".join(explanations(evaluation))
    assert "1 image was annotated as stored, before EXIF rotation: boxes were rotated back (a.jpg)" in sentences
    assert "half turns, mirrored and square pictures) count as annotated upright" in sentences


def test_boxes_stay_where_the_upright_picture_was_annotated(table: Path, tmp_path: Path) -> None:
    uri, upright_box, (height, width) = write_turned(tmp_path / "a.jpg", 6)
    annotations = write_annotations(tmp_path / "upright.json", {"a.jpg": (3, upright_box)})
    truth = json.loads(Path(annotations).read_text())
    truth["images"][0].update(height=height, width=width)
    Path(annotations).write_text(json.dumps(truth))
    publish(table, [labelled(uri, (3, 0.9, upright_box), height=height, width=width)])

    evaluation = evaluated(table, annotations)

    assert (ap(evaluation), evaluation.turned_back, evaluation.other_size) == (1.0, (), ())


def test_exchanged_sides_that_exif_does_not_explain_are_counted(table: Path, annotations: str, tmp_path: Path) -> None:
    uri, _, _ = write_turned(tmp_path / "b.jpg", 1, height=320, width=240)
    gone = str(tmp_path / "gone" / "a.jpg")
    publish(table, [labelled(gone, CAT, height=320, width=240), labelled(uri, DOG, height=320, width=240)])

    evaluation = evaluated(table, annotations)

    assert (evaluation.other_size, evaluation.unread, evaluation.turned_back) == (("a.jpg", "b.jpg"), ("a.jpg",), ())
    assert ap(evaluation) == 1.0  # as they are: these boxes happen to be right


@pytest.mark.parametrize("found", ["another picture", "no picture"])
def test_a_picture_that_is_not_the_labelled_one_any_more_turns_nothing(
    table: Path, annotations: str, tmp_path: Path, found: str
) -> None:
    uri, _, _ = write_turned(tmp_path / "a.jpg", 6, height=100, width=90)
    if found == "no picture":
        Path(uri).write_bytes(b"<html>")
    publish(table, [labelled(uri, CAT, height=320, width=240), labelled("b.jpg", DOG)])

    assert evaluated(table, annotations).unread == ("a.jpg",)


def test_pictures_are_reached_by_options_of_their_own(
    table: Path, annotations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, upright_box, (height, width) = write_turned(tmp_path / "a.jpg", 6)
    publish(table, [labelled(uri, (3, 0.9, upright_box), height=height, width=width), labelled("b.jpg", DOG)])
    seen: list[StoreOptions] = []

    class Watched(ImageStores):
        def __init__(self, options: StoreOptions, indexes: MemberIndexes) -> None:
            seen.append(options)
            super().__init__(options, indexes)

    monkeypatch.setattr(table_results, "ImageStores", Watched)
    public = StoreOptions(anonymous=True)

    assert evaluated(table, annotations, picture_options=public).turned_back == ("a.jpg",)
    assert seen == [public]


def write_turned(
    path: Path, orientation: int, *, height: int = 240, width: int = 320
) -> tuple[str, list[float], tuple[int, int]]:
    """Write a picture with the cat's box; return its address, the box seen upright, and the upright (height, width)."""
    xmin, ymin, xmax, ymax = map(int, CAT_BOX)
    pixels = np.zeros((height, width), np.uint8)
    pixels[ymin:ymax, xmin:xmax] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(pixels)
    stored.save(path, exif=exif, quality=95)
    stored.getexif()[ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(stored)
    return str(path), [float(side) for side in upright.getbbox() or ()], (upright.height, upright.width)


def test_a_table_that_is_not_there_and_a_run_that_it_does_not_have_stop_with_a_sentence(
    table: Path, annotations: str
) -> None:
    with pytest.raises(RayDetrError, match=r"has no published rows\. Check the address"):
        evaluated(table, annotations)

    publish(table, [labelled("a.jpg", CAT)])
    with pytest.raises(RayDetrError, match="has no published rows of run run-9"):
        evaluated(table, annotations, choice=RowChoice(run_id="run-9"))


def test_a_damaged_table_file_is_named(table: Path, annotations: str) -> None:
    publish(table, [labelled("a.jpg", CAT)])
    (table / "data" / "run-1" / "00001.parquet").write_bytes(b"PAR1 no PAR1")

    with pytest.raises(RayDetrError, match=r"data/run-1/00001\.parquet is damaged"):
        evaluated(table, annotations)
