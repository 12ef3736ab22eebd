"""What comes back from people as training shards: boxes, empty pictures, and all that cannot be trained on."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import BudgetExceeded, UsageError
from pipelines.review import files
from pipelines.review.batches import read_batches
from pipelines.review.config import CorrectionsConfig, ReviewConfig
from pipelines.review.corrected_shards import CorrectionsSummary, shard_corrections
from pipelines.review.corrections import ExportedImages
from pipelines.review.export import export_review
from pipelines.shards.reader import read_index
from pipelines.shards.rows import coco_json
from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.conftest import S3Server
from tests.pipelines.report.tables import NOW, dog_and_cat, picture, publish
from tests.pipelines.review.answers import annotation, exported_task, minimal, region

Json = dict[str, Any]
SIZE = (80, 60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of four pictures of 80 x 60 pixels, `a.png` to `d.png` in two folders, all exported in `batch`."""
    rows = []
    for name in ("x/a.png", "x/b.png", "y/c.png", "y/d.png"):
        path = Path(picture(tmp_path / "lake", name))
        rows.append(Row(str(path), size=path.stat().st_size, width=80, height=60, detections=dog_and_cat(0.6, 0.5)))
    publish(str(tmp_path / "table"), rows)
    export_review(ReviewConfig(table=str(tmp_path / "table"), out=str(tmp_path / "batch"), count=9))  # in this order
    return tmp_path


def given(folder: Path) -> dict[str, Json]:
    """The tasks of the batch, by the name of their picture."""
    tasks = json.loads((folder / "batch" / "tasks.json").read_text())
    return {Path(task["data"]["uri"]).stem: task for task in tasks}


def take_back(folder: Path, *contents: Any, **others: Any) -> CorrectionsSummary:
    files = []
    for number, content in enumerate(contents):
        files.append(folder / f"corrected-{number}.json")
        files[-1].write_text(json.dumps(content))
    return shard_corrections(
        CorrectionsConfig(
            table=str(folder / "table"), out=str(folder / "shards"), files=tuple(map(str, files)), **others
        )
    )


