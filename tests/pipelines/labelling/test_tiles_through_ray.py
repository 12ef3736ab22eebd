"""A folder of large pictures labelled tile by tile, resumed, planned and verified as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
from PIL import Image

from detr.detector import Detector
from detr.scenes.scene import draw_scene
from detr.tiled_detector import TiledDetector
from detr.tiles import Tiling
from jobs.runs import main as runs
from pipelines.errors import RayDetrError, SettingsMismatch, UsageError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from tests.detr.crowds import draw_crowd

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TILING = Tiling(1000, 800, 0.25)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Two pictures of 4,000 x 3,000 pixels, one that fits in a tile, and a file that ends too early."""
    folder = tmp_path / "lake"
    folder.mkdir()
    for seed in (1, 2):
        Image.fromarray(draw_crowd(seed, 3000, 4000, shapes=60).image).save(folder / f"large-{seed}.jpg")
    Image.fromarray(draw_scene(3, 480, 640).image).save(folder / "small.jpg")
    (folder / "cut.jpg").write_bytes((folder / "large-1.jpg").read_bytes()[:100_000])
    return folder


def rows(config: LabelConfig) -> dict[str, dict[str, Any]]:
    found = pyarrow.dataset.dataset(f"{config.table}/data").to_table().to_pylist()
    return {row["uri"].rpartition("/")[2]: row for row in found}


def test_a_folder_is_labelled_tile_by_tile(
    local_ray: str, lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LabelConfig(
        images=(str(lake),), table=str(tmp_path / "table"), model="scenes", tiles=(1000, 800), overlap=0.25,
        device="cpu", actors=(None, 1),
    )  # fmt: skip

    summary, again = label(config), label(config)

    assert (summary.images, summary.errors, again.images_this_start) == (4, {"truncated": 1}, 0)
    found = rows(config)
    assert {row["settings"] for row in found.values()} == {
        '{"overlap":0.25,"precision":"fp32","threshold":0.05,"tiles":"1000x800"}'
    }
    plain = Detector("scenes", device="cpu")
    tiled = TiledDetector(plain, TILING)
    for name, detector in (("large-1.jpg", tiled), ("large-2.jpg", tiled), ("small.jpg", plain)):
        expected = detector(lake / name)
        assert [one["label"] for one in found[name]["detections"]] == list(expected.labels)
        assert [one["score"] for one in found[name]["detections"]] == expected.scores.tolist()
        assert [list(one["box"].values()) for one in found[name]["detections"]] == expected.boxes_xyxy.tolist()
    assert (found["large-1.jpg"]["width"], found["large-1.jpg"]["height"]) == (4000, 3000)
    assert len(found["large-1.jpg"]["detections"]) > 2 * len(plain(lake / "large-1.jpg"))
    for other, difference in ((replace(config, overlap=0.5), "overlap 0.25, now 0.5"),
                              (replace(config, tiles=None, overlap=None), "tiles 1000x800, now none")):  # fmt: skip
        with pytest.raises(SettingsMismatch, match=difference):
            label(other)
    runs(["--table", config.table, "--verify"])
    assert capsys.readouterr().out == "verified: 1 of 1 files, 4 of 4 images (100.0%): no findings\n"


def test_a_run_with_tiles_is_resumed_with_the_same_tiles_only(
    local_ray: str, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LabelConfig(
        images=(str(lake / "small.jpg"),), table=str(tmp_path / "table"), model="scenes", tiles=(1000, 800),
        device="cpu", actors=(None, 1),
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.labelling.driver.finish_run", _stop)
        with pytest.raises(RayDetrError, match="stopped here"):
            label(config)

    for other, difference in ((replace(config, tiles=(800, 800)), "tiles 1000x800, now 800x800"),
                              (replace(config, tiles=None), "tiles 1000x800, now none")):  # fmt: skip
        with pytest.raises(UsageError, match=f"another configuration .{difference}"):
            label(other)
    assert label(config).resumed


def _stop(*_: object, **__: object) -> None:
    raise RayDetrError("stopped here")
