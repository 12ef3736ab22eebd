"""The command `shard`: what its line means, and what it prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.shard import line, main, report
from pipelines.shards import sharding
from pipelines.shards.config import ShardConfig
from pipelines.shards.sharding import ShardProgress, ShardSummary
from pipelines.store import StoreOptions

SUMMARY = ShardSummary(
    out="s3://b/shards",
    images=1999,
    annotations=12_345,
    files=2,
    size_bytes=320_000_000,
    report={"left_out_missing": 1, "boxes_without_area": 4, "images": 1999, "annotations": 12_345},
    examples={
        "left_out_missing": ("image 7: there is no 'a.jpg' in the folder of images",),
        "boxes_without_area": tuple(f"{number}.jpg, annotation {number}: [1, 1, 0, 0]" for number in range(4)),
    },
    seconds=100.0,
    was_done=False,
)
LINE = ["--annotations", "x.json", "--images", "images", "--out", "out"]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[ShardConfig]:
    """What the command asks for; it gets a summary without any work."""
    configs: list[ShardConfig] = []

    def shard(config: ShardConfig, **_: object) -> ShardSummary:
        configs.append(config)
        return SUMMARY

    monkeypatch.setattr(sharding, "shard", shard)
    return configs


def test_a_short_line_takes_the_defaults(given: list[ShardConfig]) -> None:
    main(LINE)

    assert given == [ShardConfig("x.json", "images", "out")]


def test_every_option_arrives(given: list[ShardConfig]) -> None:
    main([
        *LINE, "--shard-megabytes", "64", "--ambiguous_exif", "upright", "--no-decode-check", "--max-missing", "0.5",
        "--max-unusable", "0.25",
        "--max-images", "9", "--via", "fsspec", "--anonymous", "--endpoint", "http://h:1", "--region", "eu",
        "--profile", "lake", "--request-payer", "--verbose", "--shared-folders",
    ])  # fmt: skip

    store = StoreOptions("fsspec", True, "http://h:1", "eu", "lake", True)
    assert given == [ShardConfig("x.json", "images", "out", 64, "upright", False, 0.5, 0.25, 9, True, store, True)]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--shard-megabytes", "0"], "0 is not in 1..1,024"),
        (["--shard-megabytes", "5000"], "--shard-megabytes: 5000 is not in 1..1,024"),
        (["--max-missing", "2"], "2 is not in 0..1"),
        (["--max-unusable", "1.5"], "1.5 is not in 0..1"),
        (["--shard-megabites", "3"], "Did you mean --shard-megabytes?"),
    ],
)
def test_a_wrong_line_is_refused(
    given: list[ShardConfig], capfd: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*LINE, *more])

    assert left.value.code == 2
    assert sentence in capfd.readouterr().err
    assert given == []


def test_the_report_says_what_was_found_and_what_was_done() -> None:
    assert report(SUMMARY).splitlines() == [
        "found: images that do not exist: 1, left out (image 7: there is no 'a.jpg' in the folder of images)",
        "found: boxes without area: 4, kept, training will ignore them (0.jpg, annotation 0: [1, 1, 0, 0]; 1.jpg, "
        "annotation 1: [1, 1, 0, 0]; 2.jpg, annotation 2: [1, 1, 0, 0])",
        "done: 1,999 images with 12,345 annotations in 1 min 40 s (20.0 images/s)",
        "shards: s3://b/shards, 320.0 MB in 2 files",
    ]


def test_a_finding_without_words_is_printed_by_its_name() -> None:
    assert "found: left out new kind: 7" in report(replace(SUMMARY, report={"left_out_new_kind": 7})).splitlines()


def test_nothing_to_do_is_one_line() -> None:
    done = replace(SUMMARY, was_done=True, files=1)

    assert report(done) == "nothing to do: s3://b/shards has all 1,999 images, 320.0 MB in 1 file"


def test_the_summary_as_json(given: list[ShardConfig], capfd: pytest.CaptureFixture[str]) -> None:
    main([*LINE, "--json"])

    printed = json.loads(capfd.readouterr().out)
    assert (printed["images"], printed["report"]["boxes_without_area"]) == (1999, 4)


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (ShardProgress("reading x.json"), "  reading x.json"),
        (ShardProgress("shard", 0, 2000), "  shard  0.0%  0 of 2,000 images"),
        (ShardProgress("shard", 1500, 2000), "  shard  75.0%  1,500 of 2,000 images  150.0 images/s"),
    ],
)
def test_progress_is_one_line(progress: ShardProgress, shown: str) -> None:
    assert line(progress, 10.0) == shown


@pytest.mark.slow
@pytest.mark.ray
def test_a_folder_becomes_shards_and_everything_found_has_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (16, 12)).save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes())
    content: dict[str, Any] = {
        "images": [{"id": number, "file_name": f"{name}.jpg", "width": 16, "height": 12}
                   for number, name in enumerate("abc")],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 4, 2]}],
        "categories": [{"id": 1, "name": "cat"}],
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "jobs.shard", "--annotations", "x.json", "--images", "images", "--out", "shards"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)

    refused, done, again = start(), start("--max-missing", "0.5"), start("--max-missing", "0.5")

    assert refused.returncode == 3
    assert refused.stdout == ""
    assert refused.stderr.splitlines()[-1].startswith("error: 1 of 3 images are missing or unreadable (missing 1)")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("found: images that do not exist: 1, left out (image 2: there is no 'c.jpg'")
    assert [text for text in lines if "same bytes" in text] == [
        "found: images with the same bytes as another one: 1, kept (b.jpg is a.jpg)"
    ]
    assert re.fullmatch(r"shards: shards, [\d.]+ kB in 1 file", lines[-1])
    assert re.fullmatch(r"nothing to do: shards has all 2 images, [\d.]+ kB in 1 file\n", again.stdout)
