"""Ends a table's unfinished run while holding the lease, so that the next attempt begins a new one."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.clock import Clock
from pipelines.errors import UsageError
from pipelines.labelling.lease import holding
from pipelines.labelling.publish import THREADS, remove_parts
from pipelines.labelling.run import End, Run, find_unfinished, list_runs
from pipelines.labelling.seal import seal_run
from pipelines.store import Store, require_create_only


@dataclass(frozen=True, slots=True)
class Abandoned:
    """How the run ended (`finished` if it did so at the same time), and the number of removed parts."""

    run_id: str
    end: End
    parts: int


def abandon_run(table: Store, run_id: str | None = None, *, token: str, clock: Clock) -> Abandoned | None:
    """Seal the unfinished run of a table and remove its parts.

    Published rows stay. After a crash, the next attempt or another call completes the seal.

    Args:
        table: The table.
        run_id: The run, to be certain; None means the unfinished one.
        token: A random text that identifies this process.
        clock: The clock.

    Returns:
        How the run ended; None if the table has no unfinished run, or the named run has ended.

    Raises:
        LeaseHeld: another process is writing the table.
        UsageError: the table has no run of this name.
        StoreError: the store refused.
    """
    if run_id is not None and all(run.run_id != run_id for run in list_runs(table, threads=THREADS)):
        raise UsageError(f"table {table.uri} has no run {run_id}. `ray-detr runs` lists its runs.")
    if _unfinished(table, run_id) is None:
        return None  # before anything, such as a lease, is written to a place that may not be a table
    store = require_create_only(table, what="a table", loss="two runs could lose each other's rows")
    with holding(
        table, can_swap=store.swap is not None, token=token, wait_seconds=0.0, say=lambda _: None, clock=clock
    ):
        run = _unfinished(table, run_id)
        if run is None:
            return None
        end = seal_run(table, run, now=clock.now())
        return Abandoned(run.run_id, end, remove_parts(table, run.run_id))


def _unfinished(table: Store, run_id: str | None) -> Run | None:
    run = find_unfinished(table)
    return run if run is not None and run_id in (None, run.run_id) else None
