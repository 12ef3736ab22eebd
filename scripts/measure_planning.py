"""Measure the planning of a large lake against a table of as many rows: memory, time, and the first durable segment.

python -m scripts.measure_planning --millions 1 3 10
python -m scripts.measure_planning --millions 1 10 --inventory

The listing is made up, so neither network nor client is measured; the table's files are real, in a temporary folder,
and so is an S3 Inventory. Every case runs in a process of its own. One object in a hundred has changed since it was
labelled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.labelling.labelled_keys import read_labelled
from pipelines.labelling.plan import GPU_SHARD_IMAGES, write_plan
from pipelines.lake.listing import list_objects
from pipelines.store import Store, StoreEntry, open_store
from pipelines.table.schema import SCHEMA, encode
from tests.memory_store import memory_store

FILE_ROWS = 131_072  # as 64 shards of a GPU run
CHANGED_EVERY = 100
MANIFEST = "lake/all/2026-11-26T01-00Z/manifest.json"
MODEL = "detr-resnet-50@3f2a91c0d4e5"
HUNDRED_MILLION = 100_000_000


def main() -> None:
    """Run every case in a child, print a line each, then the extrapolation to a hundred million."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", nargs="+", type=float, default=[1.0, 3.0, 10.0], metavar="N")
    parser.add_argument("--inventory", action="store_true", help="plan from an S3 Inventory instead of a listing")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # of a child: objects, and the table's folder
    args = parser.parse_args()
    if args.case:
        count, folder = json.loads(args.case)
        print(json.dumps(measure(count, folder)))
        return
    peaks: dict[str, list[tuple[int, int]]] = {"empty": [], "full": []}
    for count in (int(millions * 1e6) for millions in args.millions):
        for kind, found in peaks.items():
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                if args.inventory:
                    make_inventory(open_store(folder), count)
                if kind == "full":
                    make_table(open_store(folder), count)
                made = time.monotonic() - began
                child = [sys.executable, "-m", "scripts.measure_planning", "--case", json.dumps([count, folder])]
                result = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)  # noqa: S603
            found.append((count, result["peak_bytes"]))
            seconds = ", ".join(
                f"{name} {result[f'{name}_seconds']:.1f} s" for name in ("sources", "keys", "first", "all")
            )
            print(
                f"{count:>12,} objects, table {kind:<5} peak {result['peak_bytes'] / 1e6:,.0f} MB (imports "
                f"{result['import_bytes'] / 1e6:,.0f}); {seconds}, CPU {result['cpu_seconds']:.1f} s; planned "
                f"{result['images']:,} (made in {made:.0f} s)",
                flush=True,
            )
    for kind, found in peaks.items():
        if len(found) > 1:
            (few, low), (many, high) = found[0], found[-1]
            each = (high - low) / (many - few)
            print(
                f"table {kind}: {each:.1f} bytes an object and row; for {HUNDRED_MILLION:,} "
                f"{(low + each * (HUNDRED_MILLION - few)) / 1e9:.2f} GB"
            )


def measure(count: int, folder: str) -> dict[str, float]:
    """Plan `count` objects against the table in a folder; return seconds from the start on, and bytes."""
    imports = peak_bytes()
    table, plan = open_store(folder), memory_store()
    began = time.monotonic()
    if Path(folder, MANIFEST).exists():
        listing = list_objects([f"s3://reports/{MANIFEST}"], open_root=lambda _: table)
    else:
        listing = list_objects(["s3://lake/"], open_root=lambda _: Lake(count))
    sort = time.monotonic() - began
    labelled = read_labelled(table, MODEL)
    read, first, images = time.monotonic() - began - sort, 0.0, 0
    for segment in write_plan(plan, "run", listing, labelled.contains, shard_images=GPU_SHARD_IMAGES):
        first = first or time.monotonic() - began
        images += segment.images
        for key in [entry.key for entry in plan.list("_runs/run/plan/")]:
            plan.put(key, b"")  # the manifest is not part of the planner's memory
    return {
        "import_bytes": imports,
        "peak_bytes": peak_bytes(),
        "sources_seconds": sort,
        "keys_seconds": read,
        "first_seconds": first,
        "all_seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time(),
        "images": images,
    }


