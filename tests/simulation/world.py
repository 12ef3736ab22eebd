"""A simulated environment of whole labelling runs: a store whose every call may fail, a clock, a detector, a reader.

A *writer* is a process that runs the same command again and again. Each of its store calls passes `World.call`, where a
plan of faults decides its outcome: it crashes before or after its effect, its answer is lost, or it waits while
others go on. After every call a reader compares the table with what it read before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from unittest.mock import patch

from pipelines.labelling.config import Selection
from pipelines.labelling.driver import RunResult, run_labelling
from pipelines.labelling.job import Environment, LabellingJob, Workforce
from pipelines.labelling.lease import LEASE_KEY, LEASE_SECONDS, Lease, acquire, release, renew
from pipelines.labelling.manifest import PlannedSegment, read_manifest, read_shard
from pipelines.labelling.outcome import Failed, Outcome, ShardReport
from pipelines.labelling.publish import commit_part
from pipelines.labelling.run import Run, RunRequest, find_unfinished, list_runs
from pipelines.labelling.settings import settings_text
from pipelines.labelling.verify import verify_table
from pipelines.labelling.writer_process import Process
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Blob, NotFound, StoreDown, StoreEntry
from pipelines.table.schema import ERROR_KINDS, NO_COLUMNS, Detected, Origin, Row, decode, rows_to_table
from tests.memory_store import MemoryStore

SEGMENT_SHARDS = 6  # so that 20 shards are four segments

Fault = Literal["crash before", "crash after", "answer lost", "refused"]


class Crash(BaseException):
    """The process is dead: nothing of it runs any further, no `except Exception` and no retry."""


@dataclass
class Clock:
    """Time passes when somebody sleeps."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 26, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Inline(Executor):
    """Does at once, in the calling thread, what is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)
        return future


class LazyPlan:
    """Each segment is a wave of its own, planned when the one before is labelled."""

    def __init__(self, plan: Iterator[PlannedSegment]) -> None:
        self._plan, self.images_planned, self.is_complete = plan, 0, False

    def waves(self) -> Iterator[list[PlannedSegment]]:
        for segment in self._plan:
            self.images_planned += segment.images
            yield [segment]
        self.is_complete = True


@dataclass
class World:
    """The table, the lake, and what happens at which call.

    Attributes:
        lake: the etag of each image, now.
        before_call: is told each call before it is done, and answers with what goes wrong with it.
    """

    lake: dict[str, str]
    objects: MemoryStore = field(default_factory=lambda: MemoryStore("memory://table"))
    clock: Clock = field(default_factory=Clock)
    before_call: Callable[[str, str], Fault | None] = lambda _name, _call: None
    calls: int = 0
    seen: dict[str, bytes] = field(default_factory=dict)

    def call(self, writer: str, call: str, do: Callable[[], Any]) -> Any:
        """Do one call to the store for a writer, or what the plan of faults makes of it; then look as a reader does."""
        self.calls += 1
        fault = self.before_call(writer, call)
        if fault == "crash before":
            raise Crash(call)
        if fault == "refused":
            raise StoreDown(f"{call}: no answer")
        try:
            result = do()
        finally:
            if call.startswith(("put data/", "delete data/")):
                self.read()
        if fault == "crash after":
            raise Crash(call)
        if fault == "answer lost":
            raise StoreDown(f"{call}: the answer was lost")
        return result

    def swap_lease(self, do: Callable[[], Any]) -> Any:
        """Write the lease for a writer, and check that nobody took it from a holder who may be alive."""
        before = self._lease()
        result = do()
        after = self._lease()
        assert after is not None
        if before is not None and before["process"]["host"] != after["process"]["host"] and not before["is_released"]:
            silent = self.clock.now() - datetime.fromisoformat(before["heartbeat_at"])
            assert silent.total_seconds() > LEASE_SECONDS, f"{after} took the lease of {before}"
        return result

    def _lease(self) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self.objects.get(LEASE_KEY).data)
        except NotFound:
            return None
        return record

    def read(self) -> list[dict[str, Any]]:
        """Return the rows that any reader sees now: of whole files, that never change or vanish, each image once."""
        now = {entry.key: self.objects.get(entry.key).data for entry in self.objects.list("data/")}
        for key, data in self.seen.items():
            assert now.get(key) == data, f"{key} changed or vanished under its readers"
        self.seen = now
        in_folders = {"/" in key.removeprefix("data/") for key in now}
        assert len(in_folders) <= 1, f"the table has two layouts: {sorted(now)}"
        rows = [row for key, data in now.items() for row in decode(data, name=key).to_pylist()]
        keys = [(row["uri"], row["etag"], row["model"], row["settings"]) for row in rows if row["status"] == "ok"]
        assert len(set(keys)) == len(keys), f"an image has two rows: {sorted(keys)}"
        return rows


class WriterStore:
    """The table as one writer reaches it: over a network where everything may go wrong."""

    def __init__(self, world: World, writer: str) -> None:
        self._world, self._writer, self.uri = world, writer, world.objects.uri

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        found = self._call(f"list {prefix}", lambda: list(self._world.objects.list(prefix, after)))
        yield from found

    def head(self, key: str) -> StoreEntry:
        found: StoreEntry = self._call(f"head {key}", lambda: self._world.objects.head(key))
        return found

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        found: Blob = self._call(f"get {key}", lambda: self._world.objects.get(key, most_bytes=most_bytes))
        return found

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        objects = self._world.objects
        found: bytes = self._call(f"get {key}", lambda: objects.get_range(key, start, length, if_match=if_match))
        return found

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        def do() -> str | None:
            return self._world.objects.put(key, data, create=create, if_match=if_match)

        etag: str | None = self._call(f"put {key}", (lambda: self._world.swap_lease(do)) if key == LEASE_KEY else do)
        return etag

    def delete(self, key: str) -> None:
        self._call(f"delete {key}", lambda: self._world.objects.delete(key))

    def _call(self, call: str, do: Callable[[], Any]) -> Any:
        return self._world.call(self._writer, call, do)


@dataclass
class Writer:
    """A command that is started again and again; `starts` numbers its processes, each of which has tokens of its own.

    `dies` tells of a shard whether the process of its actor dies before its commit, after it, or not at all. With
    `is_leased` each start takes the table's lease, and beats where a start asks whether it is still its own. With
    `relabels` it labels what the table has with another threshold again.
    """

    world: World
    name: str = "a"
    model: str = "detr@1"
    threshold: float = 0.5
    starts: int = 0
    labelled: list[tuple[str, int]] = field(default_factory=list)
    dies: Callable[[int, bool], Literal["before", "after"] | None] = lambda _shard, _isolated: None
    is_leased: bool = False
    relabels: bool = False

    def start(self, *, new_run: bool = False, selection: Selection | None = None) -> RunResult:
        """Run the command once: to its end, its crash, or a sentence."""
        self.starts += 1
        store = WriterStore(self.world, self.name)
        with self._lease(store) if self.is_leased else nullcontext(lambda: None) as check_lease:
            return self._start(store, check_lease, new_run=new_run, selection=selection or Selection())

    def _start(
        self, store: WriterStore, check_lease: Callable[[], None], *, new_run: bool, selection: Selection
    ) -> RunResult:
        return run_labelling(
            LabellingJob(
                store,
                RunRequest(self.model, self.model, {"threshold": self.threshold}, 1, {}),
                Listing((self._list,), NO_COLUMNS),
                selection,
                self,
                new_run=new_run,
                relabel=self.relabels,
            ),
            Environment(
                clock=self.world.clock,
                tail=f"{self.name}{self.starts:03d}",
                publisher=Inline(),
                plan_ahead=LazyPlan,
                threads=1,
                check_lease=check_lease,
            ),
        )

    @contextmanager
    def _lease(self, store: WriterStore) -> Iterator[Callable[[], None]]:
        """Hold the lease as `lease.holding` does, with a heartbeat that the order of calls decides."""
        # a machine for each writer: its next start sees that the one before is dead, others do not
        process = Process(self.name, self.name, "pid:[1]", self.starts, "1")
        now = self.world.clock.now
        held = acquire(store, process, token=f"{self.name}-{self.starts}", now=now())

        def beat() -> None:
            nonlocal held
            with suppress(StoreDown):
                held = renew(store, held, now=now())

        try:
            yield beat
        except Crash:
            raise  # nobody gives anything up
        except BaseException:
            self._give_up(store, held)
            raise
        self._give_up(store, held)

    def _give_up(self, store: WriterStore, held: Lease) -> None:
        with suppress(StoreDown):
            release(store, held, now=self.world.clock.now())

    def _list(self, after: str | None) -> Iterator[LakeObject]:
        listed = sorted(self.world.lake.items())
        return iter([LakeObject(uri, etag, offset=place_of(uri)) for uri, etag in listed if uri > (after or "")])

    def _read(self, item: LakeObject) -> Row:
        """Return the row of an image; those inside files are where the plan says, in the version that it says."""
        assert item.offset == place_of(item.uri), f"the plan lost the place of {item.uri}"
        etag = self.world.lake.get(item.uri)
        if item.offset is not None and etag not in (None, item.etag):
            return Row(item.uri, item.etag, error_kind="fetch_failed", error="its file has changed")
        return row_of(item.uri, etag)

    def prepare(self) -> None:
        """Do nothing: it can label at once."""

    def try_model(self) -> None:
        """Do nothing: it has no model."""

    def workforce(self) -> Workforce:
        """Return that of one process."""
        return Workforce(shard_images=1, spread=1, precision="fp32")

    def why_no_shard(self) -> str:
        """Return no reason."""
        return ""

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        store = WriterStore(self.world, self.name)
        for shard in shards:
            death = self.dies(shard, isolated)
            if death == "before":
                continue
            rows = [self._read(item) for item in read_shard(store, run.run_id, shard)]
            threshold = run.configuration.get("threshold", 0.5)
            origin = Origin(run.model, threshold, run.run_id, shard, self.world.clock.now(), run.settings)  # type: ignore[arg-type]
            token = f"{self.name}-{self.starts}-{shard}-{isolated}"
            try:
                commit_part(store, run.run_id, shard, rows_to_table(rows, origin=origin), token=token)
            except StoreDown as error:
                yield Failed(str(error))
                continue
            self.labelled.append((run.run_id, shard))
            if death != "after":
                yield ShardReport(shard, len(rows), len(rows), {}, 0.0, 0.0, 0.0, 0.0)


def place_of(uri: str) -> int | None:
    """Return where an image is in its file; of those with numbers for names, every third one is inside a file."""
    name = uri.rpartition("/")[2].removesuffix(".jpg")
    return 512 * int(name) if name.isdecimal() and int(name) % 3 == 2 else None


def row_of(uri: str, etag: str | None) -> Row:
    """Return what becomes of an image: a function of its version alone. `truncated 1` is such a version, for one."""
    if etag is None:
        return Row(uri, error_kind="missing", error="it was there when it was listed")
    if etag.split()[0] in ERROR_KINDS:
        return Row(uri, etag, error_kind=etag.split()[0], error="as its version says")
    score = int.from_bytes(hashlib.sha256(f"{uri} {etag}".encode()).digest()[:2]) / 65536
    return Row(uri, etag, 1, 4, 4, detections=Detected([1], ("cat",), [score], [[0, 0, 1, 1]]))


def expected(uri: str, etag: str) -> float:
    """Return the score that the row of an image must have."""
    found = row_of(uri, etag).detections
    assert found is not None
    return float(found.scores[0])  # type: ignore[index, arg-type]


@contextmanager
def small_segments() -> Iterator[None]:
    """Have segments of few shards, so that a run of twenty has several: all of a test runs in this."""
    with (
        patch("pipelines.labelling.cutting.SEGMENT_SHARDS", SEGMENT_SHARDS),
        patch("pipelines.labelling.manifest.SEGMENT_SHARDS", SEGMENT_SHARDS),
        patch("pipelines.labelling.segments.SEGMENT_SHARDS", SEGMENT_SHARDS),
    ):
        yield


def check_end(world: World) -> None:
    """Hold a table whose runs have ended against the model of it: each planned image in one row, and nothing else."""
    rows = world.read()
    table = world.objects
    assert find_unfinished(table) is None
    assert verify_table(table, clock=world.clock, threads=1).findings == ()
    planned: list[str] = []
    for run in list_runs(table):
        for segment in read_manifest(table, run.run_id):
            for shard in segment.shards:
                uris = [item.uri for item in read_shard(table, run.run_id, shard)]
                found = [row["uri"] for row in rows if (row["run_id"], row["shard"]) == (run.run_id, shard)]
                assert found in (uris, []), f"shard {shard} of {run.run_id} has other rows than planned"
                planned += found
    assert sorted(planned) == sorted(row["uri"] for row in rows), "a row is of no plan"
    for row in rows:
        if row["status"] == "ok":
            assert abs(row["detections"][0]["score"] - expected(row["uri"], row["etag"])) < 1e-6


def check_whole(world: World, model: str = "detr@1", *, threshold: float = 0.5, may_leave_parts: bool = False) -> None:
    """After `check_end`: every image of the lake, as it is now, has its row with this threshold.

    A zombie may commit a part when its run has ended, and removing parts may fail: nobody reads what stays.
    """
    check_end(world)
    wanted = ("ok", model, settings_text({"threshold": threshold}, "fp32"))
    rows = [row for row in world.read() if (row["status"], row["model"], row["settings"]) == wanted]
    has = {(row["uri"], row["etag"]) for row in rows}
    assert has >= set(world.lake.items()), f"not labelled: {sorted(set(world.lake.items()) - has)}"
    assert not list(world.objects.list("data/.")), "orphans"
    parts = [entry.key for entry in world.objects.list("_runs/") if entry.key.endswith(".part")]
    assert may_leave_parts or not parts, f"parts are left: {parts}"
