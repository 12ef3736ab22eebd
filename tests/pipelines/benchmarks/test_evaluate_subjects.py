import json
from pathlib import Path

from pipelines.benchmarks.config import COUNTS
from pipelines.benchmarks.evaluate_subjects import write_files


def test_made_up_boxes_are_boxes_at_the_default_sizes(tmp_path: Path) -> None:
    most = max(COUNTS["evaluate"])

    write_files({"sizes": [most], "detections": 8}, tmp_path)

    rows = json.loads((tmp_path / f"results_{most}.json").read_text())
    truth = json.loads((tmp_path / f"truth_{most}.json").read_text())["annotations"]
    assert len(rows) == 8 * most
    assert all(side > 0 for row in (*rows, *truth) for side in row["bbox"][2:])