def boxes(folder: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """What the shards hold: label and box by file name."""
    coco = coco_json(open_store(str(folder / "shards")))
    names = {one["id"]: one["name"] for one in coco["categories"]}
    found: dict[str, list[tuple[str, list[float]]]] = {image["file_name"]: [] for image in coco["images"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    for one in coco["annotations"]:
        found[files[one["image_id"]]].append((names[one["category_id"]], one["bbox"]))
    return found


def four_answers(folder: Path) -> list[Json]:
    """One picture corrected, one found empty, one skipped, one without annotation."""
    tasks = given(folder)
    return [
        exported_task(
            tasks["a"], [annotation([region("dog", [8, 6, 40, 30], SIZE), region("cat", [0, 0, 80, 60], SIZE)])]
        ),
        exported_task(tasks["b"], [annotation([])], 2),
        exported_task(tasks["c"], [annotation([region("dog", [8, 6, 4, 3], SIZE)], cancelled=True)], 3),
        exported_task(tasks["d"], [], 4),
    ]


def as_json(tasks: list[Json]) -> list[Json]:
    return tasks


def as_minimal(tasks: list[Json]) -> list[Json]:
    return [entry for task in tasks for entry in minimal(task)]


@pytest.mark.parametrize(("form", "counts"), [(as_json, (1, 1)), (as_minimal, (0, 2))])
def test_reviewed_pictures_become_shards_and_others_are_counted(
    form: Callable[[list[Json]], list[Json]], counts: tuple[int, int], folder: Path
) -> None:
    summary = take_back(folder, form(four_answers(folder)))

    assert (summary.reviewed, summary.boxes, summary.without_boxes) == (2, 2, 1)
    assert (summary.skipped, summary.not_reviewed) == counts  # JSON-MIN does not tell which tasks were skipped
    assert boxes(folder) == {
        "x/a.png": [("dog", [8.0, 6.0, 40.0, 30.0]), ("cat", [0.0, 0.0, 80.0, 60.0])],
        "x/b.png": [],
    }
    assert summary.classes == ("cat", "dog")


def test_shards_say_what_they_were_made_of(folder: Path) -> None:
    take_back(folder, four_answers(folder))

    origin = read_index(open_store(str(folder / "shards"))).other["origin"]
    assert origin["table"] == f"file://{folder}/table"
    assert origin["batches"] == [
        {"batch": 1, "choice": "least-certain", "images": 4, "reviewed": 2, "models": ["detr@1"], "runs": ["run-1"]}
    ]
    assert origin["corrections"][0]["file"] == str(folder / "corrected-0.json")
    assert len(origin["corrections"][0]["sha256"]) == 64
    coco = coco_json(open_store(str(folder / "shards")))
    assert [one["uri"] for one in coco["images"]] == [str(folder / "lake" / "x" / name) for name in ("a.png", "b.png")]


def test_the_same_command_again_has_nothing_to_do_and_another_file_is_refused(folder: Path) -> None:
    tasks = four_answers(folder)
    take_back(folder, tasks)

    assert take_back(folder, tasks).shards.was_done
    with pytest.raises(UsageError, match="contains shards of another configuration"):
        take_back(folder, tasks[:1])


def test_of_several_annotations_the_ground_truth_counts_else_the_one_updated_last(folder: Path) -> None:
    tasks = given(folder)
    late, early = "2026-11-29T11:00:00Z", "2026-11-29T10:00:00Z"
    dog, cat = ([region(label, [8, 6, 40, 30], SIZE)] for label in ("dog", "cat"))
    truth = {**annotation(dog, 3, updated=early), "ground_truth": True}

    summary = take_back(
        folder,
        [
            exported_task(tasks["a"], [annotation(dog, 1, updated=late), annotation(cat, 2, updated=early)]),
            exported_task(tasks["b"], [truth, annotation(cat, 4, updated=late)]),
            exported_task(tasks["c"], [annotation([], 5, cancelled=True), annotation(dog, 6)]),
        ],
    )

    assert {name: found[0][0] for name, found in boxes(folder).items()} == {
        "x/a.png": "dog", "x/b.png": "dog", "y/c.png": "dog",
    }  # fmt: skip
    assert (summary.repeated, summary.skipped, summary.not_reviewed) == (2, 0, 1)


def test_a_later_file_replaces_the_answers_of_an_earlier_one(folder: Path) -> None:
    tasks = given(folder)
    first = exported_task(
        tasks["a"], [annotation([region("dog", [8, 6, 40, 30], SIZE)], updated="2027-01-01T00:00:00Z")]
    )
    second = exported_task(tasks["a"], [annotation([region("cat", [8, 6, 40, 30], SIZE)])])

    summary = take_back(folder, [first], as_minimal([second]))

    assert boxes(folder) == {"x/a.png": [("cat", [8.0, 6.0, 40.0, 30.0])]}
    assert summary.repeated == 1


def changed(task: Json, **fields: Any) -> Json:
    """One region that is like none of ours in some fields of its value, or of itself."""
    one = region("dog", [8, 6, 40, 30], SIZE)
    for name, value in fields.items():
        place = one if name in ("image_rotation", "type", "original_width", "original_height") else one["value"]
        place[name] = value
    return exported_task(task, [annotation([one])], 7)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rotation": 12.5}, r"task 7 \(.*x/a.png\) of .* has a box with a rotation of 12.5 degrees"),
        (
            {"image_rotation": 90},
            r"task 7 \(.*x/a.png\) of .* rotation of 90.0 degrees \(of the box or of its picture\)",
        ),
        ({"rectanglelabels": []}, r"task 7 .* has a box with no label"),
        ({"rectanglelabels": ["dog", "cat"]}, r"task 7 .* has a box with the labels dog, cat"),
        ({"type": "rectangle"}, None),
        ({"type": "polygonlabels"}, r"task 7 .* has a region of the kind polygonlabels"),
        ({"type": "brush"}, r"task 7 .* has a region of the kind brush"),
        ({"x": "left"}, r"task 7 .* has a box without x, y, width and height"),
    ],
)
def test_what_is_not_an_upright_box_with_one_label_names_its_task(
    fields: Json, sentence: str | None, folder: Path
) -> None:
    task = changed(given(folder)["a"], **fields)
    if sentence is None:
        take_back(folder, [task])
        return

    with pytest.raises(UsageError, match=sentence):
        take_back(folder, [task])


def test_a_box_and_its_label_are_one_box_and_answers_without_region_are_ignored(folder: Path) -> None:
    apart = region("dog", [8, 6, 40, 30], SIZE)
    value = apart["value"]
    del value["rectanglelabels"]
    result = [
        {**apart, "type": "rectangle", "value": value},
        {**apart, "type": "labels", "value": {**value, "labels": ["dog"]}},
        {"id": "q", "type": "choices", "from_name": "day", "to_name": "image", "value": {"choices": ["night"]}},
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    ]

    take_back(folder, [exported_task(given(folder)["a"], [annotation(result)])])

    assert boxes(folder) == {"x/a.png": [("dog", [8.0, 6.0, 40.0, 30.0])]}


def test_labels_that_are_not_classes_are_named_with_what_to_do(folder: Path) -> None:
    tasks = given(folder)
    wrong = [region("Dog", [8, 6, 40, 30], SIZE), region("fox", [8, 6, 40, 30], SIZE)]
    answers = [exported_task(tasks["a"], [annotation(wrong)], 5), exported_task(tasks["b"], [annotation(wrong[1:])], 6)]

    with pytest.raises(UsageError) as refused:
        take_back(folder, answers)
    sentence = str(refused.value)
    assert "'fox' (2 boxes, first in task 5" in sentence
    assert "'Dog' (1 box, first in task 5" in sentence
    assert "did you mean 'dog'?" in sentence
    assert "--add-classes" in sentence

    summary = take_back(folder, answers, add_classes=("fox", "Dog"))
    assert summary.classes == ("cat", "dog", "fox", "Dog")
    index = read_index(open_store(str(folder / "shards")))
    assert [(one.id, one.name) for one in index.categories] == [(17, "cat"), (18, "dog"), (19, "fox"), (20, "Dog")]


def test_a_class_that_is_there_already_cannot_be_added(folder: Path) -> None:
    with pytest.raises(UsageError, match="--add-classes: 'dog' is a class already, with the id 18"):
        take_back(folder, four_answers(folder), add_classes=("dog",))


def test_a_changed_or_missing_picture_is_left_out_and_counted(folder: Path) -> None:
    tasks = given(folder)
    answers = [exported_task(task, [annotation([region("dog", [8, 6, 40, 30], SIZE)])]) for task in tasks.values()]
    (folder / "lake" / "x" / "a.png").unlink()
    picture(folder / "lake", "x/b.png", (80, 60))
    with (folder / "lake" / "x" / "b.png").open("ab") as file:
        file.write(b"more")

    with pytest.raises(BudgetExceeded, match=r"2 of 4 images are missing or unreadable .*--max-missing allows 0.1"):
        take_back(folder, answers)
    summary = take_back(folder, answers, max_missing=0.5)

    assert summary.shards.report["left_out_changed"] == 1
    assert summary.shards.report["left_out_missing"] == 1
    shards = read_index(open_store(str(folder / "shards")))
    assert shards.images == 2


def test_a_smaller_copy_in_the_tool_is_scaled_and_one_of_other_proportions_left_out(folder: Path) -> None:
    tasks = given(folder)
    half = exported_task(tasks["a"], [annotation([region("dog", [4, 3, 20, 15], (40, 30))])])
    turned = changed(tasks["b"], original_width=60, original_height=80)

    summary = take_back(folder, [half, turned])

    assert boxes(folder) == {"x/a.png": [("dog", [8.0, 6.0, 40.0, 30.0])]}
    assert summary.other_size == (
        f"task 7 ({folder}/lake/x/b.png) of {folder}/corrected-0.json shows 60 x 80 pixels, and was labelled with 80 x "
        "60",
    )


def coco(file_names: list[str], annotations: list[Json], **fields: Any) -> Json:
    """As CVAT exports it: classes numbered anew."""
    return {
        "images": [{"id": number, "file_name": name, "width": 80, "height": 60, **fields}
                   for number, name in enumerate(file_names, 1)],
        "annotations": [{"id": number, "area": 1200, "iscrowd": 0, "segmentation": [],
                         "attributes": {"occluded": False, "rotation": 0.0}, **one}
                        for number, one in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "dog", "supercategory": ""}, {"id": 2, "name": "cat", "supercategory": ""}],
    }  # fmt: skip


