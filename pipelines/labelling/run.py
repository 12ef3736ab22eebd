"""The runs of a table: begun one after the other, resumed until they end, each with its record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal

from pipelines.configurations import as_json, differences
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.settings import AUTO, settings_text
from pipelines.store import NotFound, Store, join_uri, put_if_absent
from pipelines.strict_json import parse_object, text_field
from pipelines.table.files import LAYOUTS, Layout, layout_without_runs

RECORD_VERSION: Final = 3  # version 1 has no `precision`, versions 1 and 2 no `tells_settings_apart` and `layout`

OLD_PRECISION: Final = "fp32"  # of unfinished runs from before "auto" was resolved once for all nodes
PRECISIONS: Final = ("fp32", "tf32", "bf16", "fp16")

# A run is begun by creating the next number of this sequence, which only one starter can do while the run before has
# ended. So a table never has two unfinished runs, whose rows could be of the same images, whatever becomes of leases.
_SEQUENCE = "_runs/_order/"
_IN_SEQUENCE = re.compile(re.escape(_SEQUENCE) + r"(\d{7})\.json")

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

MODIFIED_SINCE: Final = "modified_since"  # of a configuration: a time that may differ between the starts of a run

State = Literal["planning", "labelling", "finished", "sealed"]


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a start asks for.

    Args:
        model: `name@sha256[:12]`, as rows say it.
        model_sha256: of the model's weights, whole.
        configuration: What decides which rows come out, as values of JSON; a resumed run must be given the same.
        shard_images: How many images a shard of a new run has; None: as many as suit the device. A resumed run keeps
            its own.
        versions: Of the code and its packages, for the record.
        run_id: The run's name; None makes one of the time.
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

    @property
    def precision(self) -> str:
        """What the network computes in, as it was asked for: "auto" depends on the cluster's devices."""
        return str(self.configuration.get("precision", AUTO))

    def settings(self, precision: str) -> str:
        """Return the settings of the rows that come out where `precision` is what "auto" is."""
        return settings_text(self.configuration, precision if self.precision == AUTO else self.precision)


@dataclass(frozen=True, slots=True)
class Run:
    """The record of a run, written when it begins and never changed.

    Attributes:
        run_id: Its name.
        number: Its place among its table's runs.
        model: `name@sha256[:12]`, as rows say it.
        model_sha256: Of the model's weights, whole.
        configuration: What decides which rows come out, as it was asked for.
        shard_images: How many images a shard has.
        versions: Of the code and its packages.
        started_at: When it began, UTC.
        precision: What the network computes in on every node, "auto" resolved. Runs of earlier releases that were
            asked for "auto" have none in their record: fp32.
        tells_settings_apart: Whether an image that its model has labelled with other settings is planned again. Runs
            that an earlier release began leave such images out.
        layout: Where its table files are, the same for all runs of a table.
    """

    run_id: str
    number: int
    model: str
    model_sha256: str
    configuration: Mapping[str, object]
    shard_images: int
    versions: Mapping[str, str]
    started_at: datetime
    precision: str = OLD_PRECISION
    tells_settings_apart: bool = True
    layout: Layout = "flat"

    @property
    def settings(self) -> str:
        """The settings of its rows."""
        return settings_text(self.configuration, self.precision)

    @property
    def modified_since(self) -> datetime | None:
        """The time of modification from which on it labels images; None: it labels all."""
        time = self.configuration.get(MODIFIED_SINCE)
        return None if time is None else datetime.fromisoformat(str(time))


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: `finished` with what it wrote, or `sealed` unfinished, so that it can write nothing any more."""

    state: Literal["finished", "sealed"]
    ended_at: datetime
    totals: Mapping[str, object]


def check_run_id(run_id: str) -> None:
    """Refuse what cannot name a run.

    Raises:
        ValueError: with the reason.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"run id: {run_id!r} cannot name a folder; use letters, digits, '.', '_' and '-', at most 100."
        )


def run_key(run_id: str, name: str) -> str:
    """Return the key of one of a run's own objects."""
    return f"_runs/{run_id}/{name}"


def new_run_id(now: datetime, tail: str) -> str:
    """Return a name that sorts by time: `20261122-181503-a1b2`. `tail` is random, for runs begun in the same second."""
    return f"{now:%Y%m%d-%H%M%S}-{tail}"


def resume_run(table: Store, run: Run, request: RunRequest) -> Run:
    """Return the table's unfinished run, to be worked on as it was begun.

    What is labelled already is to be read after this: from here on no earlier run adds rows to the table.

    Raises:
        UsageError: the run was asked for something else.
        StoreError: the store refused.
    """
    _check_same(run, request)
    put_if_absent(table, run_key(run.run_id, "run.json"), _encode(run))  # its starter may have died before
    return run


def begin_run(
    table: Store, request: RunRequest, *, after: Run | None, shard_images: int, precision: str, now: datetime, tail: str
) -> Run | None:
    """Begin the next run of a table; None: another start has begun one since `after` was the last.

    Where it is begun, no row was added to the table since `after` had ended: what was read of it since then still
    holds, and from here on no earlier run adds rows.

    Args:
        table: The table.
        request: What the run shall do.
        after: The table's last run, which had ended when it was looked at; None: it had none.
        shard_images: How many images a shard has, unless the request says so.
        precision: What the network computes in on every node.
        now: The time, UTC.
        tail: Four random hexadecimal digits.

    Raises:
        UsageError: the run's name is taken.
        StoreError: the store refused; nothing is begun, or the same start resumes it.
    """
    number = after.number + 1 if after else 1
    if _exists(table, _sequence_key(number)):
        return None  # looked at first: a run of the name that was asked for may be the one that was begun
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
    """Return the run that the next start resumes, if there is one."""
    latest = latest_run(table)
    return latest if latest is not None and read_end(table, latest.run_id) is None else None


