"""Which images of a table are given out for correction, how they are written, and that none is given out twice."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from detr.classes import Category
from pipelines.errors import RayDetrError, UsageError
from pipelines.review.batches import batch_key, read_batches, record_batch
from pipelines.review.config import ReviewConfig
from pipelines.review.export import ReviewSummary, export_review, interface
from pipelines.store import open_store
from pipelines.table.schema import Detected, Row
from tests.pipelines.report.tables import NOW, publish

NOTHING = Detected([], (), [], [])


def found(*detections: tuple[str, float]) -> Detected:
    """Detections of a dog (18) or a cat (17), each with its score."""
    ids = {"dog": 18, "cat": 17}
    labels = [label for label, _ in detections]
    boxes = [[10.0 * place, 4, 10.0 * place + 8, 24] for place in range(len(labels))]
    return Detected([ids[label] for label in labels], tuple(labels), [score for _, score in detections], boxes)


def row(name: str, *detections: tuple[str, float], etag: str = "v1") -> Row:
    return Row(f"s3://lake/{name}.jpg", etag, 7, width=80, height=60, detections=found(*detections))


@pytest.fixture
def table(tmp_path: Path) -> str:
    place = str(tmp_path / "table")
    publish(
        place,
        [
            row("sure", ("dog", 0.95), ("dog", 0.9)),
            row("one", ("dog", 0.95), ("dog", 0.5)),
            row("two", ("dog", 0.55), ("dog", 0.45)),
            row("half", ("cat", 0.65)),
            row("both", ("cat", 0.9), ("dog", 0.85)),
            row("dog", ("dog", 0.99)),
            Row("s3://lake/empty.jpg", "v1", 7, width=80, height=60, detections=NOTHING),
            Row("s3://lake/bad.jpg", error_kind="truncated", error="cut"),
        ],
    )
    return place


def give_out(table: str, out: Path, choice: str, count: int, **others: Any) -> ReviewSummary:
    return export_review(ReviewConfig(table=table, out=str(out), choice=choice, count=count, **others))


def names(table: str) -> list[str]:
    """The images of the newest batch."""
    return [image.name.removesuffix(".jpg") for image in read_batches(open_store(table))[-1].images]


def test_the_least_certain_are_those_with_most_scores_near_a_half(table: str, tmp_path: Path) -> None:
    summary = give_out(table, tmp_path / "out", "least-certain", 2)

    assert names(table) == ["two", "one"]
    assert (summary.batch, summary.images, summary.boxes, summary.available) == (1, 2, 4, 7)


def test_sure_images_are_not_called_least_certain(table: str, tmp_path: Path) -> None:
    summary = give_out(table, tmp_path / "out", "least-certain", 50)

    assert names(table) == ["two", "one", "half"]
    assert (summary.images, summary.asked) == (3, 50)


def test_random_images_depend_on_the_seed_only(table: str, tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        give_out(table, tmp_path / str(number), "random", 4, seed=seed)
        drawn.append(names(table))
        open_store(table).delete(batch_key(1))

    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(one)) == 4 and "bad" not in one for one in drawn)


def test_a_batch_without_any_class_is_refused_and_not_recorded(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, [row("a"), row("b")])

    with pytest.raises(UsageError, match=r"^the rows have no detection, .* by --classes-of\."):
        give_out(table, tmp_path / "out", "random", 2)

    assert read_batches(open_store(table)) == []


def test_unused_classes_of_official_models_are_no_classes_to_correct(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    found = Detected([1, 12, 26], ("person", "N/A", "N/A"), [0.6, 0.5, 0.01], [[4, 4, 40, 30]] * 3)
    publish(table, [Row("s3://lake/a.jpg", "v1", 7, width=80, height=60, detections=found)])

    summary = give_out(table, tmp_path / "out", "random", 1, threshold=0.0)

    assert (summary.classes, summary.boxes) == (("person",), 1)


def test_a_class_with_two_numbers_is_refused(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, [row("a", ("dog", 0.5))])
    other = Detected([2], ("dog",), [0.5], [[4, 4, 40, 30]])
    publish(table, [Row("s3://lake/b.jpg", "v1", 7, width=80, height=60, detections=other)], "run-2", model="other@1")

    with pytest.raises(UsageError, match=r"^class 'dog' has the number 18 in some rows of .* and 2 in others"):
        give_out(table, tmp_path / "out", "random", 2)

    give_out(table, tmp_path / "out", "random", 2, run="run-2")
    assert names(table) == ["b"]


def test_classes_take_turns_the_rarest_first(table: str, tmp_path: Path) -> None:
    give_out(table, tmp_path / "out", "per-class", 4)

    chosen = names(table)
    assert {chosen[0], chosen[2]} == {"half", "both"}  # all cats there are
    assert {chosen[1], chosen[3]} <= {"sure", "one", "two", "dog", "both"}
    assert len(set(chosen)) == 4


@pytest.mark.parametrize("seed", range(6))
def test_a_class_whose_image_was_taken_by_another_one_takes_its_next(seed: int, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, [row("both", ("cat", 0.9), ("dog", 0.9)), row("cat", ("cat", 0.9)), row("dog", ("dog", 0.9))])

    give_out(table, tmp_path / "out", "per-class", 2, seed=seed)

    assert names(table) in (["both", "dog"], ["cat", "both"], ["cat", "dog"])  # not both cats


def test_more_than_there_are_of_all_classes_is_all_of_them_once(table: str, tmp_path: Path) -> None:
    give_out(table, tmp_path / "out", "per-class", 50)

    assert sorted(names(table)) == ["both", "dog", "half", "one", "sure", "two"]


def test_disagreement_is_what_changed_between_two_runs(table: str, tmp_path: Path) -> None:
    rows = [
        row("sure", ("dog", 0.95), ("dog", 0.9)),
        row("one", ("dog", 0.95)),  # a dog vanished
        row("both", ("cat", 0.9), ("cat", 0.85)),  # a dog became a cat: one vanished, one appeared
        row("new", ("dog", 0.9)),
        row("half", ("dog", 0.9), ("dog", 0.8), ("dog", 0.7), etag="v2"),  # its picture was replaced
    ]
    publish(table, rows, "run-2", model="detr@2", now=NOW + timedelta(days=1))

    give_out(table, tmp_path / "out", "disagreement", 9, run="run-2", against="run-1")

    assert names(table) == ["both", "one"]


def test_an_image_is_given_out_once_in_each_version(table: str, tmp_path: Path) -> None:
    give_out(table, tmp_path / "a", "least-certain", 1)
    second = give_out(table, tmp_path / "b", "least-certain", 1)
    assert names(table) == ["one"]
    assert (second.batch, second.available, second.exported_before) == (2, 6, 1)

    publish(table, [row("two", ("dog", 0.5), ("dog", 0.5), etag="v2")], "run-2", now=NOW + timedelta(days=1))
    give_out(table, tmp_path / "c", "least-certain", 1)
    assert names(table) == ["two"]

    give_out(table, tmp_path / "d", "least-certain", 1, run="run-1")
    assert names(table) == ["half"]
    with pytest.raises(UsageError, match=r"none of the 4 images of .* has a detection with a score between 0\.2"):
        give_out(table, tmp_path / "e", "least-certain", 1, run="run-1")


def test_tasks_have_address_review_and_detections_from_the_threshold_on(table: str, tmp_path: Path) -> None:
    summary = give_out(table, tmp_path / "out", "least-certain", 1, threshold=0.5)

    assert summary.files == ("tasks.json",)
    (task,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert task["data"] == {"image": "s3://lake/two.jpg", "uri": "s3://lake/two.jpg", "review": "1/0"}
    (region,) = task["predictions"][0]["result"]
    assert region["value"] == {
        "x": 0.0, "y": 6.666666667, "width": 10.0, "height": 33.333333333, "rotation": 0, "rectanglelabels": ["dog"],
    }  # fmt: skip
    assert (region["original_width"], region["original_height"], region["score"]) == (80, 60, 0.55)


def test_more_tasks_than_label_studio_takes_at_once_are_several_files(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, [row(f"{number:04}", ("dog", 0.5)) for number in range(1001)])

    summary = give_out(table, tmp_path / "out", "random", 2000)

    assert summary.files == ("tasks-000.json", "tasks-001.json")
    lengths = [len(json.loads((tmp_path / "out" / name).read_text())) for name in summary.files]
    assert lengths == [1000, 1]


def test_addresses_can_be_replaced_by_those_that_a_browser_opens(table: str, tmp_path: Path) -> None:
    publish(table, [row("a b", ("dog", 0.5), ("dog", 0.5), ("dog", 0.5))], "run-2", now=NOW + timedelta(days=1))

    give_out(table, tmp_path / "out", "least-certain", 1, image_urls=("s3://lake/", "https://host/"))

    (task,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert task["data"]["image"] == "https://host/a%20b.jpg"
    assert task["data"]["uri"] == "s3://lake/a b.jpg"
    with pytest.raises(UsageError, match=r"no address of the chosen images begins with s3://pond/; one is s3://lake/"):
        give_out(table, tmp_path / "other", "random", 1, image_urls=("s3://pond/", "https://host/"))
    publish(table, [replace(row("c", ("dog", 0.5)), uri="https://cam/c%20d.jpg")], "run-3", now=NOW + timedelta(days=2))
    give_out(table, tmp_path / "web", "random", 9, image_urls=("https://cam/", "https://host/"))
    (web,) = [one for one in json.loads((tmp_path / "web" / "tasks.json").read_text()) if "cam" in one["data"]["uri"]]
    assert web["data"]["image"] == "https://host/c%20d.jpg"  # it is escaped already


def test_images_of_the_web_that_differ_in_their_query_only_stay_different(tmp_path: Path) -> None:
    table, uris = str(tmp_path / "web"), {f"https://cdn.example/img?id={number}" for number in (1, 2, 3)}
    publish(table, [replace(row("a", ("dog", 0.5)), uri=uri) for uri in sorted(uris)])

    give_out(table, tmp_path / "tasks", "least-certain", 3)
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())

    assert {task["data"]["uri"] for task in tasks} == {task["data"]["image"] for task in tasks} == uris
    assert sorted(names(table)) == ["img?id=1", "img?id=2", "img?id=3"]


def test_a_coco_json_has_all_classes_and_the_names_of_the_record(table: str, tmp_path: Path) -> None:
    give_out(table, tmp_path / "out", "least-certain", 2, to="coco-dataset")

    coco = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["two.jpg", "one.jpg"]
    assert coco["categories"] == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert [(one["image_id"], one["bbox"]) for one in coco["annotations"]] == [
        (1, [0.0, 4.0, 8.0, 20.0]), (1, [10.0, 4.0, 8.0, 20.0]), (2, [0.0, 4.0, 8.0, 20.0]),
        (2, [10.0, 4.0, 8.0, 20.0]),
    ]  # fmt: skip


def test_all_classes_of_a_model_can_be_given(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    disc = Detected([1], ("disc",), [0.5], [[0, 0, 9, 9]])
    publish(table, [Row("s3://lake/a.jpg", "v1", 7, width=80, height=60, detections=disc)])

    summary = give_out(table, tmp_path / "out", "random", 1, classes_of="scenes")

    assert summary.classes == ("disc", "square", "triangle", "star", "ring", "cross")
    assert '<Label value="cross"/>' in (tmp_path / "out" / "interface.xml").read_text()


def test_a_model_of_other_classes_is_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"detections of class 17 'cat', which model scenes@\w+ of --classes-of does"):
        give_out(table, tmp_path / "out", "random", 1, classes_of="scenes")


def test_rows_of_two_models_that_number_classes_differently_are_refused(table: str, tmp_path: Path) -> None:
    horse = Detected([18], ("horse",), [0.5], [[0, 0, 9, 9]])
    rows = [Row("s3://lake/a.jpg", "v1", 7, width=80, height=60, detections=horse)]
    publish(table, rows, "run-2", now=NOW + timedelta(days=1))

    with pytest.raises(UsageError, match=r"class 18 is '\w+' in some rows of .* and '\w+' in others"):
        give_out(table, tmp_path / "out", "random", 1)

    give_out(table, tmp_path / "out", "random", 1, run="run-2")


def test_a_name_with_signs_of_xml_is_escaped_in_the_interface() -> None:
    assert '<Label value="&lt;b&gt; &amp; c"/>' in interface([Category(1, "<b> & c")])


def test_a_folder_with_files_is_refused_and_nothing_is_recorded(table: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.txt").touch()

    with pytest.raises(UsageError, match="is not empty"):
        give_out(table, tmp_path / "out", "random", 1)

    assert read_batches(open_store(table)) == []


def test_an_export_that_cannot_record_its_batch_names_the_folder_to_delete(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.review.export.record_batch", stop)

    with pytest.raises(KeyboardInterrupt) as stopped:
        give_out(table, tmp_path / "out", "random", 1)

    folder = (tmp_path / "out").as_uri()
    assert stopped.value.__notes__ == [f"the folder {folder} is incomplete. Delete it, and run the command again."]


def test_two_commands_at_once_cannot_both_record_a_batch(table: str, tmp_path: Path) -> None:
    give_out(table, tmp_path / "out", "random", 1)
    store = open_store(table)
    (batch,) = read_batches(store)
    other = type(batch)(**{name: getattr(batch, name) for name in batch.__slots__} | {"out": "elsewhere"})

    with pytest.raises(RayDetrError, match=r"another command wrote batch 1 .* Delete elsewhere"):
        record_batch(store, other)


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"record_version": 1, "images": [{"uri": 1}]}', b'{"a": NaN}'])
def test_a_damaged_record_is_named(table: str, tmp_path: Path, damage: bytes) -> None:
    open_store(table).put(batch_key(1), damage)

    with pytest.raises(RayDetrError, match=r"_reviews/0001\.json is damaged"):
        give_out(table, tmp_path / "out", "random", 1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"choice": "disagreement"}, "against: disagreement needs"),
        ({"against": "run-1"}, "other choices do not use it"),
        ({"choice": "disagreement", "against": "a", "run": "a"}, "is the run that images are chosen from"),
        ({"image_urls": ("a",)}, "image urls: give two values"),
        ({"out": "b\udcff"}, "is not UTF-8"),
        ({"image_urls": ("a", "b"), "to": "coco-dataset"}, "only Label Studio's tasks have addresses"),
        ({"image_urls": ("s3://lake/", "https://u:p@host/")}, "contains a password"),
        ({"out": "table/review"}, "is inside the table"),
        ({"count": 0}, "count: 0 is not"),
    ],
)
def test_what_cannot_be_asked_for(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ReviewConfig(**{"table": "table", "out": "out", **wrong})
