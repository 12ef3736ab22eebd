"""One damaged object of a table, at any stage of its run; then whatever reads or continues such a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from tempfile import TemporaryDirectory

import pyarrow as pa

from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError
from pipelines.exports.config import ExportConfig
from pipelines.exports.export import copy_rows
from pipelines.labelling.config import Selection
from pipelines.labelling.driver import run_labelling
from pipelines.labelling.duplicates import reject_republished_versions
from pipelines.labelling.job import Environment, LabellingJob, Workforce
from pipelines.labelling.labelled_keys import read_labelled
from pipelines.labelling.manifest import PlannedSegment, read_complete, read_kept_schema, read_manifest, read_shard
from pipelines.labelling.outcome import Outcome, ShardReport
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part, publish_group, read_done, remove_parts, verify_run
from pipelines.labelling.run import Run, RunRequest, finish_run, list_runs, read_state
from pipelines.labelling.run_summaries import summarise_runs
from pipelines.labelling.verify import verify_table
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store, StoreError, join_uri
from pipelines.table.preview import published_files
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, decode, rows_to_table, table_schema
from tests.faults.fuzzing.mutations import mutate, random_of
from tests.faults.fuzzing.structures import damage_json, damage_parquet
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run

NOW = datetime(2026, 11, 26, tzinfo=UTC)
REQUEST = RunRequest("detr@123456789abc", "1" * 64, {"threshold": 0.5, "classes": None}, 1, {"ray-detr": "1"}, "run-1")
IMAGES = 66  # one a shard: a segment of 64 and one of 2
URIS = [f"s3://lake/{number:03d}.jpg" for number in range(IMAGES)]
STAGES = ("planned", "labelled", "published", "finished")
FOUND = Detected([1], ["disc"], [0.5], [[1.0, 2.0, 3.0, 4.0]])


class TableSuite:
    """A case is a stage, an object that exists there, and damage to its bytes or to what it says."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._stages = _stages()

    def data(self, number: int) -> bytes:
        """Return the damaged object."""
        return self._case(number)[2]

    def outcome(self, number: int) -> str:
        """Return what became of reading and of continuing the table."""
        stage, key, data, is_whole = self._case(number)
        objects = {**self._stages[stage], key: data}
        answers = {
            name: _sentence(objects, key, do, check=_check_rows if is_whole or not key.startswith("data/") else None)
            for name, do in _USES.items()
        }
        refused = sorted(name for name, sentence in answers.items() if sentence)
        return f"{_kind(key)} {'bytes' if is_whole else 'structure'}: {'refused' if refused else 'no difference'}"

    def _case(self, number: int) -> tuple[str, str, bytes, bool]:
        """Return stage, key, damaged object, and whether it was its bytes that were damaged."""
        random = random_of(self._seed, number)
        stage = random.choice(STAGES)
        objects = self._stages[stage]
        kind = random.choice(sorted(set(map(_kind, objects))))
        key = random.choice([key for key in objects if _kind(key) == kind])
        if number < 0:
            return stage, key, objects[key], True
        if random.random() < 0.4:
            return stage, key, mutate(random, objects[key], list(objects.values())), True
        damage = damage_json if key.endswith(".json") else damage_parquet
        return stage, key, damage(random, objects[key]), False


SUITE = TableSuite


def _kind(key: str) -> str:
    return re.sub(r"\d{3,}", "N", key.replace("run-1", "RUN"))


def _sentence(objects: dict[str, bytes], key: str, use: Callable[[Store], None], check: Callable | None) -> str | None:
    """Return the sentence that using the table ends with, None where it goes well."""
    table = _store_of(objects)
    try:
        use(table)
        if check is not None and use is _start:
            check(table)  # a reader may refuse what a start has no reason to read: the boxes of a finished run
    except (RayDetrError, StoreError) as error:
        sentence = str(error)
        sentence.encode()  # it is printed
        assert "memory://table" in sentence or "run run-1" in sentence or "unfinished run" in sentence, sentence
        assert len(sentence) < 2000, sentence[:3000]
        assert "\n" not in sentence, sentence
        return sentence
    finally:
        strange = [
            one.key
            for one in table.list()
            if not re.fullmatch(
                r"(data|_runs)/[A-Za-z0-9][^/]*/.*|data/[A-Za-z0-9][^/]*\.parquet|_runs/_order/\d+\.json", one.key
            )
        ]
        assert not strange, f"written outside of the run's folders: {strange}"
    return None


def _check_rows(table: Store) -> None:
    """Refuse a table that a start took for finished and that has not each image in one row."""
    uris = []
    for entry in table.list("data/"):
        rows = decode(table.get(entry.key).data, name=join_uri(table.uri, entry.key))
        assert rows.schema.remove_metadata().equals(table_schema()), f"{entry.key} has other columns: {rows.schema}"
        uris += rows["uri"].to_pylist()
    assert sorted(uris) == URIS, f"rows are missing or double: {len(uris)}"


