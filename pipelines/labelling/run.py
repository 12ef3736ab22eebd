"""The runs of a table and their records: one unfinished run at a time, resumed until it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal, TypeVar

from pipelines.concurrently import map_concurrently, map_in_chunks
from pipelines.configurations import as_json, differences
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.settings import settings_text
from pipelines.store import NotFound, Store, join_uri, put_if_absent
from pipelines.strict_json import Count, Time, parse_object, read_record, record_of
from pipelines.table.files import Layout, layout_without_runs

R = TypeVar("R")

RECORD_VERSION: Final = 3  # version 1 has no `precision`, versions 1 and 2 no `tells_settings_apart` and `layout`

OLD_PRECISION: Final = "fp32"  # of unfinished runs whose release did not yet resolve "auto" once for all nodes
PRECISIONS: Final = ("fp32", "tf32", "bf16", "fp16")

# A process begins a run by creating the next number of this sequence, after the previous run has ended. Only one can
# create a number, so a table never has two unfinished runs, which could label the same images, even without leases.
_SEQUENCE = "_runs/_order/"
_IN_SEQUENCE = re.compile(re.escape(_SEQUENCE) + r"(\d{7})\.json")

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

MODIFIED_SINCE: Final = "modified_since"  # in a configuration: may differ between the attempts of a run

State = Literal["planning", "labelling", "finished", "sealed"]


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The request of one process for a run.

    Args:
        model: `name@sha256[:12]`, as in the rows.
        model_sha256: SHA-256 of the model's weights, 64 digits.
        configuration: The options that determine the rows, as JSON values. A resumed run must have the same.
        shard_images: Images in each shard of a new run; None chooses a number that suits the device. A resumed run
            keeps its own.
        versions: Versions of this package and its dependencies, for the record.
        run_id: Name of the run; None makes one from the time.
    """

    model: str
    model_sha256: str
    configuration: Mapping[str, object]
    shard_images: int | None
    versions: Mapping[str, str]
    run_id: str | None = None

    def __post_init__(self) -> None:
        if self.shard_images is not None and self.shard_images < 1:
            raise ValueError(f"shard images: {self.shard_images} is not a number of images; give 1 or more.")
        if self.run_id is not None:
            check_run_id(self.run_id)


@dataclass(frozen=True, slots=True)
class Run:
    """The record of a run, written when it begins and never changed.

    Attributes:
        run_id: Name of the run.
        number: Position in the sequence of the table's runs, from 1.
        model: `name@sha256[:12]`, as in the rows.
        model_sha256: SHA-256 of the model's weights, 64 digits.
        configuration: The options that determine the rows, as they were given.
        shard_images: Images in each shard.
        versions: Versions of this package and its dependencies.
        started_at: When the run began, UTC.
        precision: Precision of the network on every node, with "auto" resolved. Records of earlier releases do not
            resolve "auto"; these runs used fp32.
        tells_settings_apart: Whether images that the model has labelled with other settings are planned again. Runs of
            earlier releases skip them.
        layout: Where the table files are, the same for all runs of a table.
    """

    run_id: str
    number: Count
    model: str
    model_sha256: str
    configuration: Mapping[str, object]
    shard_images: Count
    versions: Mapping[str, str]
    started_at: Time
    precision: str = OLD_PRECISION
    tells_settings_apart: bool = True
    layout: Layout = "flat"

    @property
    def settings(self) -> str:
        """The settings of the run's rows."""
        return settings_text(self.configuration, self.precision)

    @property
    def modified_since(self) -> datetime | None:
        """Images that were modified before this time are skipped; None skips none."""
        text = self.configuration.get(MODIFIED_SINCE)
        if text is None:
            return None
        time = datetime.fromisoformat(str(text))
        if time.tzinfo is None:
            raise ValueError(f"{text} has no time zone")
        return time


@dataclass(frozen=True, slots=True)
class End:
    """The end of a run: `finished` with these totals, or `sealed` unfinished, after which it cannot write any more."""

    state: Literal["finished", "sealed"]
    ended_at: Time
    totals: Mapping[str, object]


def check_run_id(run_id: str) -> None:
    """Reject an invalid name of a run.

    Raises:
        ValueError: the name cannot be a folder's.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"run id: {run_id!r} is not a valid folder name; use at most 100 letters, digits, '.', '_' and '-'."
        )


def run_key(run_id: str, name: str) -> str:
    """Return the key of an object in the run's folder."""
    return f"_runs/{run_id}/{name}"


def new_run_id(now: datetime, tail: str) -> str:
    """Return a name that sorts by time: `20261122-181503-a1b2`. `tail` is random, for runs begun in the same second."""
    return f"{now:%Y%m%d-%H%M%S}-{tail}"


