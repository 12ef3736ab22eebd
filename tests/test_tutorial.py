"""The tutorial, command by command: what each prints is what the page shows, and `--json` has the keys that it had.

Commands are run as a reader types them, with relative paths, in one folder. `python scripts/run_tutorial.py
docs/tutorial.md` writes what they print now into the page.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
TUTORIAL = runpy.run_path(str(ROOT / "scripts" / "run_tutorial.py"))

ALWAYS_OTHER = (  # what differs from run to run, and what is compared in its place
    (r"\d{8}-\d{6}-[0-9a-f]{4}", "RUN"),
    (r"checkpoint \d+-RUN-\d+", "CHECKPOINT"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"in (\d+ h )?(\d+ min )?[\d.]+ s\b", "in SECONDS"),
    (r"\(?[\d.]+ images/s\)?", "RATE"),
    (r"(reading|decoding|network) (\d+ h )?(\d+ min )?[\d.]+ s", r"\1 SECONDS"),
    (r"devices busy \d+ %", "devices busy SHARE"),
    (r"first@[0-9a-f]{12}", "first@HASH"),
    (r"^ray-detr .*, CUDA .*, Ray .*", "VERSIONS"),
)
NOW_AND_THEN = re.compile(  # lines of progress: each 30 seconds, or where a stage lasts until it is asked for
    r"^  ((label|evaluate|train|shard)(  |$)|loading)"
)
DECIMAL = re.compile(r"-?\d+\.\d+")
TOLERANCE = 0.06  # of decimals: two epochs of training end a little otherwise on another processor


def comparable(lines: Sequence[str]) -> tuple[list[str], list[float]]:
    """Return lines without what differs from run to run and without decimals, and the decimals."""
    text = "\n".join(line for line in lines if not NOW_AND_THEN.match(line))
    for pattern, name in ALWAYS_OTHER:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return DECIMAL.sub("DECIMAL", text).splitlines(), [float(number) for number in DECIMAL.findall(text)]


@pytest.mark.parametrize(
    "line", ["  evaluate", "  evaluate  epoch 1 of 2", "  label  3 of 4 shards", "  loading the model"]
)
def test_a_stage_that_shows_only_where_it_lasts_is_not_compared(line: str) -> None:
    assert comparable(["  starting workers", line, "done"]) == comparable(["  starting workers", "done"])


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[Any]]:
    """Run the tutorial, and return its folder, the steps of the page and what they printed."""
    folder = tmp_path_factory.mktemp("hour")
    steps = TUTORIAL["steps_of"](PAGE.read_text())
    environment = {"XDG_CACHE_HOME": str(folder.parent / "cache"), "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return folder, steps, TUTORIAL["run"](steps, folder)


@pytest.mark.slow
@pytest.mark.ray
def test_each_command_of_the_tutorial_prints_what_the_page_shows(hour: tuple[Path, list[Any], list[Any]]) -> None:
    folder, steps, ran = hour

    assert len(steps) == len(ran) == 25
    for shown, real in zip(steps, ran, strict=True):
        said = "\n".join(real.output)
        assert real.code == shown.code, f"{shown.command}\n{said}"
        (expected, shown_decimals), (text, decimals) = comparable(shown.output), comparable(real.output)
        assert text == expected, f"{shown.command}\n{said}"
        assert decimals == pytest.approx(shown_decimals, abs=TOLERANCE, rel=1e-3), f"{shown.command}\n{said}"
    assert {path.name for path in folder.iterdir()} == {
        *("lake", "table", "more", "current.parquet", "drawn", "before.json", "train-images", "val-images"),
        *("shards", "runs"),
    }


JSON_KEYS = {
    "plan --images lake --table table --model scenes": (
        "duplicates images labelled model segments shard_images shards size_bytes skipped(.json) "
        "unfinished_done unfinished_images unfinished_run unknown_sizes"
    ),
    "label --images lake --table table --model scenes": (
        "already_labelled changed_this_start cost detections duplicates errors files images images_this_start"
        " labelling_seconds max_error_rate model node_hours nodes query repeated_errors resumed run_id seconds"
        " skipped(.json) table work(actor_seconds busy_seconds decode_seconds fetch_seconds network_seconds "
        "requests size_bytes)"
    ),
    "runs --table table": (
        "holder older_runs "
        "runs([attempts([]) detections ended_at errors images_planned model rows run_id settings "
        "spent(attempts cost images node_hours seconds work(actor_seconds busy_seconds decode_seconds fetch_seconds "
        "network_seconds requests size_bytes)) started_at state]) table"
    ),
    "runs --table table --verify": (
        "files files_total findings([]) findings_before images images_total is_complete run_id table"
    ),
    "export --table table --latest --out again.parquet": (
        'files out rows rows_total settings({"precision":"fp32","threshold":0.05})'
    ),
    "detect lake/scene_1_000001.jpg --model scenes": (
        "detections([box([]) category_id label score]) drawn height image width"
    ),
    "evaluate --table table --annotations lake/instances.json --allow-thresholded": (
        "AP AP50 AP75 APl APm APs AR1 AR10 AR100 ARl ARm ARs annotation_examples "
        "annotation_findings(usable_annotations) annotations_sha256 class_agnostic_AP "
        "classes([AP annotations category_id name]) detections errors([]) evaluated images kept_classes "
        "matched_otherwise([]) missing([]) models([]) other_size([]) renamed_classes([]) "
        "threshold threshold_cost(AP_doubled doubled short_images threshold) turned_back([]) unannotated undeclared "
        "unread([])"
    ),
    "shard --annotations val-images/instances.json --images val-images --out shards/val": (
        "annotations examples files images out report(annotations images objects_not_named "
        "usable_annotations) seconds size_bytes was_done"
    ),
    "train --train shards/train --val shards/val --storage runs --name first --recipe finetune --finetune scenes "
    "--epochs 2 --effective-batch 8 --batch-size 4 --num-workers 1": (
        "checkpoint cost epochs metrics(AP AP50 AP75 APl APm APs AR1 AR10 AR100 ARl ARm ARs annotations_sha256 "
        "class_agnostic_AP classes([AP annotations category_id name]) images missing missing_examples([]) threshold) "
        "model node_hours nodes resumed run seconds starts([]) steps was_finished"
    ),
    "report --table table --out report.html": (
        "AP AP_notes([]) bytes changed_pictures compared drift images in_both new_errors only_before only_here out "
        'pictures settings({"precision":"fp32","threshold":0.05}) unreadable'
    ),
    "repeats --table table --out repeats.html": "boxes bytes images marked_before out places shown",
    "review --table table --export random --count 3 --out tasks": (
        "asked available batch boxes classes([]) exported_before files([]) images out"
    ),
    "models": "[ap available classes license name task]",
}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("command", JSON_KEYS)
def test_json_has_the_keys_that_programs_read(hour: tuple[Path, list[Any], list[Any]], command: str) -> None:
    folder, _, _ = hour
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder.parent / "cache")}

    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *command.split(), "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert keys_of(json.loads(done.stdout)) == JSON_KEYS[command]


def keys_of(value: Any) -> str:
    """Return the keys of an object, in alphabetical order and with those of objects inside it."""
    if isinstance(value, list):
        return f"[{keys_of(value[0])}]" if value else "[]"
    if not isinstance(value, dict):
        return ""
    inner = ((key, keys_of(one)) for key, one in sorted(value.items()))
    return " ".join(f"{key}({keys})" if keys else key for key, keys in inner)
