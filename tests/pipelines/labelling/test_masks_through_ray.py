"""A folder labelled with masks, resumed, planned and verified as any other."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset
import pytest

from detr.scenes.files import write_scenes
from detr.segmentation.detector import MaskDetector
from detr.segmentation.masked_detections import MaskedDetections
from jobs.runs import main as runs
from pipelines.errors import SettingsMismatch
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from tests.detr.segmentation.panoptic_network import small_panoptic, write_panoptic

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_folder_is_labelled_with_masks(
    local_ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_panoptic(small_panoptic(), tmp_path / "panoptic")
    write_scenes(tmp_path / "lake", 3, 4, sizes={(96, 128): 1, (128, 96): 1})
    config = LabelConfig(
        images=(str(tmp_path / "lake"),), table=str(tmp_path / "table"), model=str(tmp_path / "panoptic"),
        threshold=0.001, masks=True, device="cpu", actors=(None, 1),
    )  # fmt: skip

    summary = label(config)
    again = label(config)

    assert (summary.images, again.images_this_start) == (3, 0)
    detector = MaskDetector(tmp_path / "panoptic", device="cpu", threshold=0.001)
    for row in pyarrow.dataset.dataset(f"{config.table}/data").to_table().to_pylist():
        alone = detector(Path(row["uri"].removeprefix("file://")))
        assert isinstance(alone, MaskedDetections)
        assert row["masks"] == list(alone.masks)
        assert len(row["masks"]) == len(row["detections"]) > 0
    with pytest.raises(SettingsMismatch, match=r"\(masks on, now off\)"):
        label(LabelConfig(images=config.images, table=config.table, model=config.model, threshold=0.001, device="cpu"))
    runs(["--table", config.table, "--verify"])
    assert capsys.readouterr().out == "verified: 1 of 1 files, 3 of 3 images (100.0%): no findings\n"