def resume_run(table: Store, run: Run, request: RunRequest) -> Run:
    """Return the table's unfinished run, after checking that the request is for the same run.

    Read what is labelled after this call: from then on, no earlier run adds rows to the table.

    Raises:
        UsageError: the run has another name, model or configuration.
        StoreError: the store refused.
    """
    _check_same(run, request)
    put_if_absent(
        table, run_key(run.run_id, "run.json"), _encode(run)
    )  # the process that began it may have died before this
    return run


def begin_run(
    table: Store, request: RunRequest, *, after: Run | None, shard_images: int, precision: str, now: datetime, tail: str
) -> Run | None:
    """Begin the next run of a table; return None if another process has begun a run after `after`.

    If the run is begun, nothing was added to the table since `after` ended: data read from the table since then is
    still valid, and no earlier run adds rows from now on.

    Args:
        table: The table.
        request: What to run.
        after: The table's last run, which has ended; None if the table has no run.
        shard_images: Images in each shard, unless the request has a number.
        precision: Precision of the network on every node.
        now: The time, UTC.
        tail: Four random hexadecimal digits for the name.

    Raises:
        UsageError: a run of this name exists.
        StoreError: the store refused. Either no run is begun, or the same command resumes it.
    """
    number = after.number + 1 if after else 1
    if _exists(table, _sequence_key(number)):
        return None  # checked first: the run of the requested name may be the one that was just begun
    run = Run(
        run_id=request.run_id or new_run_id(now, tail),
        number=number,
        model=request.model,
        model_sha256=request.model_sha256,
        configuration=as_json(request.configuration),
        shard_images=request.shard_images or shard_images,
        versions=dict(request.versions),
        started_at=now,
        precision=precision,
        layout=after.layout if after else layout_without_runs(table),
    )
    if _exists(table, run_key(run.run_id, "run.json")):
        raise UsageError(f"run {run.run_id} of {table.uri} has already ended. Use another --run-id, or omit it.")
    if put_if_absent(table, _sequence_key(run.number), _encode(run)) != _encode(run):
        return None
    put_if_absent(table, run_key(run.run_id, "run.json"), _encode(run))
    return run


def find_unfinished(table: Store) -> Run | None:
    """Return the table's unfinished run, which the next attempt resumes."""
    latest = latest_run(table)
    return latest if latest is not None and read_end(table, latest.run_id) is None else None


def latest_run(table: Store) -> Run | None:
    """Return the newest run."""
    last = None
    for number in run_numbers(table):
        last = number
    return None if last is None else read_numbered(table, last)


def run_numbers(table: Store) -> Iterator[int]:
    """Yield the numbers of a table's runs in increasing order; other names are skipped. Reads no records."""
    for entry in table.list(_SEQUENCE):
        found = _IN_SEQUENCE.fullmatch(entry.key)
        if found is not None:
            yield int(found[1])


def read_numbered(table: Store, number: int) -> Run:
    """Return the run of this number."""
    run = _decode(table, _sequence_key(number))
    # with a number other than its name's, the search for the next run would never end
    if run.number != number:
        raise _damaged(join_uri(table.uri, _sequence_key(number)))
    return run


def list_runs(table: Store, *, known: Mapping[int, Run] | None = None, threads: int = 1) -> Iterator[Run]:
    """Yield all runs of a table, oldest first.

    Args:
        table: The table.
        known: Runs by number that were read before. Their records do not change and are not read again.
        threads: Records to read concurrently.
    """
    known = known or {}

    def read(number: int) -> Run:
        return known.get(number) or read_numbered(table, number)

    yield from map_concurrently(read, run_numbers(table), threads=threads)


def map_runs_backwards(table: Store, function: Callable[[Run], R], *, threads: int = 1) -> Iterator[R]:
    """Yield the results of a function for all runs of a table, newest first.

    Records are read when results are requested, the first one alone, then `threads` concurrently. An error of a run is
    raised instead of its result.
    """
    numbers = reversed(list(run_numbers(table)))
    yield from map_in_chunks(lambda number: function(read_numbered(table, number)), numbers, threads=threads)


def read_run(table: Store, run_id: str) -> Run | None:
    """Return the run of this name, or None.

    Raises:
        RayDetrError: the record is damaged.
        StoreError: the store refused.
    """
    if not _RUN_ID.fullmatch(run_id):
        return None  # from a damaged row: the key must not leave the folder of runs
    try:
        return _decode(table, run_key(run_id, "run.json"))
    except NotFound:
        return None


