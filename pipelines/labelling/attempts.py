"""The attempts of a run: how each process that worked on it ended, and what it did and cost.

`_runs/<run>/attempts/<time>-<tail>.json` is created when an attempt ends by itself without finishing the run. A process
that is killed leaves no record. The attempt that finishes the run is in `end.json`, with the totals of all of them.
Nothing but `ray-detr runs` and these totals depends on the records.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from pipelines.caps import Meter
from pipelines.concurrently import map_concurrently
from pipelines.errors import CapReached, RayDetrError
from pipelines.labelling.outcome import Work, work_values
from pipelines.labelling.run import new_run_id, run_key
from pipelines.store import AlreadyExists, NotFound, Store, StoreError, join_uri
from pipelines.strict_json import Count, Time, parse_object, record_of
from pipelines.table.schema import storable

_FOLDER: Final = "attempts/"
_MOST_LETTERS: Final = 500  # of a message

Reason = Literal["max_minutes", "max_cost", "error", "interrupted", "terminated", "finished"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process's work on a run.

    Attributes:
        started_at: When it began to read the table, UTC.
        ended_at: When it stopped, UTC.
        reason: What ended it: a limit, an error, Ctrl-C, SIGTERM, or the end of the run.
        message: The limit or the error in a sentence; empty for the others.
        images: Rows that it committed.
        work: Seconds, requests and bytes of its shards.
        nodes: The largest number of nodes that could hold an actor.
        node_hours: Their hours.
        cost: Cost of these; None without a price.
    """

    started_at: Time
    ended_at: Time
    reason: Reason
    message: str = ""
    images: Count = 0
    work: Work = field(default_factory=Work)
    nodes: Count = 0
    node_hours: float = 0.0
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Totals of the recorded attempts of a run. `cost` is None if an attempt with node hours has no price."""

    attempts: Count
    images: Count
    seconds: float
    work: Work
    node_hours: float
    cost: float | None


def total(attempts: Sequence[Attempt]) -> Spent:
    """Return the totals of attempts."""
    costs = [one.cost for one in attempts if one.cost is not None]
    is_known = bool(costs) and all(one.cost is not None or not one.node_hours for one in attempts)
    return Spent(
        attempts=len(attempts),
        images=sum(one.images for one in attempts),
        seconds=sum((one.ended_at - one.started_at).total_seconds() for one in attempts),
        work=sum((one.work for one in attempts), start=Work()),
        node_hours=sum(one.node_hours for one in attempts),
        cost=sum(costs) if is_known else None,
    )


def write_attempt(table: Store, run_id: str, attempt: Attempt, *, tail: str) -> None:
    """Record an attempt.

    Raises:
        StoreError: the store refused; the record may exist or not.
    """
    times = {name: getattr(attempt, name).isoformat() for name in ("started_at", "ended_at")}
    key = run_key(run_id, f"{_FOLDER}{new_run_id(attempt.started_at, tail)}.json")
    try:
        table.put(key, (json.dumps({**asdict(attempt), **times}, indent=2) + "\n").encode(), create=True)
    except AlreadyExists:  # a response was lost, and the repeated put found the object of the first
        return


def read_attempts(table: Store, run_id: str, *, threads: int = 1) -> tuple[Attempt, ...]:
    """Return the recorded attempts of a run, oldest first. A damaged record is left out with a warning.

    Raises:
        StoreError: the store refused.
    """
    keys = (entry.key for entry in table.list(run_key(run_id, _FOLDER)) if entry.key.endswith(".json"))
    found = map_concurrently(lambda key: _read(table, key), keys, threads=threads)
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.started_at))


@contextmanager
def recording_stop(
    table: Store,
    run_id: str,
    attempt: Callable[[Reason, str], Attempt],
    *,
    tail: str,
    meter: Meter,
    check_lease: Callable[[], None],
) -> Iterator[None]:
    """Record the attempt if an error, a limit or a signal ends the context. The error is raised again in any case.

    Args:
        table: The table, through a store that gives up soon: the end of the process waits for it.
        run_id: The run.
        attempt: Returns the attempt as it is now, with this reason and message.
        tail: Four random hexadecimal digits for the name of the record.
        meter: The meter that knows which limit was reached.
        check_lease: Raises `RayDetrError` if another process has taken the lease; then nothing is written.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        try:
            check_lease()
            write_attempt(table, run_id, attempt(*_reason(error, meter)), tail=tail)
        except (RayDetrError, StoreError) as failed:
            _logger.warning("run %s has no record of how this attempt ended: %s", run_id, failed)
        raise


def _reason(error: BaseException, meter: Meter) -> tuple[Reason, str]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", ""
    if isinstance(error, SystemExit):  # raised by the handlers of SIGTERM, ours and Ray's
        return "terminated", ""
    if isinstance(error, CapReached) and meter.limit is not None:
        return meter.limit, meter.reason
    # another error may quote anything
    known = isinstance(error, RayDetrError | StoreError)
    return "error", storable(" ".join(str(error).split()))[:_MOST_LETTERS] if known else type(error).__name__


def _read(table: Store, key: str) -> Attempt | None:
    try:
        values = parse_object(table.get(key).data)
        attempt = record_of(Attempt, {**values, "work": work_values(values.get("work"))})
        if attempt.started_at.tzinfo is None or attempt.ended_at.tzinfo is None:
            raise ValueError("a time without its zone")  # noqa: TRY301 - reported like other damage of the record
    except NotFound:
        return None
    except ValueError as error:
        _logger.warning(
            "%s is damaged or of a later release, and its attempt is left out: %s", join_uri(table.uri, key), error
        )
        return None
    return attempt
