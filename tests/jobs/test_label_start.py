"""What starting the command costs: nothing heavy is imported and nothing started before there is something to label."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from detr.scenes.files import write_scenes
from pipelines.clock import SystemClock
from pipelines.labelling.manifest import PlannedSegment, read_shard
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, publish_group, remove_parts
from pipelines.labelling.run import RunRequest, finish_run
from pipelines.lake.listing import list_objects
from pipelines.models import identify_model
from pipelines.store import StoreOptions, open_store
from pipelines.table.schema import Detected, Origin, Row, rows_to_table
from tests.pipelines.labelling.runs import start_run

HEAVY = ("torch", "torchvision", "ray", "scipy", "transformers", "boto3", "fsspec", "huggingface_hub", "rich")


def labelled(folder: Path) -> tuple[str, str]:
    """Make a lake of three scenes, and a table in which all of them are labelled by the embedded model."""
    lake, table = folder / "lake", folder / "table"
    write_scenes(lake, 3, 4, sizes={(96, 128): 1})
    store, model = open_store(str(table)), identify_model("scenes", StoreOptions())
    now = SystemClock().now()
    run, _ = start_run(
        store, RunRequest(model.id, model.sha256, {"threshold": 0.05, "precision": "fp32"}, 2, {}), now=now, tail="0001"
    )
    listing = list_objects([str(lake)])
    segments: list[PlannedSegment] = list(
        write_plan(store, run.run_id, listing, lambda objects: [False] * len(objects), shard_images=2)
    )
    for segment in segments:
        for shard in segment.shards:
            rows = [
                Row(item.uri, item.etag, item.size, 96, 128, detections=Detected([], (), [], []))
                for item in read_shard(store, run.run_id, shard)
            ]
            origin = Origin(run.model, 0.05, run.run_id, shard, now)
            commit_part(store, run.run_id, shard, rows_to_table(rows, origin=origin), token="t")
        publish_group(store, run, segment)
    finish_run(store, run.run_id, now=now, totals={"rows": 3, "detections": 0, "errors": {}})
    remove_parts(store, run.run_id)
    return str(lake), str(table)


def files(table: str) -> dict[str, bytes]:
    """Return the files of a table but those of its lease, which every start takes."""
    found = (path for path in Path(table).rglob("*") if path.is_file() and not path.name.startswith("_lease"))
    return {str(path.relative_to(table)): path.read_bytes() for path in found}


@pytest.mark.slow  # a process of its own
def test_a_start_with_nothing_to_do_imports_neither_torch_nor_ray_and_writes_nothing(tmp_path: Path) -> None:
    lake, table = labelled(tmp_path)
    before = files(table)
    line = ["--images", lake, "--table", table, "--model", "scenes"]
    code = (
        "import json, sys\nfrom jobs.label import main\nmain(sys.argv[1:])\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=False)

    assert done.stdout == "nothing to do: all 3 images have rows of scenes@e6f655dc846c already; left out: .json 1\n"
    assert json.loads(done.stderr.splitlines()[-1]) == []
    note, *stages = done.stderr.splitlines()[:-1]
    assert note.startswith("note: the model scenes detects only six drawn shapes")
    assert stages == ["  listing images and reading the table", "  planning"]
    assert files(table) == before


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--classes", "sqare"], "classes: 'sqare' is not a class of scenes. Did you mean 'square'?"),
        (["--model", "/nowhere/model"], "model /nowhere/model: there is no such file or directory"),
    ],
)
def test_a_wrong_model_or_class_is_reported_without_torch_and_ray_and_leaves_no_run(
    tmp_path: Path, wrong: list[str], sentence: str
) -> None:
    write_scenes(tmp_path / "lake", 1, 4, sizes={(96, 128): 1})
    line = ["--images", str(tmp_path / "lake"), "--table", str(tmp_path / "table"), "--model", "scenes", *wrong]
    code = (
        "import sys\nfrom jobs.label import main\nfrom pipelines.errors import RayDetrError\n"
        "try:\n    main(sys.argv[1:])\nexcept RayDetrError as stopped:\n    print(stopped)\n"
        f"print([name for name in {HEAVY[:3]} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=True)

    assert sentence in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert files(str(tmp_path / "table")) == {}