def read_end(table: Store, run_id: str) -> End | None:
    """Return how a run ended, or None if it has not ended."""
    key = run_key(run_id, "end.json")
    try:
        return read_record(End, table.get(key).data)
    except NotFound:
        return None
    except ValueError as error:
        raise _damaged(join_uri(table.uri, key)) from error


def end_run(table: Store, run_id: str, end: End) -> End:
    """Record how a run ended unless that is recorded already, and return the record.

    Raises:
        StoreError: the store refused.
    """
    record = {"state": end.state, "ended_at": end.ended_at.isoformat(), "totals": as_json(end.totals)}
    put_if_absent(table, run_key(run_id, "end.json"), _to_bytes(record))
    written = read_end(table, run_id)
    assert written is not None, "an end is never deleted"
    return written


def finish_run(table: Store, run_id: str, *, now: datetime, totals: Mapping[str, object]) -> None:
    """Record that everything is published, after `publish.verify_run` has counted it.

    Raises:
        RayDetrError: another process sealed the run.
    """
    if end_run(table, run_id, End("finished", now, totals)).state == "sealed":
        raise RayDetrError(sealed_sentence(table, run_id))


def read_state(table: Store, run_id: str) -> State:
    """Return the state of a run."""
    end = read_end(table, run_id)
    if end is not None:
        return end.state
    return "labelling" if _exists(table, run_key(run_id, "plan/complete.json")) else "planning"


def sealed_sentence(table: Store, run_id: str) -> str:
    """Return the error message for processes that still work on a sealed run."""
    return (
        f"run {run_id} of {table.uri} was sealed by another command with --new-run or --abandon and can write nothing "
        "more. Use --new-run if no other process is labelling."
    )


def _check_same(run: Run, request: RunRequest) -> None:
    if request.run_id is not None and request.run_id != run.run_id:
        raise UsageError(
            f"the unfinished run of this table is {run.run_id}, not {request.run_id}. "
            "Omit --run-id to resume it, or use --new-run to seal it and start a new run."
        )
    model = {"model": run.model, "model_sha256": run.model_sha256}
    found = differences(model, {"model": request.model, "model_sha256": request.model_sha256})[:1]
    asked = dict(request.configuration)
    if MODIFIED_SINCE in asked and MODIFIED_SINCE in run.configuration:  # changes every night; a run keeps its own
        asked[MODIFIED_SINCE] = run.configuration[MODIFIED_SINCE]
    found += differences(run.configuration, asked)
    if found:
        values = "value" if len(found) == 1 else "values"
        raise UsageError(
            f"the unfinished run {run.run_id} used another configuration ({'; '.join(found)}). Use the old {values} to "
            "resume it, or --new-run to seal it and start a new run."
        )


def _exists(table: Store, key: str) -> bool:
    try:
        table.head(key)
    except NotFound:
        return False
    return True


def _encode(run: Run) -> bytes:
    return _to_bytes({"record_version": RECORD_VERSION, **asdict(run), "started_at": run.started_at.isoformat()})


def _to_bytes(record: Mapping[str, object]) -> bytes:
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def _sequence_key(number: int) -> str:
    return f"{_SEQUENCE}{number:07d}.json"


def _decode(table: Store, key: str) -> Run:
    uri = join_uri(table.uri, key)
    try:
        record = parse_object(table.get(key).data)
    except ValueError as error:
        raise _damaged(uri) from error
    version = record.pop("record_version", None)
    if version not in (1, 2, RECORD_VERSION) or isinstance(version, bool):
        raise RayDetrError(
            f"{uri} is a run record of version {_brief(version)}, and this release reads version {RECORD_VERSION}. Use "
            "the release that began the run."
        )
    try:
        later: dict[str, object] = {}  # fields of later versions
        if version != RECORD_VERSION:
            later = {"tells_settings_apart": False, "layout": "folders"}
        if version == 1:
            asked = record["configuration"].get("precision")
            later["precision"] = asked if asked in PRECISIONS else OLD_PRECISION
        if later.keys() & record.keys():
            raise ValueError("a field of a later version")  # noqa: TRY301 - reported like other damage
        run = record_of(Run, record | later)
        _ = run.settings, run.modified_since  # raises ValueError if the configuration is damaged
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise _damaged(uri) from error
    # the name is part of keys: a damaged record must not lead outside the run's folder
    if run.shard_images < 1 or not _RUN_ID.fullmatch(run.run_id) or run.precision not in PRECISIONS:
        raise _damaged(uri)
    return run


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:20]}..."


def _damaged(uri: str) -> RayDetrError:
    return RayDetrError(
        f"{uri} is damaged: its contents have changed since it was written. Restore it, or write to another table."
    )