class Lake:
    """A bucket with `count` photographs, of which every hundredth differs from the table's version."""

    def __init__(self, count: int) -> None:
        self.uri, self._count = "s3://lake", count

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield all of them."""
        assert not prefix
        assert after is None
        for first in range(0, self._count, FILE_ROWS):
            etags = file_etags(first)
            for number in range(first, min(first + FILE_ROWS, self._count)):
                place = 32 * (number - first)
                etag = "changed" if number % CHANGED_EVERY == 0 else etags[place : place + 32]
                yield StoreEntry(key(number), 150_000 + number % 1000, etag)


def key(number: int) -> str:
    """Return the name of a photograph in the style of camera traps."""
    return f"photographs/2026/station-{number // 10_000:06d}/camera-north/DSC_{number:010d}.JPG"


def file_etags(first: int) -> str:
    """Return the etags of a file's rows, 32 digits each."""
    return np.random.default_rng(first).bytes(16 * FILE_ROWS).hex()


def make_table(table: Store, count: int) -> None:
    """Write a table that has a row for every photograph, without detections."""
    now = datetime(2026, 11, 27, tzinfo=UTC)
    for first in range(0, count, FILE_ROWS):
        rows = min(FILE_ROWS, count - first)
        numbers = pa.array(np.arange(first, first + rows))
        digits = pc.utf8_lpad(numbers.cast(pa.string()), 10, "0")
        stations = pc.utf8_lpad(pc.divide(numbers, 10_000).cast(pa.string()), 6, "0")
        uris = pc.binary_join_element_wise(
            "s3://lake/photographs/2026/station-", stations, "/camera-north/DSC_", digits, ".JPG", ""
        )
        etags = pa.StringArray.from_buffers(
            rows, pa.py_buffer(np.arange(0, 32 * rows + 1, 32, np.int32)), pa.py_buffer(file_etags(first).encode())
        )
        values = {"status": "ok", "model": MODEL, "threshold": 0.05, "run_id": "run", "shard": 0, "labelled_at": now}
        columns = {"uri": uris, "etag": etags}
        columns |= {name: pa.repeat(pa.scalar(value, _plain(name)), rows) for name, value in values.items()}
        columns["detections"] = pa.array([[]] * rows, SCHEMA.field("detections").type)
        table.put(
            f"data/run/{first // FILE_ROWS:05d}.parquet",
            encode(
                pa.table(
                    [columns[field.name].cast(field.type) if field.name in columns else pa.nulls(rows, field.type)
                     for field in SCHEMA], schema=SCHEMA,
                )
            ),
        )  # fmt: skip


def make_inventory(reports: Store, count: int) -> None:
    """Write a report on all photographs, whose files list them in random order."""
    etags = np.concatenate(
        [np.frombuffer(bytes.fromhex(file_etags(first)), np.uint8) for first in range(0, count, FILE_ROWS)]
    ).reshape(-1, 16)
    order = np.random.default_rng(1).permutation(count)
    files = []
    for first in range(0, count, FILE_ROWS):
        numbers = order[first : first + FILE_ROWS]
        digits = etags[numbers].tobytes().hex()
        texts = [digits[place : place + 32] for place in range(0, len(digits), 32)]
        columns = {
            "bucket": ["lake"] * len(numbers),
            "key": [key(int(number)) for number in numbers],
            "size": 150_000 + numbers % 1000,
            "e_tag": [
                "changed" if number % CHANGED_EVERY == 0 else text for number, text in zip(numbers, texts, strict=True)
            ],
            "storage_class": ["STANDARD"] * len(numbers),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        data = bytes(sink.getvalue())
        name = f"lake/all/data/{first // FILE_ROWS:05d}.parquet"
        reports.put(name, data)
        files.append({"key": name, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})  # noqa: S324
    record = {"sourceBucket": "lake", "fileFormat": "Parquet", "fileSchema": "message s3.inventory {}", "files": files}
    reports.put(MANIFEST, json.dumps(record).encode())


def _plain(name: str) -> pa.DataType:
    kind = SCHEMA.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def peak_bytes() -> int:
    """Return the peak memory of this process from the kernel."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    main()
