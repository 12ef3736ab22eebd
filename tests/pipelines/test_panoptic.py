"""Files of COCO's panoptic format, and quality that is hotcoco's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import hotcoco.panoptic
import numpy as np
import pytest
import torch

from detr.scenes.files import write_scenes
from detr.segmentation.coco_panoptic import from_png, to_png
from detr.segmentation.detector import MaskDetector
from jobs.panoptic import main
from pipelines.errors import RayDetrError, UsageError
from pipelines.panoptic import quality_of_files
from tests.detr.segmentation.panoptic_network import small_panoptic, write_panoptic

SHARED = Path(__file__).parents[3] / "shared" / "data"
TRUTHS = [SHARED / name / "panoptic.json" for name in ("coco_val2017_150", "coco_train2017_100")]
with_photographs = pytest.mark.skipif(
    not all(path.exists() for path in TRUTHS), reason=f"no panoptic truth: put panoptic.json and its PNGs into {SHARED}"
)


def figures(truth: Path, found: Path) -> dict[str, tuple[float, float, float, int]]:
    return {name: (one.pq, one.sq, one.rq, one.categories) for name, one in quality_of_files(truth, found).items()}


def of_hotcoco(truth: Path, found: Path) -> dict[str, tuple[float, float, float, int]]:
    result = hotcoco.panoptic.pq_compute(str(truth), str(found))
    return {name: tuple(result[name][key] for key in ("pq", "sq", "rq", "n")) for name in ("All", "Things", "Stuff")}


def disturbed(truth: Path, folder: Path) -> Path:
    """Write segmentations that are wrong in every way: moved, of another category, joined, missing, invented."""
    document = json.loads(truth.read_text())
    (folder / "found").mkdir(parents=True)
    categories = [category["id"] for category in document["categories"]]
    annotations = []
    for number, entry in enumerate(document["annotations"]):
        ids = from_png((truth.with_suffix("") / entry["file_name"]).read_bytes())
        ids = np.roll(ids, (number % 5, 2 * number % 11), (0, 1))
        infos: list[dict[str, Any]] = []
        new = np.zeros_like(ids)
        for place, segment in enumerate(entry["segments_info"], start=1):
            if (place + number) % 9 == 0:
                continue  # its pixels become void
            mask = ids == segment["id"]
            if not mask.any():
                continue
            joined = (place + number) % 7 == 0 and infos
            new[mask] = infos[-1]["id"] if joined else place
            if not joined:
                category = segment["category_id"] if (place + number) % 5 else categories[(place * number) % 133]
                infos.append({"id": place, "category_id": category, "iscrowd": 0})
        new[:6, :6] = 900
        infos.append({"id": 900, "category_id": categories[number % 133], "iscrowd": 0})
        values, counts = np.unique(new, return_counts=True)
        areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
        infos = [{**info, "area": areas[info["id"]]} for info in infos if info["id"] in areas]
        (folder / "found" / entry["file_name"]).write_bytes(to_png(new.astype(np.int32)))
        annotations.append({**entry, "segments_info": infos})
    (folder / "found.json").write_text(json.dumps({**document, "annotations": annotations}))
    return folder / "found.json"


@with_photographs
@pytest.mark.slow
@pytest.mark.parametrize("truth", TRUTHS, ids=["val", "train"])
def test_quality_is_that_of_hotcoco_and_the_truth_has_1(truth: Path, tmp_path: Path) -> None:
    found = disturbed(truth, tmp_path)

    ours = figures(truth, found)
    assert ours == {name: pytest.approx(values, abs=1e-12) for name, values in of_hotcoco(truth, found).items()}
    assert 0.1 < ours["All"][0] < 0.9
    assert [one[:3] for one in figures(truth, truth).values()] == [(1.0, 1.0, 1.0)] * 3


def test_a_png_holds_the_ids() -> None:
    ids = np.array([[0, 1, 255], [256, 65_536, 16_777_215]], np.int32)

    assert np.array_equal(from_png(to_png(ids)), ids)


@pytest.fixture
def segmented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder that the command wrote for three drawn images and one file that is not an image."""
    write_panoptic(small_panoptic(), tmp_path / "model")
    write_scenes(tmp_path / "images", 3, 4, sizes={(96, 128): 1})
    (tmp_path / "images" / "cut.jpg").write_bytes(b"\xff\xd8nothing")

    main([
        str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"),
        "--threshold", "0.001", "--device", "cpu",
    ])  # fmt: skip

    printed = capsys.readouterr()
    assert printed.out.startswith("segmented: 3 images, ")
    assert "cut.jpg" in printed.err
    return tmp_path / "out"