def test_a_corrected_coco_json_is_matched_by_file_names_and_names_of_classes(folder: Path) -> None:
    corrected = coco(["x/a.png", "y/c.png"], [{"image_id": 1, "category_id": 2, "bbox": [8, 6, 40, 30]}])

    summary = take_back(folder, corrected)

    assert boxes(folder) == {"x/a.png": [("cat", [8.0, 6.0, 40.0, 30.0])], "y/c.png": []}
    assert (summary.reviewed, summary.without_boxes, summary.not_reviewed) == (2, 1, 2)
    index = read_index(open_store(str(folder / "shards")))
    assert [(one.id, one.name) for one in index.categories] == [(17, "cat"), (18, "dog")]


def test_a_coco_json_that_lost_its_folders_is_matched_where_that_is_clear(folder: Path) -> None:
    take_back(folder, coco(["a.png", "lake/y/d.png"], [{"image_id": 1, "category_id": 2, "bbox": [8, 6, 40, 30]}]))

    assert boxes(folder) == {"x/a.png": [("cat", [8.0, 6.0, 40.0, 30.0])], "y/d.png": []}


def test_a_file_name_of_two_images_is_refused(tmp_path: Path) -> None:
    rows = []
    for name in ("x/a.png", "y/a.png"):
        path = Path(picture(tmp_path / "lake", name))
        rows.append(Row(str(path), size=path.stat().st_size, width=80, height=60, detections=dog_and_cat(0.6, 0.5)))
    publish(str(tmp_path / "table"), rows)
    export_review(ReviewConfig(table=str(tmp_path / "table"), out=str(tmp_path / "batch"), choice="random", count=9))

    with pytest.raises(UsageError, match=r"'a.png' may belong to .*/x/a.png or to .*/y/a.png. Keep the folders"):
        take_back(tmp_path, coco(["a.png"], []))


