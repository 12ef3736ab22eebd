"""Damaged images through a whole run: whatever they are, each has its row and the run ends by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset
import pytest

from pipelines.table.schema import PERMANENT_KINDS
from tests.faults.fuzzing.image_suite import ImageSuite
from tests.faults.fuzzing.running import ROOT

SEED = 20261127


def label_damaged_images(folder: Path, *, cases: int) -> None:
    """Label damaged images by the command, as a user does, and compare the table with the folder."""
    lake, table = folder / "lake", folder / "table"
    lake.mkdir()
    suite = ImageSuite(SEED)
    for number in range(cases):
        (lake / f"{number:05d}.jpg").write_bytes(suite.data(number))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    command = ["jobs.label", "--images", str(lake), "--table", str(table), "--model", "scenes", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--actors", "1:1", "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )

    assert done.returncode == 3, done.stderr  # many errors are what a table of damaged images has
    summary = json.loads(done.stdout)
    assert summary["images"] == cases
    assert "Traceback" not in done.stderr
    rows = pyarrow.dataset.dataset(table / "data").to_table().to_pylist()
    assert [Path(row["uri"]).name for row in rows] == [f"{number:05d}.jpg" for number in range(cases)]
    assert {row["error_kind"] for row in rows} <= {None, *PERMANENT_KINDS}
    # whoever kills its process has a kind of its own: none of these may
    assert not {row["error_kind"] for row in rows} & {"crashed", "decode_timeout", "out_of_memory"}
    assert all((row["error_kind"] is None) == (row["detections"] is not None) for row in rows)
    assert sum(row["error_kind"] is None for row in rows) > cases / 10


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_over_a_hundred_damaged_images_has_a_row_for_each(tmp_path: Path) -> None:
    label_damaged_images(tmp_path, cases=100)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.faults
@pytest.mark.slow
def test_a_run_over_two_thousand_damaged_images_has_a_row_for_each(tmp_path: Path) -> None:
    label_damaged_images(tmp_path, cases=2_000)