def test_what_is_written_is_in_cocos_format(segmented: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = segmented / "panoptic.json"
    document = json.loads(truth.read_text())
    assert len(document["categories"]) == 133
    assert document["categories"][80] == {"id": 92, "name": "banner", "isthing": 0}
    for image, entry in zip(document["images"], document["annotations"], strict=True):
        ids = from_png((segmented / "panoptic" / entry["file_name"]).read_bytes())
        assert ids.shape == (image["height"], image["width"])
        assert (image["id"], Path(image["file_name"]).stem) == (entry["image_id"], Path(entry["file_name"]).stem)
        values, areas = np.unique(ids, return_counts=True)
        assert [(one["id"], one["area"]) for one in entry["segments_info"]] == list(
            zip(values.tolist(), areas.tolist(), strict=True)
        )
        x, y, width, height = entry["segments_info"][0]["bbox"]
        inside = ids[y : y + height, x : x + width] == entry["segments_info"][0]["id"]
        assert inside.sum() == entry["segments_info"][0]["area"]
        assert inside.any(0)[[0, -1]].all()
        assert inside.any(1)[[0, -1]].all()

    main(["--results", str(truth), "--truth", str(truth)])
    assert capsys.readouterr().out.splitlines()[0].startswith("All     PQ 100.0  SQ 100.0  RQ 100.0  ")
    assert of_hotcoco(truth, truth)["All"][0] == 1.0  # another tool reads what was written


def test_where_the_store_does_not_answer_the_same_command_works_later(segmented: Path, tmp_path: Path) -> None:
    image = json.loads((segmented / "panoptic.json").read_text())["images"][0]["file_name"]
    out = tmp_path / "later"
    line = ["--model", str(tmp_path / "model"), "--out", str(out), "--device", "cpu"]

    with pytest.raises(RayDetrError, match="none of the images could be read") as raised:
        main(["http://127.0.0.1:9/a.jpg", *line])
    assert not isinstance(raised.value, UsageError)  # exit code 1: schedulers try again
    main([str(tmp_path / "images" / image), *line])
    assert (out / "panoptic.json").exists()


@pytest.mark.parametrize(
    "error", [FloatingPointError("produced NaN"), torch.OutOfMemoryError("cuda has too little memory")]
)
def test_an_image_that_the_network_cannot_compute_ends_the_command_with_a_message(
    error: Exception, segmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MaskDetector, "segmentation", fail)
    out = tmp_path / "other"

    with pytest.raises(RayDetrError, match=rf"\.jpg: {error}"):
        main([str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--out", str(out), "--device", "cpu"])
    assert not (out / "panoptic.json").exists()


def test_stopped_segmentations_name_the_folder_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_panoptic(small_panoptic(), tmp_path / "model")
    write_scenes(tmp_path / "images", 2, 4, sizes={(96, 128): 1})
    line = [str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detr.segmentation.coco_panoptic.categories", stop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        main([*line, "--device", "cpu"])

    folder = tmp_path / "out"
    assert stopped.value.__notes__ == [f"the folder {folder} is incomplete. Delete it, and run the command again."]
    with pytest.raises(UsageError, match="If a stopped command has left them, delete the folder and run the command"):
        main([*line, "--device", "cpu"])


def test_a_truth_that_is_not_panoptic_or_lacks_its_pngs_is_refused_before_segmenting(
    segmented: Path, tmp_path: Path
) -> None:
    document = json.loads((segmented / "panoptic.json").read_text())
    plain = {
        "categories": [{"id": one["id"], "name": one["name"]} for one in document["categories"]],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    out = tmp_path / "out-2"
    line = [str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--out", str(out), "--device", "cpu"]
    truth = tmp_path / "truth.json"
    for changed, sentence in (
        (plain, "an annotation does not have segments_info. COCO's instances_"),
        ({"categories": plain["categories"]}, "a category does not have isthing. COCO's instances_"),
        ({}, f"there is no folder {tmp_path / 'truth'}"),
    ):
        truth.write_text(json.dumps({**document, **changed}))
        with pytest.raises(UsageError, match=re.escape(sentence)):
            main([*line, "--truth", str(truth)])
    assert not out.exists()


def test_what_does_not_fit_is_refused(segmented: Path, tmp_path: Path) -> None:
    again = [str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--out", str(segmented)]
    with pytest.raises(UsageError, match="already contains segmentations"):
        main(again)
    with pytest.raises(UsageError, match="scenes has no mask head, so it gives boxes only"):
        main([str(tmp_path / "images"), "--model", "scenes", "--out", str(tmp_path / "other")])
    less = segmented / "less.json"
    document = json.loads((segmented / "panoptic.json").read_text())
    less.write_text(json.dumps({**document, "annotations": document["annotations"][1:]}))
    shutil.copytree(segmented / "panoptic", segmented / "less")
    with pytest.raises(UsageError, match="has no segmentation of image"):
        main(["--results", str(less), "--truth", str(segmented / "panoptic.json")])
    (segmented / "less.json").write_text("[]")
    with pytest.raises(UsageError, match="is not in COCO's panoptic format"):
        main(["--results", str(less), "--truth", str(segmented / "panoptic.json")])