def latest_run(table: Store) -> Run | None:
    """Return the run that was begun last."""
    last = None
    for number in _sequence(table):
        last = number
    return None if last is None else _read(table, last)


def list_runs(table: Store) -> Iterator[Run]:
    """Yield all runs of a table, oldest first."""
    for number in _sequence(table):
        yield _read(table, number)


def list_runs_backwards(table: Store) -> Iterator[Run]:
    """Yield all runs of a table, newest first; each record is read when it is asked for."""
    for number in reversed(list(_sequence(table))):
        yield _read(table, number)


def read_run(table: Store, run_id: str) -> Run | None:
    """Return the run of a name, None where the table has none.

    Raises:
        RayDetrError: its record is damaged.
        StoreError: the store refused.
    """
    if not _RUN_ID.fullmatch(run_id):
        return None  # of a damaged row: it must not lead out of the runs' folder
    try:
        return _decode(table, run_key(run_id, "run.json"))
    except NotFound:
        return None


def read_end(table: Store, run_id: str) -> End | None:
    """Return how a run ended, None if it did not."""
    key = run_key(run_id, "end.json")
    try:
        data = table.get(key).data
    except NotFound:
        return None
    try:
        record = parse_object(data)
        state, totals = record.get("state"), record.get("totals")
        if (state != "finished" and state != "sealed") or not isinstance(totals, dict):
            raise _damaged(join_uri(table.uri, key))
        return End(state, datetime.fromisoformat(text_field(record, "ended_at")), totals)
    except ValueError as error:
        raise _damaged(join_uri(table.uri, key)) from error


def end_run(table: Store, run_id: str, end: End) -> End:
    """Write how a run ended unless that is written already, and return what is written.

    Raises:
        StoreError: the store refused.
    """
    record = {"state": end.state, "ended_at": end.ended_at.isoformat(), "totals": as_json(end.totals)}
    put_if_absent(table, run_key(run_id, "end.json"), _to_bytes(record))
    written = read_end(table, run_id)
    assert written is not None, "an end is never deleted"
    return written


def finish_run(table: Store, run_id: str, *, now: datetime, totals: Mapping[str, object]) -> None:
    """Write that everything is published; to be called when `publish.verify_run` has counted it.

    Raises:
        RayDetrError: another start sealed the run.
    """
    if end_run(table, run_id, End("finished", now, totals)).state == "sealed":
        raise RayDetrError(sealed_sentence(table, run_id))


def read_state(table: Store, run_id: str) -> State:
    """Return how far a run has come."""
    end = read_end(table, run_id)
    if end is not None:
        return end.state
    return "labelling" if _exists(table, run_key(run_id, "plan/complete.json")) else "planning"


def sealed_sentence(table: Store, run_id: str) -> str:
    """Return what is said to whoever still works on a sealed run."""
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
    if MODIFIED_SINCE in asked and MODIFIED_SINCE in run.configuration:  # it moves every night; a run keeps its own
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


def _sequence(table: Store) -> Iterator[int]:
    """Yield the numbers of a table's runs, rising; foreign names are left out."""
    for entry in table.list(_SEQUENCE):
        found = _IN_SEQUENCE.fullmatch(entry.key)
        if found is not None:
            yield int(found[1])


def _read(table: Store, number: int) -> Run:
    run = _decode(table, _sequence_key(number))
    # another number than its name's would let a starter look for the next run for ever
    if run.number != number:
        raise _damaged(join_uri(table.uri, _sequence_key(number)))
    return run


def _decode(table: Store, key: str) -> Run:
    uri = join_uri(table.uri, key)
    try:
        record = parse_object(table.get(key).data)
    except ValueError as error:
        raise _damaged(uri) from error
    version = record.pop("record_version", None)
    if version not in (1, 2, RECORD_VERSION) or isinstance(version, bool):
        raise RayDetrError(
            f"{uri} is a run record of version {_brief(version)}, this is version {RECORD_VERSION}. Use the release "
            "that began the run."
        )
    # the name becomes part of keys: a damaged record must not lead out of the run's folder
    kinds = {"run_id": str, "number": int, "shard_images": int, "model": str, "model_sha256": str,
             "configuration": dict, "versions": dict, "started_at": str, "precision": str,
             "tells_settings_apart": bool, "layout": str}  # fmt: skip
    if version == 1:
        if "precision" in record or not isinstance(record.get("configuration"), dict):
            raise _damaged(uri)
        asked = record["configuration"].get("precision")
        record["precision"] = asked if asked in PRECISIONS else OLD_PRECISION
    if version != RECORD_VERSION:
        if "tells_settings_apart" in record or "layout" in record:
            raise _damaged(uri)
        record |= {"tells_settings_apart": False, "layout": "folders"}
    if record.keys() != kinds.keys() or any(type(record[name]) is not kind for name, kind in kinds.items()):
        raise _damaged(uri)
    if record["shard_images"] < 1 or not _RUN_ID.fullmatch(record["run_id"]):
        raise _damaged(uri)
    if record["precision"] not in PRECISIONS or record["layout"] not in LAYOUTS:
        raise _damaged(uri)
    try:
        run = Run(**{**record, "started_at": datetime.fromisoformat(record["started_at"])})
        _ = run.settings, run.modified_since  # both can be told
    except (ValueError, TypeError) as error:
        raise _damaged(uri) from error
    return run


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:20]}..."


def _damaged(uri: str) -> RayDetrError:
    return RayDetrError(
        f"{uri} is damaged: its contents have changed since it was written. Restore it, or write to another table."
    )
