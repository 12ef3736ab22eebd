"""Run each input of a folder like ../shared/data/wild with the commands of its README, and print one Markdown table.

python scripts/wild_inputs.py ../shared/data/wild > wild.md

The folder is copied, one local Ray serves all commands, and each line of the table says what was run, the exit code,
what was printed, and whether it is what has to come out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = "train --train {out}/shards --storage {out}/runs --name r --recipe scenes --finetune scenes --epochs 1"
EVALUATE = "evaluate --results {in}/results.json --annotations {in}/ann.json"
SHARD = "shard --annotations {in}/ann.json --images {in}/images --out {out}/shards"
LABEL = "label --images {in}/LIST --table {out}/table --model scenes --threshold 0 --device cpu"
PLAN = "plan --images {in}/LIST --table {out}/table"
DETECT = "detect {wild}/62-csv-spaces/images/a.jpg --model {out}/MODEL --threshold 0"

# input, command, exit code, and a pattern in the output
CASES = [
    ("01-string-image-ids", SHARD, 0, r"6 annotations"),
    ("01-string-image-ids", EVALUATE, 0, r"AP 0\.900"),
    ("03-float-ids", SHARD, 0, r"6 annotations"),
    ("03-float-ids", EVALUATE, 0, r"AP 0\.900"),
    ("05-string-category-ids", SHARD, 0, r"6 annotations"),
    ("05-string-category-ids", TRAIN, 0, r"done: .*label:"),
    ("05-string-category-ids", EVALUATE, 0, r"AP 0\.900"),
    ("12-iscrowd-string1", SHARD, 0, r"crowd"),
    ("36-empty-category-name", SHARD, 2, r"the category 2 is called ''"),
    ("38-category-0-undeclared", EVALUATE, 0, r"3 annotations .*do not declare"),
    ("51-same-name-in-subfolders", LABEL.replace("LIST", "images"), 0, r"3 images"),
    ("51-same-name-in-subfolders", "evaluate --table {out}/table --annotations {in}/ann.json", 0, r"3 are labelled"),
    ("52-roboflow-root-class", SHARD, 0, r"left out"),
    ("52-roboflow-root-class", TRAIN, 0, r"done: .*label:"),
    ("60-csv-headerless", LABEL.replace("LIST", "list.csv"), 0, r"done: 3 images"),
    ("62-csv-spaces", LABEL.replace("LIST", "list.csv"), 0, r"done: 3 images(?!.*errors)"),
    ("64-tsv", PLAN.replace("LIST", "list.tsv"), 0, r"3 images"),
    ("64-tsv", LABEL.replace("LIST", "list.tsv"), 0, r"done: 3 images"),
    ("75-parquet-binary", PLAN.replace("LIST", "list.parquet"), 0, r"3 images"),
    ("model.py max-height", DETECT.replace("MODEL", ""), 0, r"10 detections"),
    ("model.py ddp-module", DETECT.replace("MODEL", ""), 0, r"module\."),
    ("model.py table-transformer", DETECT.replace("MODEL", ""), 0, r"10 detections"),
    ("model.py pth-args", DETECT.replace("MODEL", "checkpoint.pth"), 0, r"100 detections"),
]


def main(folder: Path) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        wild = shutil.copytree(folder, Path(place) / "wild")
        environment = {**os.environ, "RAY_ADDRESS": _ray(), "RAY_AUTH_MODE": "disabled"}
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        print("| input | command | exit code | printed | right |\n|---|---|---|---|---|")
        wrong = 0
        for name, line, code, pattern in CASES:
            out = Path(place) / "out" / name.replace(" ", "-")
            if name.startswith("model.py"):
                subprocess.run([sys.executable, wild / "model.py", out, name.split()[1]], check=True, env=environment)  # noqa: S603
            words = [word.format(**{"in": wild / name, "out": out, "wild": wild}) for word in line.split()]
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-m", f"jobs.{words[0]}", *words[1:]],
                capture_output=True, text=True, env=environment, check=False,
            )  # fmt: skip
            printed = f"{done.stderr}\n{done.stdout}".replace(place, "")
            is_right = done.returncode == code and re.search(pattern, printed, re.DOTALL) is not None
            wrong += not is_right
            shown = " ".join(["ray-detr", *words]).replace(place, "")
            said = _shown(printed, pattern)
            print(f"| {name} | `{shown}` | {done.returncode} | {said} | {'yes' if is_right else 'NO'} |", flush=True)
    sys.exit(wrong > 0)


def _ray() -> str:
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
        object_store_memory=200 * 1024**2, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    return str(ray.get_runtime_context().gcs_address)


def _shown(printed: str, pattern: str) -> str:
    """Return the lines in which the pattern is, or the last one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    found = [line for line in lines if re.search(pattern, line)] or lines[-1:]
    return "<br>".join(line.replace("|", "\\|")[:240] for line in found[:2])


if __name__ == "__main__":
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    main(Path(sys.argv[1]))