def of_two_cameras(folder: Path) -> Path:
    """Two batches of two cameras, whose pictures have the same name."""
    for camera in ("cam1", "cam2"):
        path = Path(picture(folder / camera, "a.png"))
        rows = [Row(str(path), size=path.stat().st_size, width=80, height=60, detections=dog_and_cat(0.6, 0.5))]
        publish(str(folder / "table"), rows, f"run-{camera}")
        out = str(folder / f"batch-{camera}")
        export_review(ReviewConfig(table=str(folder / "table"), out=out, to="coco-dataset", count=9))
    return folder


def test_a_corrected_file_that_says_its_batch_is_of_that_batch(tmp_path: Path) -> None:
    folder = of_two_cameras(tmp_path)
    one = {"image_id": 1, "category_id": 1, "bbox": [8, 6, 40, 30]}
    first = json.loads((folder / "batch-cam1" / "instances.json").read_text())["info"]

    summary = take_back(folder, {**coco(["a.png"], [one]), "info": first})

    assert summary.reviewed == 1
    assert [one["uri"] for one in coco_json(open_store(str(folder / "shards")))["images"]] == [f"{folder}/cam1/a.png"]


def test_a_name_of_two_batches_is_refused_where_the_file_does_not_say_its_batch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'a.png' may belong to .*cam1/a.png or to .*cam2/a.png.*table_batch"):
        take_back(of_two_cameras(tmp_path), coco(["a.png"], []))


@pytest.mark.parametrize("image_id", ["1", 1.0])
def test_ids_of_images_are_compared_in_any_spelling(image_id: Any, folder: Path) -> None:
    take_back(folder, coco(["x/a.png"], [{"image_id": image_id, "category_id": 1, "bbox": [8, 6, 40, 30]}]))

    assert boxes(folder) == {"x/a.png": [("dog", [8.0, 6.0, 40.0, 30.0])]}


@pytest.mark.parametrize("image_id", [9, [1], None])
def test_an_annotation_of_no_image_is_refused(image_id: Any, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"annotation 1 is of image .*, which is not in the file"):
        take_back(folder, coco(["x/a.png"], [{"image_id": image_id, "category_id": 1, "bbox": [8, 6, 40, 30]}]))


