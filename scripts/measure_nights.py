"""Measure what a table costs after many nightly runs: a night without new images, `runs`, `plan`, `runs --verify`.

    python -m scripts.measure_nights --nights 1000 --images 200 --latency-ms 20

The images are made up, as in `scripts.measure_run`, and the table is a folder; each request to it waits as for a store.
A listing is one request for each thousand names.
"""

from __future__ import annotations

import argparse
import resource
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.clock import SystemClock
from pipelines.labelling.config import PlanConfig, Selection
from pipelines.labelling.driver import RunResult, run_labelling
from pipelines.labelling.job import Environment, LabellingJob
from pipelines.labelling.model_names import with_recorded_name
from pipelines.labelling.plan import summarise_plan
from pipelines.labelling.planning import Planner
from pipelines.labelling.run import RunRequest
from pipelines.labelling.run_summaries import summarise_runs
from pipelines.labelling.segments import publishing
from pipelines.labelling.verify import verify_table
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.models import ModelInfo
from pipelines.store import Blob, Store, StoreEntry, open_store
from pipelines.table.schema import NO_COLUMNS
from scripts.measure_run import InstantRunner

PAGE = 1_000  # names in an answer of S3
MODEL = "detr@0123456789ab"


class SlowStore:
    """A store that counts and delays its requests."""

    def __init__(self, store: Store, latency: float) -> None:
        self._store, self._latency, self.uri = store, latency, store.uri
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.bytes = 0

    def _wait(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1
        time.sleep(self._latency)

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield entries; each thousand is a request."""
        self._wait("LIST")
        for number, entry in enumerate(self._store.list(prefix, after), 1):
            yield entry
            if number % PAGE == 0:
                self._wait("LIST")

    def head(self, key: str) -> StoreEntry:
        """Return an entry."""
        self._wait("HEAD")
        return self._store.head(key)

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return an object."""
        self._wait("GET")
        blob = self._store.get(key, most_bytes=most_bytes)
        self.bytes += len(blob.data)
        return blob

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return bytes of an object."""
        self._wait("GET")
        data = self._store.get_range(key, start, length, if_match=if_match)
        self.bytes += len(data)
        return data

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write an object."""
        self._wait("PUT")
        return self._store.put(key, data, create=create, if_match=if_match)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._wait("DELETE")
        self._store.delete(key)


class WithoutRows(SlowStore):
    """A table that hides the rows of earlier runs, so that a thousand runs over new images take minutes."""

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield entries, except table files."""
        return iter(()) if prefix == "data/" else super().list(prefix, after)


def images(nights: range, each: int) -> Iterator[LakeObject]:
    """Yield the images that arrived on some nights, in the order of their addresses."""
    for night in nights:
        for number in range(each):
            yield LakeObject(f"s3://lake/night-{night:05d}/{number:06d}.jpg", f"{night * each + number:032x}", 150_000)


def run(table: Store, nights: range, each: int) -> RunResult:
    """Label the images of some nights."""
    request = RunRequest(MODEL, "0" * 64, {"threshold": 0.05}, None, {})

    def stream(after: str | None) -> Iterator[LakeObject]:
        return (item for item in images(nights, each) if after is None or item.uri > after)

    with publishing() as publisher:
        return run_labelling(
            LabellingJob(table, request, Listing((stream,), NO_COLUMNS), Selection(), InstantRunner(table)),
            Environment(
                clock=SystemClock(),
                tail=secrets.token_hex(2),
                publisher=publisher,
                plan_ahead=lambda plan: Planner(plan, wave_shards=4_000),
            ),
        )


def main() -> None:
    """Create the table, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1_000)
    parser.add_argument("--images", type=int, default=200, help="that arrive each night")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray-detr-nights-") as folder:
        files = open_store(f"{folder}/table")
        began = time.process_time()
        for night in range(args.nights):
            run(WithoutRows(files, 0.0), range(night, night + 1), args.images)
        sizes = [entry.size or 0 for entry in files.list("data/")]
        print(f"{args.nights:,} runs made in {time.process_time() - began:.0f} CPU s; {len(sizes):,} table files")
        print(f"of {sum(sizes) / max(1, len(sizes)) / 1000:.0f} kB\n")
        print("| what | LIST | HEAD | GET | PUT | DELETE | MB read | CPU s | wall s | peak MB |")
        print("|---|---|---|---|---|---|---|---|---|---|")

        def measured(what: str, do: Callable[[Store], None]) -> None:
            store = SlowStore(files, args.latency_ms / 1000)
            cpu, wall = time.process_time(), time.monotonic()
            do(store)
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
            counts = " | ".join(f"{store.requests[kind]:,}" for kind in ("LIST", "HEAD", "GET", "PUT", "DELETE"))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {what} | {counts} | {store.bytes / 1e6:.1f} | {cpu:.1f} | {wall:.1f} | {peak:.0f} |", flush=True)

        everything = range(args.nights)

        def nothing_to_do(store: Store) -> None:
            assert run(store, everything, args.images).run is None

        def runs(store: Store) -> None:
            assert len(list(summarise_runs(store))) == args.nights

        def plan(store: Store) -> None:
            listed = list(images(everything, args.images))
            columns = {"uri": [one.uri for one in listed], "etag": [one.etag for one in listed]}
            pq.write_table(pa.table(columns), f"{folder}/list.parquet")
            config = PlanConfig((f"{folder}/list.parquet",), f"{folder}/table", threshold=0.05)
            with patch("pipelines.labelling.plan.open_store", lambda *_: store):
                assert summarise_plan(config).images == 0

        def verify(store: Store) -> None:
            assert verify_table(store, clock=SystemClock()).findings == ()

        def other_model(store: Store) -> None:
            other = ModelInfo("other@ba9876543210", "1" * 64, ())
            assert with_recorded_name(store, other) == other

        def one_more_night(store: Store) -> None:
            assert run(store, range(args.nights + 1), args.images).totals.rows == args.images

        measured("a night without new images", nothing_to_do)
        measured("`runs`", runs)
        measured("`plan`", plan)
        measured("`runs --verify`", verify)
        measured("the name of a model that has no run", other_model)
        measured("a night with new images", one_more_night)


if __name__ == "__main__":
    main()
