"""The notebook docs/walkthrough.ipynb: its outputs are those of its code, and its code works."""

from __future__ import annotations

import base64
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "walkthrough.ipynb"
SCRIPT = ROOT / "scripts" / "run_notebook.py"


def shown(notebook: dict[str, Any], kind: str) -> list[str]:
    """Return what the cells show of a kind, such as text/plain."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return ["".join(output["data"][kind]) for output in outputs if kind in output.get("data", {})]


def printed(notebook: dict[str, Any]) -> str:
    return "".join(
        line for cell in notebook["cells"] for output in cell.get("outputs", ()) for line in output.get("text", ())
    )


def test_the_outputs_of_the_notebook_are_those_of_its_present_code() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    checksum = runpy.run_path(str(SCRIPT))["sources_checksum"](notebook)

    assert notebook["metadata"]["sources_sha256"] == checksum, f"run python scripts/run_notebook.py {NOTEBOOK}"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert NOTEBOOK.stat().st_size < 400_000


def test_a_notebook_is_run_in_order_and_gets_what_its_cells_print_and_show(tmp_path: Path) -> None:
    sources = ["number = 6\nprint('begun')", "number * 7", "number = 0"]
    cells = [{"cell_type": "code", "source": [source], "outputs": ["old"]} for source in sources]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["text"]}, *cells], "metadata": {}}))

    subprocess.run([sys.executable, str(SCRIPT), str(path)], check=True, capture_output=True)

    notebook = json.loads(path.read_text())
    assert (printed(notebook), shown(notebook, "text/plain")) == ("begun\n", ["42"])
    assert [cell.get("execution_count") for cell in notebook["cells"]] == [None, 1, 2, 3]


def test_a_cell_that_fails_ends_the_run_and_leaves_the_notebook(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["1 / 0"], "outputs": []}], "metadata": {}}))
    before = path.read_text()

    done = subprocess.run([sys.executable, str(SCRIPT), str(path)], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert 'File "<cell 1>", line 1' in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert path.read_text() == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_the_notebook_runs_and_its_fine_tuned_model_is_better(local_ray: str, tmp_path: Path) -> None:
    out = tmp_path / "executed.ipynb"
    ray = {"RAY_ADDRESS": local_ray, "RAY_AUTH_MODE": "disabled"}
    places = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(NOTEBOOK), "--out", str(out)],
        env={**os.environ, **ray, **places}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    executed = json.loads(out.read_text())
    (folder,) = tmp_path.glob("ray-detr-walkthrough-*")
    before, after = (json.loads((folder / f"{name}.json").read_text())["AP"] for name in ("before", "after"))
    assert after > before + 0.02
    text = printed(executed)
    assert text.count("24 images, 576 detections of ") == 2
    assert "errors: {}" in text
    pictures = shown(executed, "image/jpeg")
    assert len(pictures) == 3
    for number, picture in enumerate(pictures):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(base64.b64decode(picture))
        with Image.open(file) as opened:
            assert opened.size == (398, 224)
    assert any("scene_2_000000.jpg" in table and "<table" in table for table in shown(executed, "text/html"))
