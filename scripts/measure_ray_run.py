"""Measure a whole labelling run through Ray, with timed stub detectors in place of the network.

    python -m scripts.measure_ray_run --images 20000 --actors 16

The lake is one small JPEG under many addresses (hard links in a new folder), named by a list. Everything is a run as
`ray-detr label` makes it, with a local Ray that is told to have as many CPUs as there are actors; only the network is
replaced: it sleeps for `--milliseconds` an image and finds the same two boxes. With `--rows-only` images are not read
either, so that sixteen actors fit on a small machine. Prints what the run took, by process, and checks that the table
has one row for each address.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray
from PIL import Image

from pipelines.clock import SystemClock
from pipelines.cluster import silenced
from pipelines.concurrently import repeating
from pipelines.labelling import actor_pool, labeler_spec
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.labeler_spec import LabelerSpec
from pipelines.labelling.manifest import read_shard
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.progress import Progress
from pipelines.labelling.publish import commit_part
from pipelines.labelling.verify import verify_table
from pipelines.local_ray import start_local_ray
from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, rows_to_table

LINKS = 50_000  # of one file; ext4 takes 65,000
MILLISECONDS = "MEASURE_RAY_RUN_MILLISECONDS"  # for the actors
FOUND = Detected([1, 2], ("circle", "square"), [0.9, 0.5], [[10.5, 20.5, 30.5, 40.5], [1.5, 2.5, 3.5, 4.5]])
TICKS = os.sysconf("SC_CLK_TCK")


class StubDetectorActor(actor_pool.ShardActor):
    """An actor that reads and decodes every image, and whose network sleeps."""

    def __init__(self, spec: LabelerSpec) -> None:
        import torch

        from detr.launcher import PendingDetections
        from detr.postprocess import Detections

        build = labeler_spec.build_detector
        seconds = float(os.environ[MILLISECONDS]) / 1000
        found = Detections(
            torch.tensor(FOUND.category_ids), FOUND.labels, torch.tensor(FOUND.scores), torch.tensor(FOUND.boxes_xyxy)
        )

        def build_stub(spec: LabelerSpec) -> Any:
            detector, info = build(spec)

            def submit(batch: Any) -> PendingDetections:
                def read() -> list[Detections]:
                    time.sleep(seconds * len(batch))
                    return [found] * len(batch)

                return PendingDetections([read], 0.0)

            detector.submit = submit  # type: ignore[method-assign]
            return detector, info

        labeler_spec.build_detector = build_stub
        super().__init__(spec)


class StubLabelerActor(actor_pool.ShardActor):
    """An actor that does not read images: it sleeps, creates the rows of the shard and commits them, without torch."""

    def __init__(self, spec: LabelerSpec) -> None:
        # Ray sends the base class by value, because its name means this class here: it has globals of its own
        actor_pool_globals = super().__init__.__func__.__globals__  # type: ignore[attr-defined]
        actor_pool_globals["build_labeler"] = StubLabeler
        super().__init__(spec)


class StubLabeler:
    """Returns the same detections for every image."""

    def __init__(self, spec: LabelerSpec) -> None:
        self._spec, self._table = spec, open_store(spec.table, spec.table_options)
        self._seconds = float(os.environ[MILLISECONDS]) / 1000

    def label(self, shard: int, *, on_images: Callable[[int], None]) -> ShardReport:
        """Commit the rows of a shard."""
        spec, began = self._spec, time.monotonic()
        objects = read_shard(self._table, spec.run_id, shard)
        time.sleep(self._seconds * len(objects))
        rows = [Row(item.uri, item.etag, item.size, 128, 96, detections=FOUND) for item in objects]
        origin = Origin(spec.model_id, spec.threshold, spec.run_id, shard, SystemClock().now(), spec.settings)
        commit_part(self._table, spec.run_id, shard, rows_to_table(rows, origin=origin), token=f"{shard}")
        on_images(len(rows))
        return ShardReport(shard, len(rows), 2 * len(rows), {}, time.monotonic() - began, 0.0, 0.0, 0.0)


def make_lake(folder: Path, count: int, *, with_images: bool) -> Path:
    """Write a small JPEG under `count` names, unless it is not read, and a list of them; return the list."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((128, 96))
    uris: list[str] = []
    for start in range(0, count, LINKS):
        inside = folder / f"camera-{start // LINKS:03d}"
        inside.mkdir(parents=True)
        names = [str(inside / f"{number:08d}.jpg") for number in range(start, min(start + LINKS, count))]
        uris += names
        if with_images:
            picture.save(names[0], quality=60)
            for link in names[1:]:
                os.link(names[0], link)
    todo = folder / "todo.parquet"
    pq.write_table(pa.table({"uri": uris}), todo)
    return todo


