"""The figures that were published for the official weights, where weights and data are at hand.

AP 42.0 is the original's at batch 2; alone, which is what exact padding equals, 42.1 was published.
"""

import os
from pathlib import Path

import pytest

from jobs.evaluate import main

COCO = os.environ.get("COCO_VAL2017", "")
R50 = os.environ.get("DETR_R50", "")
REASON = (
    "needs COCO val2017 and the official weights: set COCO_VAL2017 to a folder with val2017/ and "
    "annotations/instances_val2017.json, and DETR_R50 to a model, such as facebook/detr-resnet-50"
)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not (COCO and R50), reason=REASON)
def test_the_official_r50_has_ap_42_on_val2017(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command in docs/training.md does; it exits with exit code 3 where AP is another."""
    folder = Path(COCO)

    main([
        "--model", R50, "--images", str(folder / "val2017"),
        "--annotations", str(folder / "annotations" / "instances_val2017.json"),
        "--keep-table", str(tmp_path / "table"), "--expect-ap", "42.0", "--tolerance", "0.2",
    ])  # fmt: skip

    assert "images: 5,000, of which 5,000 are labelled, with 500,000 detections" in capsys.readouterr().out