def test_two_images_of_one_id_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"the image 'x/b.png' has the id 7 of another image"):
        take_back(folder, coco(["x/a.png", "x/b.png"], [], id=7))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attributes": {"rotation": 30.0}}, "annotation 1 of x/a.png in .* is a rotated box"),
        ({"bbox": []}, "annotation 1 of x/a.png in .* has no bbox of four numbers"),
        ({"category_id": 9}, "annotation 1 of x/a.png in .* has the category 9, which the file does not declare"),
    ],
)
def test_a_coco_annotation_that_is_not_an_upright_box_of_a_class_is_named(
    fields: Json, sentence: str, folder: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        take_back(folder, coco(["x/a.png"], [{"image_id": 1, "category_id": 1, "bbox": [8, 6, 40, 30], **fields}]))


def test_coco_boxes_of_a_smaller_copy_are_scaled(folder: Path) -> None:
    one = {"image_id": 1, "category_id": 1, "bbox": [4, 3, 20, 15]}

    summary = take_back(folder, coco(["x/a.png"], [one], width=40, height=30))

    assert boxes(folder) == {"x/a.png": [("dog", [8.0, 6.0, 40.0, 30.0])]}
    assert summary.other_size == ()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"a": 1}, "this is neither a COCO json nor a list of tasks"),
        (["x"], "entry 0 is not a task"),
        (
            [{"id": 1, "data": {"image": "s3://other/a.jpg"}, "annotations": []}],
            "nothing in it belongs to a batch of table",
        ),
        ([{"id": 1, "data": {"review": "9/0"}, "annotations": []}], "nothing in it belongs to a batch of table"),
        (
            [{"id": 1, "data": {"review": "1/0", "uri": "s3://other/a.jpg"}, "annotations": []}],
            "nothing in it belongs to a batch",
        ),
        ([{"id": 1, "data": {"review": "1/0"}, "annotations": {}}], "its annotations are not a list"),
        ([{"id": 1, "data": {"review": "1/0"}, "annotations": []}], "no image of .* has been reviewed"),
    ],
)
def test_a_file_without_corrections_of_the_table_is_refused(content: Any, sentence: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        take_back(folder, content)


def zipped(members: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, str) else json.dumps(content))
    return file.getvalue()


def misplaced(archive: bytes) -> bytes:
    """Return an archive whose last record says that the directory begins a megabyte later."""
    end = archive.rindex(b"PK\5\6")
    return archive[: end + 16] + (2**20).to_bytes(4, "little") + archive[end + 20 :]


def import_bytes(folder: Path, data: bytes) -> CorrectionsSummary:
    (folder / "export.zip").write_bytes(data)
    return shard_corrections(
        CorrectionsConfig(str(folder / "table"), str(folder / "shards"), (str(folder / "export.zip"),))
    )


def test_an_archive_is_read_as_label_studio_and_cvat_hand_out_coco(folder: Path) -> None:
    one = coco(["x/a.png"], [{"image_id": 1, "category_id": 2, "bbox": [8, 6, 40, 30]}])
    data = zipped({
        "images/": "", "images/x/a.png": "pixels", "annotations/instances_default.json": one,
        "annotations/instances_second.json": coco(["y/c.png"], []),
        "__MACOSX/annotations/._instances_default.json": "x",
    })  # fmt: skip

    summary = import_bytes(folder, data)

    assert boxes(folder) == {"x/a.png": [("cat", [8.0, 6.0, 40.0, 30.0])], "y/c.png": []}
    assert (summary.reviewed, summary.without_boxes) == (2, 1)
    origin = read_index(open_store(str(folder / "shards"))).other["origin"]
    assert origin["corrections"] == [{"file": str(folder / "export.zip"), "sha256": hashlib.sha256(data).hexdigest()}]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (zipped({"labels/a.txt": "0 1 1 1 1"}), "this archive has no JSON file. Export JSON, JSON-MIN or COCO"),
        (zipped({"a.json": {"images": []}})[:-30], "this ZIP archive cannot be read .* Export and download it again"),
        (
            misplaced(zipped({"a.json": {"images": []}})),
            "this ZIP archive cannot be read .* Export and download it again",
        ),
        (zipped({"notes.json": {"categories": []}}), "export.zip#notes.json: this is neither a COCO json nor a list"),
    ],
    ids=["no json", "truncated", "directory elsewhere", "notes of a YOLO export"],
)
def test_an_archive_without_corrections_is_refused(data: bytes, sentence: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        import_bytes(folder, data)


def test_an_archive_that_unpacks_to_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 1000)

    with pytest.raises(UsageError, match=r"the JSON files in this archive have more than 1,000 bytes. Unpack it"):
        import_bytes(folder, zipped({"a.json": [0] * 900}))


