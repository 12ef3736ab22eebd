"""Measure the driver's share of a large run: planning, commits, publishing, verification, a night without new images.

    python -m scripts.measure_run --images 1000000

The images are made up and no network runs: every shard gets rows of five detections at once, in the driver's process.
Everything else is a run as `ray-detr label` makes it, on a local disk.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from pipelines.clock import SystemClock
from pipelines.labelling.config import Selection
from pipelines.labelling.driver import RunResult, run_labelling
from pipelines.labelling.job import Environment, LabellingJob, Workforce
from pipelines.labelling.label import WAVE_SHARDS
from pipelines.labelling.manifest import read_shard
from pipelines.labelling.outcome import Outcome, ShardReport
from pipelines.labelling.plan import GPU_SHARD_IMAGES
from pipelines.labelling.planning import Planner
from pipelines.labelling.publish import commit_part
from pipelines.labelling.run import Run, RunRequest
from pipelines.labelling.segments import publishing
from pipelines.labelling.verify import verify_table
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store, open_store
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, rows_to_table

FOUND = Detected(
    [1, 2, 3, 4, 5], ("cat", "dog", "car", "bus", "cup"), [0.9, 0.8, 0.7, 0.6, 0.5], [[10.5, 20.5, 30.5, 40.5]] * 5
)


class InstantRunner:
    """A shard runner with the same detections for every image."""

    def __init__(self, table: Store) -> None:
        self._table = table
        self.seconds = 0.0

    def prepare(self) -> None:
        """Do nothing."""

    def try_model(self) -> None:
        """Do nothing."""

    def workforce(self) -> Workforce:
        """Return the workforce of one GPU."""
        return Workforce(shard_images=GPU_SHARD_IMAGES, spread=4, precision="fp16")

    def why_no_shard(self) -> str:
        """Return no reason."""
        return ""

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        """Commit the rows of each shard."""
        del isolated
        for shard in shards:
            began = time.thread_time()
            objects = read_shard(self._table, run.run_id, shard)
            rows = [Row(item.uri, item.etag, item.size, 640, 480, detections=FOUND) for item in objects]
            origin = Origin(run.model, 0.05, run.run_id, shard, run.started_at, run.settings)
            commit_part(self._table, run.run_id, shard, rows_to_table(rows, origin=origin), token=f"{shard}")
            self.seconds += time.thread_time() - began
            yield ShardReport(shard, len(rows), 5 * len(rows), {}, 0.0, 0.0, 0.0, 0.0)


def lake(count: int, after: str | None) -> Iterator[LakeObject]:
    """Yield made-up images in the order of their addresses."""
    first = 0 if after is None else int(after[-12:-4]) + 1
    for number in range(first, count):
        yield LakeObject(f"s3://lake/2026/11/camera-7/{number:08d}.jpg", f"{number:032x}", 150_000)


def run(table: Store, count: int) -> tuple[RunResult, InstantRunner]:
    """Label the made-up lake into a table."""
    runner = InstantRunner(table)
    with publishing() as publisher:
        result = run_labelling(
            LabellingJob(
                table,
                RunRequest("detr@0123456789ab", "0" * 64, {"threshold": 0.05}, None, {}),
                Listing((lambda after: lake(count, after),), NO_COLUMNS),
                Selection(),
                runner,
            ),
            Environment(
                clock=SystemClock(),
                tail="0001",
                publisher=publisher,
                plan_ahead=lambda plan: Planner(plan, wave_shards=WAVE_SHARDS),
            ),
        )
    return result, runner


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--table", help="a new folder or prefix; a temporary folder if omitted")
    args = parser.parse_args()
    temporary = (
        tempfile.TemporaryDirectory(prefix="ray-detr-measure-") if args.table is None else nullcontext(args.table)
    )
    with temporary as folder:
        table = open_store(str(folder))
        print("| what | CPU s | wall s | peak MB |\n|---|---|---|---|")

        def measured(what: str, began: tuple[float, float]) -> None:
            cpu, wall = time.process_time() - began[0], time.monotonic() - began[1]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {what} | {cpu:.1f} | {wall:.1f} | {peak:.0f} |", flush=True)

        began = time.process_time(), time.monotonic()
        result, runner = run(table, args.images)
        measured(f"run of {result.totals.rows:,} rows, {result.segments:,} files", began)
        print(f"| of which rows and commits, which actors do | {runner.seconds:.1f} | | |")
        began = time.process_time(), time.monotonic()
        assert run(table, args.images)[0].run is None
        measured("the same again: nothing to do", began)
        began = time.process_time(), time.monotonic()
        assert verify_table(table, clock=SystemClock()).findings == ()
        measured("verification", began)
        if args.table is None:
            size = sum(path.stat().st_size for path in Path(str(folder)).rglob("*") if path.is_file())
            print(f"\n{size / args.images:.0f} bytes for each image on disk")


if __name__ == "__main__":
    main()
