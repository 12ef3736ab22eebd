"""Count the rows of three overlapping starts of one job: with Ray Data's own checkpoint, and with ours.

python scripts/compare_checkpoint_config.py [FOLDER]

Both see the same drawn photographs and write Parquet into one place. Ray Data's job is the plain one of its
documentation: read, map, write, with `CheckpointConfig`. Prints a line of JSON for each; takes about four minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = 240
STARTS = 3
APART_SECONDS = 8.0  # seconds between two starts: the first is running when the others begin
SECONDS_A_PHOTOGRAPH = 0.4  # of Ray Data's job, whose model is a pause
AT_ONCE = 2


def label_with_ray_data(lake: str, output: str, checkpoint: str) -> None:
    """Run one start of Ray Data's job."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    def detect(batch: dict[str, object]) -> dict[str, object]:
        time.sleep(SECONDS_A_PHOTOGRAPH * len(batch["uri"]))  # type: ignore[arg-type]
        return batch

    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="uri", checkpoint_path=checkpoint, delete_checkpoint_on_success=False
    )
    photographs = ray.data.read_parquet(lake, override_num_blocks=PHOTOGRAPHS // 4)
    photographs.map_batches(detect, batch_size=4, num_cpus=1, concurrency=AT_ONCE).write_parquet(output)


def overlap(command: Sequence[str]) -> tuple[list[int], float]:
    """Start a command several times without waiting for each; return the exit codes and the seconds."""
    began = time.monotonic()
    starts = []
    for _ in range(STARTS):
        starts.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))  # noqa: S603 - ours
        time.sleep(APART_SECONDS)
    for start in starts:
        _, err = start.communicate()
        if start.returncode:
            sys.stderr.buffer.write(err[-2000:])
    return [start.returncode for start in starts], time.monotonic() - began


def count(folder: Path) -> dict[str, int]:
    """Return the number of rows in all Parquet files of a folder, and of photographs in them."""
    import pyarrow.parquet as pq

    uris: Counter[str] = Counter()
    for path in folder.glob("**/*.parquet"):
        uris.update(pq.ParquetFile(path).read(columns=["uri"])["uri"].to_pylist())
    return {"rows": uris.total(), "photographs": len(uris)}


def main(folder: Path) -> None:
    """Draw, start both jobs, print."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    from detr.scenes.files import write_scenes

    lake, listed = folder / "lake", folder / "listed"
    write_scenes(lake, PHOTOGRAPHS, 1, sizes={(96, 128): 1})
    listed.mkdir()
    names = sorted(path.as_uri() for path in lake.glob("*.jpg"))
    for first in range(0, PHOTOGRAPHS, 4):  # a file is what a task reads
        pq.write_table(pa.table({"uri": names[first : first + 4]}), listed / f"{first:04d}.parquet")

    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(ROOT))
    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    places = {"checkpoint_config": folder / "ray-data", "ours": folder / "table"}
    python = [sys.executable, "-m"]
    commands = {
        "checkpoint_config": [
            *[sys.executable, __file__, "--start", str(listed)],
            *[str(places["checkpoint_config"]), str(folder / "checkpoint")],
        ],
        "ours": [
            *[*python, "jobs.label", "--images", str(lake), "--table", str(places["ours"]), "--model", "scenes"],
            *["--device", "cpu", "--actors", f"{AT_ONCE}:{AT_ONCE}", "--shard-images", "4", "--wait-minutes", "30"],
        ],
    }
    for name, command in commands.items():
        codes, seconds = overlap(command)
        figures = {"job": name, "starts": STARTS, "exit_codes": codes, **count(places[name])}
        sys.stdout.write(json.dumps({**figures, "seconds": round(seconds, 1)}) + "\n")
        sys.stdout.flush()
    ray.shutdown()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        label_with_ray_data(*sys.argv[2:])
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