def test_a_file_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "x.json").write_text("{")

    with pytest.raises(UsageError, match="this is not JSON"):
        shard_corrections(CorrectionsConfig(str(folder / "table"), str(folder / "shards"), (str(folder / "x.json"),)))


def test_a_table_without_batches_says_how_to_write_one(tmp_path: Path) -> None:
    publish(str(tmp_path / "table"), [Row("a.jpg", width=8, height=8, detections=dog_and_cat(0.6, 0.5))])

    with pytest.raises(
        UsageError, match=r"were exported for correction. Write a batch with `ray-detr review --export`"
    ):
        take_back(tmp_path, [])


def test_tasks_that_were_made_anew_are_found_by_their_address(folder: Path) -> None:
    task = given(folder)["a"]
    task["data"] = {"image": task["data"]["uri"]}

    take_back(folder, [exported_task(task, [annotation([region("dog", [8, 6, 40, 30], SIZE)])])])

    assert list(boxes(folder)) == ["x/a.png"]


def test_tasks_of_web_images_are_found_also_as_earlier_releases_wrote_them(tmp_path: Path) -> None:
    """These wrote `?id=...` for every value of a query."""
    table, uris = str(tmp_path / "table"), [f"https://cdn.example/img?id={number}" for number in (1, 2, 3)]
    publish(table, [Row(uri, width=80, height=60, detections=dog_and_cat(0.6, 0.5)) for uri in uris])
    export_review(ReviewConfig(table=table, out=str(tmp_path / "batch"), choice="random", count=3))
    (batch,) = read_batches(open_store(table))
    exported = ExportedImages([batch])

    for place, image in enumerate(batch.images):
        for uri in (image.uri, "https://cdn.example/img?id=..."):
            found = exported.find(f"1/{place}", uri)
            assert found is not None
            assert found.image == image
        by_address = exported.find(None, image.uri)
        assert by_address is not None
        assert by_address.image == image
    assert exported.find("1/0", batch.images[1].uri) is None
    assert exported.find(None, "https://cdn.example/img?id=...") is None  # it may be any of the three


def test_pictures_that_exif_turns_have_the_boxes_of_the_upright_picture(tmp_path: Path) -> None:
    path = tmp_path / "lake" / "turned.jpg"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[274] = 3  # half a turn: width and height do not tell
    Image.new("RGB", (80, 60)).save(path, exif=exif)
    found = Detected([18], ("dog",), [0.5], [[0, 0, 9, 9]])
    publish(str(tmp_path / "table"), [Row(str(path), size=path.stat().st_size, width=80, height=60, detections=found)])
    export_review(ReviewConfig(table=str(tmp_path / "table"), out=str(tmp_path / "batch"), choice="random", count=1))

    summary = take_back(tmp_path, [exported_task(given(tmp_path)["turned"], [annotation([])])])

    assert summary.shards.report["images_turned_upright"] == 1