class Processes:
    """Watches the processes of Ray: kind, CPU seconds and peak MB of each, including ended ones."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float, float]] = {}

    def look(self) -> bool:
        """Read the processes from `/proc`."""
        marker = f"{MILLISECONDS}=".encode()
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit() or marker not in (folder / "environ").read_bytes():
                    continue
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                peak = re.search(r"VmHWM:\s*(\d+)", (folder / "status").read_text())
            except OSError:  # it has ended
                continue
            seconds = (int(fields[11]) + int(fields[12])) / TICKS
            self._seen[folder.name] = (kind_of(words), seconds, int(peak[1]) / 1024 if peak else 0.0)
        return True

    def print_table(self) -> None:
        """Print a row for each kind."""
        print("| processes | number | CPU s | largest MB |\n|---|---|---|---|")
        for kind in sorted({kind for kind, _, _ in self._seen.values()}):
            of_kind = [(used, most) for one, used, most in self._seen.values() if one == kind]
            print(f"| {kind} | {len(of_kind)} | {sum(u for u, _ in of_kind):.1f} | {max(m for _, m in of_kind):.0f} |")


def kind_of(words: list[str]) -> str:
    """Return the kind of a process from its command line."""
    first = words[0] if words else ""
    if first.startswith("ray::"):
        return "actors" if "MapWorker" in first else first
    name = Path(first).name
    return name if name in ("raylet", "gcs_server") else "Ray's other processes"


@contextmanager
def local_ray(actors: int) -> Iterator[None]:
    """Start Ray with this number of CPUs, whether or not the machine has them."""
    with silenced():
        start_local_ray(num_cpus=actors, log_to_driver=False, object_store_memory=200 * 1024**2)
    try:
        yield
    finally:
        ray.shutdown()


def count_rows(table: str) -> tuple[int, int]:
    """Return the number of rows of a table, and of different addresses in it."""
    rows, seen = 0, set()
    for batch in ds.dataset(f"{table}/data", format="parquet").to_batches(columns=["uri"]):
        rows += batch.num_rows
        seen.update(batch.column(0).to_pylist())
    return rows, len(seen)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--actors", type=int, default=16)
    parser.add_argument("--shard-images", type=int, default=512)
    parser.add_argument("--milliseconds", type=float, default=1.0, help="that the network sleeps for each image")
    parser.add_argument(
        "--rows-only",
        action="store_true",
        help="read no image: what is left is the driver's, Ray's and the table's part",
    )
    parser.add_argument("--folder", help="where to make the lake and the table; a temporary folder if omitted")
    args = parser.parse_args()
    os.environ.update(
        {MILLISECONDS: str(args.milliseconds), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    )
    actor_pool.ShardActor = StubLabelerActor if args.rows_only else StubDetectorActor  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="ray-detr-measure-", dir=args.folder) as folder:
        began = time.process_time()
        todo = make_lake(Path(folder) / "lake", args.images, with_images=not args.rows_only)
        print(f"lake of {args.images:,} addresses: {time.process_time() - began:.1f} CPU s", flush=True)
        table = f"{folder}/table"
        config = LabelConfig(
            images=(str(todo),),
            table=table,
            model="scenes",
            actors=(args.actors, args.actors),
            shard_images=args.shard_images,
            batch_size=32,
            cpus_per_actor=1,
        )
        with local_ray(args.actors):
            measure(config)
        rows, distinct = count_rows(table)
        print(f"rows {rows:,}, different addresses {distinct:,}")
        assert rows == distinct == args.images
        assert verify_table(open_store(table), clock=SystemClock()).findings == ()


def measure(config: LabelConfig) -> None:
    """Run, and print the resources of each kind of process."""
    began, cpu = time.monotonic(), time.process_time()
    reports: Counter[str] = Counter()
    finished: list[float] = []
    told = began

    def on_shard(_run: str, report: Any) -> None:
        finished.append(time.monotonic())
        reports.update(
            {"fetch": report.fetch_seconds, "decode": report.decode_seconds, "detect": report.detect_seconds}
        )

    def show(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() > told + 30:
            told = time.monotonic()
            print(f"{told - began:.0f} s: {progress}"[:160], file=sys.stderr, flush=True)

    processes = Processes()
    with repeating(processes.look, seconds=5, name="processes"):
        summary = label(config, on_progress=show, on_shard=on_shard)
    seconds = time.monotonic() - began
    print(f"{summary.images:,} images, {summary.files} files, {len(finished):,} shards in {seconds:.0f} s of wall time")
    if len(finished) > 1:
        rate = (len(finished) - 1) / (finished[-1] - finished[0])
        print(f"shards/s from the first to the last: {rate:.1f}; requests {summary.work.requests:,}")
    print(f"seconds of the actors' threads: { {name: round(value, 1) for name, value in reports.items()} }")
    print(f"driver: {time.process_time() - cpu:.1f} CPU s, "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")  # fmt: skip
    processes.print_table()


if __name__ == "__main__":
    main()
