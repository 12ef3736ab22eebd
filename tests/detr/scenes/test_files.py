"""What is written, measured and refused where a folder of scenes is made."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr.scenes.files import PICTURE_SIZES, write_scenes
from detr.scenes.scene import (
    draw_scene,
)

DISC = 0
SMALL = {(32, 48): 3, (48, 32): 1}


def test_a_written_set_is_read_by_pycocotools_with_the_boxes_that_were_drawn(tmp_path: Path) -> None:
    truth = COCO(str(write_scenes(tmp_path / "set", 6, 3, sizes=SMALL)))

    assert [(item["id"], item["name"]) for item in truth.loadCats(truth.getCatIds())] == [
        (1, "disc"), (2, "square"), (3, "triangle"), (4, "star"), (5, "ring"), (6, "cross"),
    ]  # fmt: skip
    assert [truth.imgs[number]["file_name"] for number in range(1, 7)] == [
        f"scene_3_00000{number}.jpg" for number in range(6)
    ]
    for number, image in enumerate(truth.loadImgs(range(1, 7))):
        scene = draw_scene(3_000_000 + number, image["height"], image["width"])
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=[image["id"]]))
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (item["bbox"] for item in annotations)]
        assert [item["category_id"] - 1 for item in annotations] == scene.labels.tolist()
        np.testing.assert_allclose(boxes, scene.boxes_xyxy, atol=1e-5)
        with Image.open(tmp_path / "set" / image["file_name"]) as picture:
            assert picture.format == "JPEG"
            difference = np.abs(np.asarray(picture.convert("RGB"), dtype=int) - scene.image)
        assert difference.mean() < 12  # quality 92 with halved colour


def test_the_truth_measured_against_itself_is_perfect(tmp_path: Path) -> None:
    truth = COCO(str(write_scenes(tmp_path, 12, 1, sizes={(240, 320): 1})))
    evaluation = COCOeval(truth, truth.loadRes([{**item, "score": 1.0} for item in truth.anns.values()]), "bbox")

    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

    assert evaluation.stats[0] == pytest.approx(1.0)


def test_sizes_are_drawn_by_their_weights(tmp_path: Path) -> None:
    images = json.loads(write_scenes(tmp_path, 120, 0, sizes=SMALL).read_text())["images"]

    sizes = Counter((image["height"], image["width"]) for image in images)

    assert set(sizes) == set(SMALL)
    assert 75 < sizes[32, 48] < 105


def test_the_picture_sizes_are_height_and_width_with_the_weights_of_the_unseen_set() -> None:
    assert dict(PICTURE_SIZES) == {
        (480, 640): 2, (640, 480): 2, (720, 1280): 2, (360, 360): 2, (667, 1000): 1, (900, 400): 1,
    }  # fmt: skip


def test_the_same_set_written_twice_is_the_same_files_and_a_shorter_one_is_its_beginning(tmp_path: Path) -> None:
    for name, count in (("one", 5), ("two", 5), ("short", 3)):
        write_scenes(tmp_path / name, count, 9, sizes=SMALL)
    one, two, short = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "short")
    )

    assert one == two
    assert len(one) == 6
    assert all(one[name] == data for name, data in short.items() if name != "instances.json")


def test_a_folder_that_holds_the_same_scenes_is_completed_and_what_is_there_is_not_written_again(
    tmp_path: Path,
) -> None:
    write_scenes(tmp_path, 4, 9, sizes=SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept_at = (tmp_path / "scene_9_000000.jpg").stat().st_mtime_ns
    (tmp_path / "instances.json").unlink()
    (tmp_path / "scene_9_000002.jpg").rename(tmp_path / "scene_9_000002.jpg.part")  # as a killed call leaves it

    write_scenes(tmp_path, 4, 9, sizes=SMALL)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (tmp_path / "scene_9_000000.jpg").stat().st_mtime_ns == kept_at


def test_a_folder_with_other_files_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")

    with pytest.raises(FileExistsError, match=r"contains holiday\.jpg, which does not belong to these scenes"):
        write_scenes(tmp_path, 2, 9, sizes=SMALL)

    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_another_file_under_a_scenes_name_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "scene_9_000001.jpg").write_bytes(b"mine")

    with pytest.raises(FileExistsError, match=r"scene_9_000001\.jpg exists already with other contents"):
        write_scenes(tmp_path, 2, 9, sizes=SMALL)

    assert (tmp_path / "scene_9_000001.jpg").read_bytes() == b"mine"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")

    with pytest.raises(FileExistsError, match="out is a file"):
        write_scenes(tmp_path / "out", 2, 9, sizes=SMALL)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1_000_001, 0), (1, -1), (1, 1_000_000)])
def test_a_count_or_a_seed_out_of_range_is_refused(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(ValueError, match=f"cannot write {count} scenes of seed {seed}"):
        write_scenes(tmp_path, count, seed, sizes=SMALL)