@pytest.mark.parametrize(("contributor", "reviewed"), [("Label Studio", 1), ("somebody", 0)])
def test_label_studios_coco_has_the_stored_size_and_upright_boxes_of_a_picture_that_exif_turns(
    contributor: str, reviewed: int, tmp_path: Path
) -> None:
    """So writes Label Studio 1.23; of another tool nobody knows which way the boxes lie."""
    paths = [tmp_path / "lake" / name for name in ("turned.jpg", "plain.jpg")]
    paths[0].parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(paths[0], exif=exif)
    Image.new("RGB", (60, 80)).save(paths[1])
    rows = [Row(str(path), width=60, height=80, detections=dog_and_cat(0.6, 0.5)) for path in paths]
    publish(str(tmp_path / "table"), rows)
    export_review(ReviewConfig(table=str(tmp_path / "table"), out=str(tmp_path / "batch"), count=9))
    one = coco(["turned.jpg"], [{"image_id": 1, "category_id": 2, "bbox": [10, 30, 40, 50]}], width=80, height=60)
    other = coco(["plain.jpg"], [], width=60, height=80)

    summary = take_back(tmp_path, {**one, "info": {"contributor": contributor}}, other)

    assert len(summary.other_size) == 1 - reviewed
    assert boxes(tmp_path).get("turned.jpg") == ([("cat", [10.0, 30.0, 40.0, 50.0])] if reviewed else None)


def test_members_of_archives_are_read_by_their_addresses(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (80, 60)).save(data, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("in/1.png")
        member.size = len(data.getvalue())
        archive.addfile(member, io.BytesIO(data.getvalue()))
    uri = f"file://{tmp_path}/a.tar#/in/1.png"
    row = Row(uri, size=len(data.getvalue()), width=80, height=60, detections=dog_and_cat(0.6, 0.5))
    publish(str(tmp_path / "table"), [row])
    export_review(ReviewConfig(table=str(tmp_path / "table"), out=str(tmp_path / "batch"), choice="random", count=1))

    summary = take_back(tmp_path, [exported_task(given(tmp_path)["1"], [annotation([])])])

    assert summary.shards.images == 1


def test_table_images_files_and_shards_may_lie_in_a_bucket_where_etags_tell_versions(
    moto: S3Server, tmp_path: Path
) -> None:
    bucket, options = moto.bucket(), moto.options()
    store = open_store(bucket, options)
    rows = []
    for name in ("a.png", "b.png"):
        data = Path(picture(tmp_path, name)).read_bytes()
        etag = store.put(f"lake/{name}", data)
        rows.append(
            Row(f"{bucket}/lake/{name}", etag, len(data), width=80, height=60, detections=dog_and_cat(0.6, 0.5))
        )
    table = encode(rows_to_table(rows, origin=Origin("detr@1", 0.05, "run-1", 0, NOW)))
    store.put("table/data/run-1-00000.parquet", table)
    export_review(ReviewConfig(table=f"{bucket}/table", out=f"{bucket}/batch", count=9, options=options))
    tasks = json.loads(store.get("batch/tasks.json").data)
    answers = [exported_task(task, [annotation([region("dog", [8, 6, 40, 30], SIZE)])]) for task in tasks]
    store.put("corrected.json", json.dumps(answers).encode())
    store.put("lake/b.png", store.get("lake/b.png").data[:-1] + b"x")  # of the same size

    summary = shard_corrections(
        CorrectionsConfig(
            f"{bucket}/table", f"{bucket}/shards", (f"{bucket}/corrected.json",), max_missing=0.5, options=options
        )
    )

    assert summary.shards.report["left_out_changed"] == 1
    assert read_index(open_store(f"{bucket}/shards", options)).images == 1


def test_classes_of_two_batches_that_differ_are_refused(folder: Path) -> None:
    fox = Detected([18], ("fox",), [0.5], [[0, 0, 9, 9]])
    publish(
        str(folder / "table"), [Row(picture(folder / "lake", "z.png"), width=80, height=60, detections=fox)], "run-2"
    )
    export_review(
        ReviewConfig(table=str(folder / "table"), out=str(folder / "two"), choice="random", count=1, run="run-2")
    )
    task = json.loads((folder / "two" / "tasks.json").read_text())[0]

    with pytest.raises(UsageError, match="class 18 is 'fox' in one batch and 'dog' in another"):
        take_back(folder, [*four_answers(folder), exported_task(task, [annotation([])])])


def test_out_inside_the_table_and_no_file_are_refused() -> None:
    with pytest.raises(ValueError, match="is inside the table"):
        CorrectionsConfig("table", "table/shards", ("x.json",))
    with pytest.raises(ValueError, match="name at least one file"):
        CorrectionsConfig("table", "shards")
