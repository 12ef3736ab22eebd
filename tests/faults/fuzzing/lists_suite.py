"""A damaged table of URIs: every row that it names goes through a plan unchanged, or it is refused in a sentence."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError
from pipelines.labelling.manifest import read_shard
from pipelines.labelling.plan import write_plan
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from tests.faults.fuzzing.mutations import mutate, random_of
from tests.faults.fuzzing.structures import damage_json, damage_parquet
from tests.memory_store import memory_store

NAMES = (
    *("list.parquet", "list.csv", "list.jsonl", "list.csv.gz", "list.jsonl.gz"),
    *("list.tsv", "list.txt", "list.json", "no header.csv", "bytes.parquet", "pictures.parquet", "utf-16.csv"),
)
WITH_CAMERA = NAMES[:5]


class ListsSuite:
    """A case is a list of one of twelve kinds, damaged; packed ones are damaged before or after packing."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._whole = _lists()

    def data(self, number: int) -> bytes:
        """Return the damaged list."""
        name = NAMES[number % len(NAMES)]
        whole = self._whole[name]
        if number < 0:
            return whole
        random = random_of(self._seed, number)
        if name.endswith(".parquet") and random.random() < 0.6:
            return damage_parquet(random, whole)
        if name == "list.jsonl" and random.random() < 0.6:
            lines = whole.splitlines()
            place = random.randrange(len(lines))
            lines[place] = damage_json(random, lines[place]).replace(b"\n", b"")
            return b"\n".join(lines)
        if name == "list.json" and random.random() < 0.6:
            return damage_json(random, whole)
        if name.endswith(".gz") and random.random() < 0.5:
            inner = gzip.decompress(whole)
            return gzip.compress(mutate(random, inner, (inner,)), mtime=0)
        return mutate(random, whole, tuple(self._whole.values()))

    def outcome(self, number: int) -> str:
        """Return whether the list is read."""
        name, table, lake = NAMES[number % len(NAMES)], memory_store("memory://table"), memory_store("memory://lake")
        lake.put(name, self.data(number))
        try:
            keep = ("camera",) if name in WITH_CAMERA else ()
            listing = list_objects([f"memory://lake/{name}"], keep=keep, open_root=lambda _: lake)
            images = [item for item in listing if isinstance(item, LakeObject)]
            segments = list(write_plan(table, "run", listing, lambda items: [False] * len(items), shard_images=3))
        except RayDetrError as error:
            sentence = str(error)
            sentence.encode()
            assert name in sentence, sentence
            assert len(sentence) < 2000, sentence[:3000]
            return f"{name}: refused"
        planned = [item for segment in segments for shard in segment.shards for item in read_shard(table, "run", shard)]
        assert repr(planned) == repr(images)  # as text, because NaN is not equal to itself
        return f"{name}: read"


SUITE = ListsSuite


def _lists() -> dict[str, bytes]:
    rows: list[dict[str, Any]] = [
        {"uri": f"s3://lake/{number}.jpg", "etag": f'"{number}"', "size": 10 + number, "camera": f"c{number}"}
        for number in range(7)
    ]
    table = pa.Table.from_pylist(rows)
    csv = io.BytesIO()
    pyarrow.csv.write_csv(table, csv)
    addresses = [row["uri"] for row in rows]
    bare = b"".join(f"{number},{uri}\n".encode() for number, uri in enumerate(addresses))
    pictures = pa.array(
        [{"bytes": None, "path": uri} for uri in addresses], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {
        "list.parquet": _parquet(table),
        "list.csv": csv.getvalue(),
        "list.jsonl": jsonl,
        "list.csv.gz": gzip.compress(csv.getvalue(), mtime=0),
        "list.jsonl.gz": gzip.compress(jsonl, mtime=0),
        "list.tsv": csv.getvalue().replace(b",", b"\t"),
        "list.txt": "\n".join(["# photographs", *addresses]).encode(),
        "list.json": json.dumps(rows).encode(),
        "no header.csv": bare,
        "bytes.parquet": _parquet(pa.table({"uri": pa.array([uri.encode() for uri in addresses])})),
        "pictures.parquet": _parquet(pa.table({"image": pictures, "label": ["fox"] * len(addresses)})),
        "utf-16.csv": csv.getvalue().decode().encode("utf-16"),
    }


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue()
