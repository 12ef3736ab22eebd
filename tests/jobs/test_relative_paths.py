"""Every command with relative local paths, as they are typed: workers and actors run in other folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMANDS = [
    "scenes --out data --count 6 --training",
    "detect data --model scenes --draw drawn",
    "shard --annotations data/instances.json --images data --out shards",
    "train --train shards --val shards --storage runs --name small --recipe scenes --finetune scenes --epochs 1 "
    "--effective-batch 2 --batch-size 2 --num-workers 1:1 --device cpu --threads 1",
    "plan --images data --table table --model runs/small/model",
    "label --images data --table table --model runs/small/model --threshold 0 --device cpu",
    "runs --table table --verify",
    "export --table table --out rows.parquet --latest",
    "evaluate --table table --annotations data/instances.json --output metrics.json",
]


@pytest.mark.slow
@pytest.mark.ray
def test_every_command_takes_relative_paths(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for line in COMMANDS:
        command, *options = line.split()

        done = subprocess.run(
            [sys.executable, "-m", f"jobs.{command}", *options],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )

        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert json.loads((tmp_path / "metrics.json").read_text())["evaluated"] == 6
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["small"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("data", "drawn", "metrics.json", "rows.parquet", "runs", "shards", "table"),
    ]
