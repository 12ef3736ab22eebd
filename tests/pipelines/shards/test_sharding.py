"""From a COCO json to shards through a real Ray: nothing is lost, whatever the json holds and whatever dies."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from ray.exceptions import RayTaskError

from detr.classes import Category
from detr.training.targets import image_target
from pipelines import cluster
from pipelines.coco.text import CocoText, read_coco
from pipelines.coco.truth import normal_truth
from pipelines.doctor import at_start
from pipelines.doctor.cluster_checks import Nodes
from pipelines.doctor.machine import machine_facts
from pipelines.errors import RayDetrError
from pipelines.shards import sharding
from pipelines.shards import tasks as shard_tasks
from pipelines.shards.config import ShardConfig
from pipelines.shards.plan import ShardPlan
from pipelines.shards.reader import ShardReader, read_index
from pipelines.shards.rows import coco_json
from pipelines.shards.sharding import ShardProgress, shard
from pipelines.shards.writer import ShardSpec, ShardWork, WrittenShard, shard_work, write_shard
from pipelines.store import NotFound, Store, StoreOptions, open_store, split_uri
from tests.conftest import S3Server

MEGABYTE = 2**20


def picture(path: Path, number: int, kilobytes: int = 0) -> None:
    """A JPEG of 16 x 12, as large as is wanted: what follows the picture is ignored by decoders."""
    Image.new("RGB", (16, 12), (30 * number, 10, 10)).save(path)
    path.write_bytes(path.read_bytes() + bytes(1024 * kilobytes))


def image(image_id: int, file_name: str, **more: object) -> dict[str, Any]:
    return {"id": image_id, "file_name": file_name, "width": 16, "height": 12, **more}


def annotation(annotation_id: int, image_id: object, **more: object) -> dict[str, Any]:
    return {"id": annotation_id, "image_id": image_id, "category_id": 18, "bbox": [1, 2, 3, 4.5], "area": 13.5,
            "iscrowd": 0, **more}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> ShardConfig:
    """Eight images of some 400 kilobytes: four shards of a megabyte, with two images each."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        picture(folder / f"{number}.jpg", number, kilobytes=400)
    content = {
        "info": {"year": 2017},
        "images": [image(100 - number, f"{number}.jpg") for number in range(8)],
        "annotations": [annotation(number, 93 + number % 8) for number in range(20)],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    return ShardConfig(str(tmp_path / "x.json"), str(folder), str(tmp_path / "shards"), shard_megabytes=1)


@pytest.fixture
def odd(tmp_path: Path) -> ShardConfig:
    """A json with every oddity that it can have and be sharded all the same."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "deep/b.jpg", "c.jpg", "stranger.jpg", "crowd.jpg"]):
        picture(folder / name, 1 + number)
    (folder / "same.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-30])
    (folder / "page.jpg").write_bytes(b"<html>")
    content = {
        "licenses": [{"id": 1}],
        "annotations": [
            annotation(5, 3, segmentation=[[1.25, 2, 3, 4, 5, 6]], attributes={"occluded": True}),
            annotation(4, 99),
            annotation(3, 3, bbox=[1, 1, 0, 5]),
            annotation(3, 3, bbox=[10, 10, 20, 20]),
            annotation(2, 9, iscrowd=1, segmentation={"counts": [1, 2, 189], "size": [12, 16]}),
            annotation(1, 7, category_id=5),
            annotation(0, 3, bbox=[20, 20, 5, 5]),
            {"image_id": 3},
            {"id": "x", "image_id": "3", "note": None},
            {"no": "image"},
            annotation(12, 2, bbox=[1, 2, 3], area=None, iscrowd=None, keypoints=[]),
            annotation(13, 6),
            annotation(14, 5),
        ],
        "images": [
            image(3, "a.jpg", license=1, date_captured="2013"),
            image(9, "crowd.jpg"),
            image(7, "deep/b.jpg", height=12.0),
            image(3, "c.jpg", note="the id of the first"),
            image(6, "gone.jpg"),
            image(5, "cut.jpg"),
            image(4, "page.jpg"),
            image(2, "same.jpg"),
            image(1, "c.jpg", width=17),
            image(0, "/etc/passwd"),
        ],
        "categories": [{"id": 18, "name": "dog"}],
        "type": "instances",
    }
    (tmp_path / "odd.json").write_text(json.dumps(content))
    return ShardConfig(
        str(tmp_path / "odd.json"), str(folder), str(tmp_path / "shards"), max_missing=0.6, max_unusable=1
    )


def digest(folder: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def read_images(out: str) -> list[tuple[int, int]]:
    """Id of every image that training would see, and how many annotations it has."""
    store = open_store(out)
    index = read_index(store)
    reader = ShardReader(store, index)
    return [
        (one.image_id, len(one.annotations))
        for number, file in enumerate(index.files)
        for group in range(len(file.row_groups))
        for one in reader.read_group(number, group)
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_every_image_is_in_one_shard_and_the_json_comes_back(config: ShardConfig) -> None:
    shown: list[ShardProgress] = []

    summary = shard(config, on_progress=shown.append)

    index = read_index(open_store(config.out))
    assert read_images(config.out) == [(100, 2), (99, 2), (98, 2), (97, 2), (96, 3), (95, 3), (94, 3), (93, 3)]
    assert [file.rows for file in index.files] == [2, 2, 2, 2]
    assert (summary.images, summary.annotations, summary.files, summary.was_done) == (8, 20, 4, False)
    assert index.report == {"annotations": 20, "images": 8, "usable_annotations": 20}
    for file in index.files:
        data = (Path(config.out) / file.key).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert coco_json(open_store(config.out)) == json.loads(Path(config.annotations).read_text())
    assert [one.images for one in shown if one.stage == "shard"] == [0, 2, 4, 6, 8]


WILD_IMAGES = [{"id": f"cam-{number}", "file_name": f"{number}.JPG"} for number in range(8)]
WILD_BOXES = [
    {"id": f"box-{number}", "image_id": f"cam-{number}", "category_id": "18", "bbox": ["1", "2", 3, "4.5"],
     "area": None, "iscrowd": crowd}
    for number, crowd in enumerate(["0", "1", None, False, 2, "no", 0, 0.0])
]  # fmt: skip


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ids_and_numbers_as_text_and_missing_sizes_are_read_and_come_back(config: ShardConfig) -> None:
    content = {
        "images": WILD_IMAGES,
        "annotations": WILD_BOXES,
        "categories": [{"id": 0, "name": "dog"}, {"id": "18", "name": "dog"}],
    }
    data = gzip.compress(json.dumps(content).encode("utf-16"))
    Path(config.annotations).write_bytes(data)

    shard(config)

    store = open_store(config.out)
    index = read_index(store)
    assert coco_json(store) == content
    assert index.categories == (Category(18, "dog"),)
    assert index.report == {
        "annotations": 8,
        "categories_left_out": 1,
        "crowds": 2,
        "images": 8,
        "images_numbered": 8,
        "images_respelled": 8,
        "images_without_size": 8,
        "numbers_as_text": 8,
        "usable_annotations": 6,
    }
    reader = ShardReader(store, index)
    images = [one for number, file in enumerate(index.files) for group in range(len(file.row_groups))
              for one in reader.read_group(number, group)]  # fmt: skip
    assert [(one.image_id, one.height, one.width) for one in images] == [(number, 12, 16) for number in range(1, 9)]
    (box,) = images[0].annotations
    assert (box["category_id"], box["bbox"], box["iscrowd"]) == (18, [1.0, 2.0, 3.0, 4.5], 0)
    targets = [len(image_target(one.annotations, 12, 16, class_of={18: 0}).labels) for one in images]
    assert targets == [1, 0, 1, 1, 0, 1, 1, 1]  # as the report counts crowds
    assert normal_truth(coco_json(store)) == normal_truth(read_coco(data, name="x").document()) | {
        "categories": [{"id": 0, "name": "dog"}, {"id": 18, "name": "dog"}]
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"category_id": "dog"},
            r"none of the 20 annotations can be used for training: undeclared categories 20, such as annot",
        ),
        ({"category_id": 17}, r"annotation 0: category_id 17\. Category and image ids must be declared"),
        ({"bbox": {"x": 1, "y": 2, "width": 3, "height": 4}}, r"boxes missing 20, such as annotation 0: bbox \{"),
        ({"bbox": [5, 5, 0, 0]}, r"none of the 20 annotations can be used for training: boxes without area 20"),
        ({"iscrowd": 1}, r"none of the 20 annotations can be used for training: crowds 20\."),
    ],
)
def test_annotations_of_which_none_can_be_trained_on_stop_before_any_work(
    config: ShardConfig, change: dict[str, object], sentence: str
) -> None:
    content = json.loads(Path(config.annotations).read_text())
    content["annotations"] = [{**one, **change} for one in content["annotations"]]
    Path(config.annotations).write_text(json.dumps(content))

    with pytest.raises(RayDetrError, match=sentence):
        shard(config)
    assert not list(Path(config.out).iterdir())


def test_a_share_of_unusable_annotations_stops_with_examples(config: ShardConfig) -> None:
    content = json.loads(Path(config.annotations).read_text())
    content["annotations"][3]["category_id"] = content["annotations"][4]["category_id"] = 0
    content["annotations"][5]["image_id"] = 1
    Path(config.annotations).write_text(json.dumps(content))

    sentence = (
        r"3 of 20 annotations cannot be used for training: a share of 0\.15, but --max-unusable allows 0\.05: "
        r"annotations of no image 1, such as annotation 5: image_id 1; undeclared categories 2, such as annotation 3: "
        r"category_id 0"
    )
    with pytest.raises(RayDetrError, match=sentence):
        shard(config)


@pytest.mark.parametrize(
    ("categories", "sentence"),
    [
        ([{"id": 18, "name": ""}], r"x\.json: the category 18 is called '', which is not a valid class name"),
        ([{"id": 18, "name": "N/A"}, {"id": 3, "name": "cat"}], r"the category 18 is called 'N/A'"),
        ([{"id": 18, "name": " "}], r"the category 18 is called ' '"),
    ],
)
def test_a_class_without_a_name_is_refused(config: ShardConfig, categories: list[object], sentence: str) -> None:
    content = {**json.loads(Path(config.annotations).read_text()), "categories": categories}
    Path(config.annotations).write_text(json.dumps(content))

    with pytest.raises(RayDetrError, match=sentence):
        shard(config)


def test_two_classes_of_one_name_are_refused(config: ShardConfig) -> None:
    content = json.loads(Path(config.annotations).read_text())
    content["categories"] = [{"id": 18, "name": "dog"}, {"id": 3, "name": "dog"}]
    content["annotations"][0]["category_id"] = 3
    Path(config.annotations).write_text(json.dumps(content))

    with pytest.raises(RayDetrError, match=r"the categories 18 and 3 are both called 'dog'"):
        shard(config)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_nothing_of_an_odd_json_is_lost_and_all_of_it_is_reported(odd: ShardConfig) -> None:
    shard(odd)

    store = open_store(odd.out)
    index = read_index(store)
    assert coco_json(store) == json.loads(Path(odd.annotations).read_text())
    assert read_images(odd.out) == [(3, 4), (9, 1), (7, 1), (2, 0)]
    assert index.report == {
        "annotations": 9,
        "annotations_left_out": 2,
        "annotations_of_no_image": 2,
        "boxes_missing": 3,
        "boxes_outside": 1,
        "boxes_over_the_edge": 1,
        "boxes_without_area": 1,
        "crowds": 1,
        "duplicate_pictures": 1,
        "images": 4,
        "left_out_missing": 1,
        "left_out_other_size": 1,
        "left_out_outside_folder": 1,
        "left_out_repeated_id": 1,
        "left_out_unreadable": 2,
        "objects_not_named": 1,
        "undeclared_categories": 3,
        "usable_annotations": 2,
    }
    assert index.examples["duplicate_pictures"] == ("same.jpg is a.jpg",)
    assert index.examples["left_out_missing"] == ("image 6: there is no 'gone.jpg' in the folder of images",)
    assert index.examples["boxes_without_area"] == ("a.jpg, annotation 3: [1, 1, 0, 5]",)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_same_input_gives_the_same_bytes(odd: ShardConfig, tmp_path: Path) -> None:
    shard(odd)
    shard(replace(odd, out=str(tmp_path / "again")))

    assert digest(odd.out) == digest(str(tmp_path / "again"))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_stopped_job_goes_on_without_doing_anything_twice(
    config: ShardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(config)
    whole = digest(config.out)
    out = Path(config.out)
    for name in ("index.json", "shard-00002.parquet"):
        (out / name).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    given: list[int] = []
    plain = shard_work

    def work(coco: CocoText, plan: ShardPlan, number: int) -> ShardWork:
        given.append(number)
        return plain(coco, plan, number)

    monkeypatch.setattr(shard_tasks, "shard_work", work)

    summary = shard(config)

    assert digest(config.out) == whole
    assert given == [2]
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert not summary.was_done


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_finished_job_has_nothing_to_do_and_another_is_refused(config: ShardConfig, tmp_path: Path) -> None:
    shard(config)
    before = digest(config.out)

    assert shard(config).was_done

    for other, what in (
        (replace(config, shard_megabytes=2), "shard megabytes 1, now 2"),
        (replace(config, max_images=3), "max images None, now 3"),
        (replace(config, decode_check=False), "check decodes True, now False"),
        (replace(config, ambiguous_exif="upright"), "ambiguous exif 'stored', now 'upright'"),
    ):
        with pytest.raises(RayDetrError, match=what):
            shard(other)
    picture(Path(config.images) / "3.jpg", 8, kilobytes=400)
    with pytest.raises(RayDetrError, match="images listing"):
        shard(config)
    assert digest(config.out) == before


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_first_images_only(config: ShardConfig) -> None:
    shard(replace(config, max_images=3))

    whole = json.loads(Path(config.annotations).read_text())
    assert coco_json(open_store(config.out)) == {
        **whole,
        "images": whole["images"][:3],
        "annotations": [one for one in whole["annotations"] if one["image_id"] >= 98],
    }


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_images_that_cannot_be_read_stop_the_job_until_they_are_allowed(config: ShardConfig) -> None:
    path = Path(config.images) / "5.jpg"
    path.write_bytes(b"x" * path.stat().st_size)

    with pytest.raises(
        RayDetrError,
        match=r"1 of 8 images are missing or unreadable \(unreadable 1\): a share of 0.125, but --max-mis",
    ):
        shard(config)
    assert not (Path(config.out) / "index.json").exists()

    shard(replace(config, max_missing=0.2))
    assert read_index(open_store(config.out)).images == 7


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_process_that_dies_is_tried_again(
    config: ShardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def dies_twice(spec: ShardSpec, work: ShardWork) -> WrittenShard:
        if work.number == 1 and len(list(deaths.iterdir())) < 2:
            (deaths / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return write_shard(spec, work)

    monkeypatch.setattr(shard_tasks, "write_shard", dies_twice)

    shard(config)

    assert len(list(deaths.iterdir())) == 2
    assert coco_json(open_store(config.out)) == json.loads(Path(config.annotations).read_text())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_process_that_always_dies_stops_the_job_with_its_shard(
    config: ShardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(spec: ShardSpec, work: ShardWork) -> WrittenShard:
        if work.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return write_shard(spec, work)

    monkeypatch.setattr(shard_tasks, "write_shard", dies)

    with pytest.raises(
        RayDetrError, match=r"wrote shard-00001\.parquet was lost 3 times .* images are 2\.jpg to 3\.jpg"
    ):
        shard(config)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_what_a_task_finds_wrong_with_the_world_is_one_sentence(
    config: ShardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(spec: ShardSpec, work: ShardWork) -> WrittenShard:
        raise NotFound("the bucket is gone.")

    monkeypatch.setattr(shard_tasks, "write_shard", fails)

    with pytest.raises(RayDetrError, match=r"^the bucket is gone\."):
        shard(config)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", ["_answer", "write_shard"])
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("only_here", r"ModuleNotFoundError: No module named 'only_here'"),
        (
            "pipelines.store.create_only",
            r"AttributeError: Can't get attribute 'newer' on <module 'pipelines\.store\.create_only' .*",
        ),
    ],
)
def test_nodes_without_this_version_of_the_package_are_reported_in_one_sentence(
    config: ShardConfig, monkeypatch: pytest.MonkeyPatch, name: str, module: str, reason: str
) -> None:
    def newer(*arguments: object) -> WrittenShard:
        raise AssertionError("no node has this")

    monkeypatch.setattr(newer, "__module__", module)
    monkeypatch.setattr(newer, "__qualname__", "newer")
    if module == "only_here":
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setattr(sys.modules[module], "newer", newer, raising=False)
    monkeypatch.setattr(shard_tasks, name, newer)

    with pytest.raises(
        RayDetrError, match=rf"^the cluster's nodes cannot run this version of ray-detr \({reason}\)\. "
    ):
        shard(config)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_mistake_of_ours_keeps_its_traceback(config: ShardConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(spec: ShardSpec, work: ShardWork) -> WrittenShard:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(shard_tasks, "write_shard", mistaken)

    with pytest.raises(RayTaskError, match=r"in mistaken\n(?s:.*)RuntimeError: a mistake"):
        shard(config)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("local", ["images", "out"])
def test_a_local_folder_is_refused_on_several_machines_before_any_work(
    config: ShardConfig, monkeypatch: pytest.MonkeyPatch, local: str
) -> None:
    monkeypatch.setattr(cluster, "hosts", lambda: {"10.0.0.1", "10.0.0.2"})
    elsewhere = {"images": "s3://lake/images", "out": "s3://lake/shards"} | {local: getattr(config, local)}

    with pytest.raises(RayDetrError, match=r"is a local folder, and the cluster has 2 machines: .*--shared-folders"):
        shard(replace(config, **elsewhere))
    assert not Path(config.out).exists()


def test_a_node_with_another_release_is_refused_before_any_work(
    config: ShardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = machine_facts()
    other = replace(own, versions={**own.versions, "ray-detr": "0.0.1"})
    for module in (sharding, at_start):
        monkeypatch.setattr(module, "is_given", lambda: True)
    monkeypatch.setattr(sharding, "connected", lambda **_: nullcontext())
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}] * 2)
    monkeypatch.setattr(at_start, "ask_nodes", lambda _: Nodes({"n1": own, "n2": other}, []))

    with pytest.raises(RayDetrError, match=r"^node n2 has ray-detr 0\.0\.1, this process "):
        shard(config)
    assert not Path(config.out).exists()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_shared_folders_are_used_on_several_machines(config: ShardConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "hosts", lambda: {"10.0.0.1", "10.0.0.2"})

    assert shard(replace(config, shared_folders=True)).images == 8


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_picture_that_is_too_narrow_for_training_is_left_out_and_counted(config: ShardConfig) -> None:
    Image.new("RGB", (2666, 1)).save(Path(config.images) / "2.jpg")
    content = json.loads(Path(config.annotations).read_text())
    content["images"][2] |= {"width": 2666, "height": 1}
    Path(config.annotations).write_text(json.dumps(content))

    with pytest.raises(RayDetrError, match=r"1 of 8 images are missing or unreadable \(too extreme 1\)"):
        shard(config)
    summary = shard(replace(config, max_missing=0.5))

    assert (summary.images, summary.report["left_out_too_extreme"]) == (7, 1)
    assert coco_json(open_store(config.out)) == content


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_task_that_fits_on_no_node_is_not_waited_for(config: ShardConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "TASK_BYTES", 2**50)

    with pytest.raises(RayDetrError, match=r"needs a CPU and .* GB of memory, but no node of the cluster has that"):
        shard(config)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_from_and_to_a_bucket(config: ShardConfig, moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_keys(spec: ShardSpec, work: ShardWork) -> WrittenShard:
        # the processes of the tests' Ray are older than the keys
        os.environ.update(AWS_ACCESS_KEY_ID=access_key, AWS_SECRET_ACCESS_KEY=secret_key)
        return write_shard(spec, work)

    access_key, secret_key = moto.access_key, moto.secret_key
    monkeypatch.setattr(shard_tasks, "write_shard", with_keys)
    source, target = moto.bucket(), moto.bucket()
    root, _ = split_uri(source)
    images = open_store(f"{source}/train", moto.options())
    for path in Path(config.images).iterdir():
        images.put(path.name, path.read_bytes())
    open_store(root, moto.options()).put("x.json", Path(config.annotations).read_bytes())

    shard(
        replace(
            config,
            annotations=f"{source}/x.json",
            images=f"{source}/train/",
            out=f"{target}/a folder/shards",
            image_options=StoreOptions(endpoint=moto.endpoint, region="us-east-1"),
        )
    )

    store: Store = open_store(f"{target}/a folder/shards", moto.options())
    assert coco_json(store) == json.loads(Path(config.annotations).read_text())
    assert [entry.key for entry in store.list()] == [
        "_plan.json", "index.json", *(f"shard-0000{number}.parquet" for number in range(4)),
    ]  # fmt: skip


def test_images_that_are_not_there_stop_the_job_before_anything_is_written(config: ShardConfig) -> None:
    (Path(config.images) / "2.jpg").unlink()

    with pytest.raises(
        RayDetrError, match=r"1 of 8 images are missing or unreadable \(missing 1\).*The first: there is no '2\.jpg'"
    ):
        shard(config)
    assert list(Path(config.out).glob("*")) == []


def test_a_wrong_folder_is_reported_by_a_name_of_each(config: ShardConfig, tmp_path: Path) -> None:
    with pytest.raises(RayDetrError, match=r"the json has, for example, '0\.jpg', the folder has 'images/0\.jpg'"):
        shard(replace(config, images=str(tmp_path)))


def test_an_empty_folder_is_reported(config: ShardConfig) -> None:
    shutil.rmtree(config.images)

    with pytest.raises(RayDetrError, match="there are no images at"):
        shard(config)


def test_a_place_that_holds_something_else_is_refused(config: ShardConfig) -> None:
    Path(config.out).mkdir()
    (Path(config.out) / "notes.txt").write_text("x")

    with pytest.raises(RayDetrError, match=r"is not empty: it contains notes\.txt"):
        shard(config)


def test_annotations_that_are_not_there_are_reported(config: ShardConfig) -> None:
    with pytest.raises(RayDetrError, match=r"gone\.json"):
        shard(replace(config, annotations=str(Path(config.annotations).with_name("gone.json"))))


@pytest.mark.parametrize(
    ("field", "value"),
    [("shard_megabytes", 0), ("shard_megabytes", 2000), ("max_missing", 1.5), ("max_missing", -0.1),
     ("max_images", 0), ("ambiguous_exif", "both")],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(config: ShardConfig, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field.replace("_", " ")):
        replace(config, **{field: value})  # type: ignore[arg-type]