def _read(table: Store) -> None:
    for run in list_runs(table):
        read_state(table, run.run_id)
        segments = list(read_manifest(table, run.run_id))
        for segment in segments:
            for shard in segment.shards:
                read_shard(table, run.run_id, shard)
        if read_state(table, run.run_id) == "finished":
            verify_run(table, run.run_id, run.layout, segments)
            read_complete(table, run.run_id)
        read_done(table, run.run_id, run.layout).count_images(segment for segment in segments if segment.ending is None)
        read_kept_schema(table, run.run_id)
    read_labelled(table, REQUEST.model, threads=1)
    for _, file in published_files(table):
        file.metadata.num_rows  # noqa: B018 - it is there


def _start(table: Store) -> None:
    _run(table, new_run=False)


def _start_afresh(table: Store) -> None:
    _run(table, new_run=True)


def _verify(table: Store) -> None:
    for sentence in verify_table(table, clock=SystemClock()).findings:
        sentence.encode()
        assert "memory://table" in sentence, sentence
        assert len(sentence) < 2000, sentence[:3000]
        assert "\n" not in sentence, sentence
    list(summarise_runs(table))
    with TemporaryDirectory() as folder:
        copy_rows(table, ExportConfig("memory://table", f"{folder}/out.jsonl", latest=True))


def _settle(table: Store) -> None:
    """Look for the rows of images that changed while another run went on."""
    rows = rows_to_table(
        [Row(uri, "e", detections=FOUND) for uri in URIS], origin=Origin(REQUEST.model, 0.5, "run-2", 0, NOW)
    )
    listed = pa.chunked_array([["other"] * len(URIS)], pa.string())
    reject_republished_versions(table, "run-2", rows, listed, threads=1)


_USES: dict[str, Callable[[Store], None]] = {
    "read": _read,
    "start": _start,
    "start afresh": _start_afresh,
    "verify": _verify,
    "settle": _settle,
}


class _Plan:
    """A plan that is made when it is asked for."""

    def __init__(self, plan: Iterator[PlannedSegment]) -> None:
        self.images_planned, self.is_complete = 0, False
        self._plan = plan

    def waves(self) -> Iterator[list[PlannedSegment]]:
        yield list(self._plan)


class _Runner:
    """Labels without a network, in this thread."""

    def __init__(self, table: Store) -> None:
        self._table = table

    def prepare(self) -> None: ...

    def try_model(self) -> None: ...

    def workforce(self) -> Workforce:
        return Workforce(shard_images=1, spread=1, precision="fp32")

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        return _label(self._table, run, shards)

    def why_no_shard(self) -> str:
        return ""


def _run(table: Store, *, new_run: bool) -> None:
    with ThreadPoolExecutor(1) as publisher:
        request = REQUEST if not new_run else RunRequest(**{**_fields(REQUEST), "run_id": "run-2"})
        run_labelling(
            LabellingJob(table, request, _listing(), Selection(), _Runner(table), new_run=new_run),
            Environment(clock=SystemClock(), tail="abcd", publisher=publisher, plan_ahead=_Plan, threads=1),
        )


def _fields(request: RunRequest) -> dict[str, object]:
    return {name: getattr(request, name) for name in request.__slots__}


def _label(table: Store, run: Run, shards: Sequence[int]) -> Generator[Outcome, None, None]:
    for shard in shards:
        objects = read_shard(table, run.run_id, shard)
        origin = Origin(run.model, 0.5, run.run_id, shard, NOW)
        rows = [Row(item.uri, item.etag, item.size, 10, 10, detections=FOUND, kept=item.kept) for item in objects]
        commit_part(
            table, run.run_id, shard, rows_to_table(rows, read_kept_schema(table, run.run_id), origin=origin), token="t"
        )
        yield ShardReport(shard, len(rows), len(rows), {}, 0.0, 0.0, 0.0, 0.0)


def _listing() -> Listing:
    def stream(after: str | None) -> Iterator[LakeObject]:
        return (LakeObject(uri, "e", 1) for uri in URIS if after is None or uri > after)

    return Listing((stream,), NO_COLUMNS)


def _stages() -> dict[str, dict[str, bytes]]:
    """Return the objects of a table when it is planned, labelled, published and finished."""
    table = memory_store("memory://table")
    stages = {}
    run, _ = start_run(table, REQUEST, now=NOW, tail="abcd")
    segments = list(write_plan(table, run.run_id, _listing(), lambda items: [False] * len(items), shard_images=1))
    stages["planned"] = _objects(table)
    for segment in segments:
        for _ in _label(table, run, segment.shards):
            pass
    stages["labelled"] = _objects(table)
    for segment in segments:
        publish_group(table, run, segment, threads=1)
    stages["published"] = _objects(table)
    totals = verify_run(table, run.run_id, run.layout, segments)
    finish_run(table, run.run_id, now=NOW, totals={"rows": totals.rows, "detections": totals.detections, "errors": {}})
    remove_parts(table, run.run_id, threads=1)
    stages["finished"] = _objects(table)
    return stages


def _objects(table: Store) -> dict[str, bytes]:
    return {entry.key: table.get(entry.key).data for entry in table.list()}


def _store_of(objects: dict[str, bytes]) -> Store:
    table = memory_store("memory://table")
    for key, data in objects.items():
        table.put(key, data)
    return table
