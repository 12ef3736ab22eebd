"""One writer per table: a lease with a heartbeat. It prevents wasted work; commits are safe without it.

Object stores: `_lease.json`, acquired, renewed and released by conditional puts. Folders: a lock on `_lease.lock`,
which the kernel releases with the process, and the same record, which names the holder. The holder deletes both files
only if the table has nothing else, so that a process that failed before it began a run leaves nothing.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

from pipelines.clock import Clock, SystemClock
from pipelines.errors import LeaseHeld, RayDetrError
from pipelines.labelling.writer_process import Process, is_dead, this_process
from pipelines.store import AlreadyExists, Changed, Misconfigured, NotFound, Store, StoreError, join_uri
from pipelines.store.local import LocalStore
from pipelines.strict_json import Time, read_record

LEASE_KEY: Final = "_lease.json"
LOCK_KEY: Final = "_lease.lock"
LEASE_SECONDS: Final = 600.0  # a host that was disconnected from its cluster continued for 479 s (measured, Ray 2.60)
HEARTBEAT_SECONDS: Final = 30.0
TRIES_SECONDS: Final = 15.0  # for a heartbeat or a release: the next heartbeat comes soon
WAIT_SECONDS: Final = 5.0  # between two attempts to acquire a lease

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """The record `_lease.json`: the process that holds the lease, or held it last, identified by `token`."""

    token: str
    process: Process
    acquired_at: Time
    heartbeat_at: Time
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held: its record, the etag of that record, and whether the table had no record before."""

    holder: Holder
    etag: str | None
    is_new: bool = False


def is_free(holder: Holder, here: Process, now: datetime) -> bool:
    """Return whether a lease may be taken over: it was released, its holder has ended, or its heartbeat is too old.

    The age of a heartbeat compares the clocks of two machines, which are assumed to agree within a minute. If they do
    not, a lease is taken over too early or too late, which costs work but no rows.
    """
    silent_seconds = (now - holder.heartbeat_at).total_seconds()
    return holder.is_released or is_dead(holder.process, here) or silent_seconds > LEASE_SECONDS


def current_holder(table: Store, here: Process, now: datetime) -> Holder | None:
    """Return the current holder of a table's lease; None if it is free.

    Raises:
        StoreError: the store refused, or the record is damaged.
    """
    holder = last_holder(table)
    return None if holder is None or is_free(holder, here, now) else holder


def last_holder(table: Store) -> Holder | None:
    """Return the process that holds a table's lease, or held it last; None if there is no record.

    Raises:
        StoreError: the store refused, or the record is damaged.
    """
    try:
        return _read(table)[0]
    except NotFound:
        return None


def keeps_lease(table: Store) -> bool:
    """Return whether processes that write a table hold its lease: a folder's always do, others if there is a record.

    A store that cannot replace an object conditionally has no record. Elsewhere a table with a run has one.

    Raises:
        StoreError: the store refused.
    """
    return isinstance(table, LocalStore) or next(iter(table.list(LEASE_KEY)), None) is not None


def acquire(table: Store, here: Process, *, token: str, now: datetime) -> Lease:
    """Take the lease of a table in an object store.

    Raises:
        LeaseHeld: another process holds it, and is not known to have ended.
        StoreError: the store refused; the lease may be acquired or not.
    """
    mine = Holder(token, here, acquired_at=now, heartbeat_at=now)
    try:
        return Lease(mine, table.put(LEASE_KEY, _encode(mine), create=True), is_new=True)
    except AlreadyExists:
        pass
    try:
        holder, etag = _read(table)
        if holder.token == token:  # a response was lost, and the repeated put met the first one
            return Lease(holder, etag)
        if not is_free(holder, here, now):
            raise LeaseHeld(held_sentence(table.uri, holder, now))
        try:
            return Lease(mine, table.put(LEASE_KEY, _encode(mine), if_match=etag))
        except Changed:
            holder, etag = _read(table)
            if holder.token == token:
                return Lease(holder, etag)
            raise LeaseHeld(held_sentence(table.uri, holder, now)) from None
    except NotFound:  # its holder wrote nothing and deleted it; the put below reports another holder
        try:
            return Lease(mine, table.put(LEASE_KEY, _encode(mine), create=True), is_new=True)
        except AlreadyExists:
            holder, etag = _read(table)
            if holder.token == token:
                return Lease(holder, etag)
            raise LeaseHeld(held_sentence(table.uri, holder, now)) from None


def renew(table: Store, lease: Lease, *, now: datetime) -> Lease:
    """Write a new heartbeat.

    Raises:
        LeaseHeld: another process has taken the lease over.
        StoreError: the store refused; the lease is still held as far as is known.
    """
    return _replace(table, lease, replace(lease.holder, heartbeat_at=now), now)


def release(table: Store, lease: Lease, *, now: datetime) -> None:
    """Release the lease, unless another process has taken it over already.

    Raises:
        StoreError: the store refused; the lease ends when its heartbeat is too old.
    """
    try:
        _replace(table, lease, replace(lease.holder, heartbeat_at=now, is_released=True), now)
    except LeaseHeld:
        return


@contextmanager
def holding(
    table: Store,
    *,
    can_swap: bool,
    token: str,
    wait_seconds: float,
    say: Callable[[str], None],
    quick: Store | None = None,
    clock: Clock | None = None,
) -> Iterator[Callable[[], None]]:
    """Hold a table's lease while the context is open.

    The context returns a function to call from time to time: it raises `RayDetrError` if another process has taken the
    lease over.

    Args:
        table: The table.
        can_swap: Whether its store can replace an object conditionally (`store.probe`).
        token: A random text that identifies this process.
        wait_seconds: How long to wait for another holder.
        say: Called with a message that names the holder of the lease.
        quick: The same table through a store that gives up after `TRIES_SECONDS`, for heartbeats and the release:
            when the store is down, the end of a run waits for them. None means `table`.
        clock: The clock.

    Raises:
        LeaseHeld: another process still holds it after that time.
        StoreError: the store refused.
    """
    clock = clock or SystemClock()
    if isinstance(table, LocalStore):
        take: Callable[[], Any] = lambda: _lock(table, token, clock)  # noqa: E731 - one of two ways
    elif can_swap:
        take = lambda: acquire(table, this_process(), token=token, now=clock.now())  # noqa: E731
    else:
        _logger.warning(
            "%s does not support a lease: overlapping commands on it repeat work, but lose nothing", table.uri
        )
        yield lambda: None
        return
    held = _wait_for(take, wait_seconds, say, clock)
    keeper = _Keeper(quick or table, held, clock)
    try:
        yield keeper.check
    finally:
        keeper.end()


class _Keeper:
    """Renews a lease in a thread until it is ended or the lease is lost."""

    def __init__(self, table: Store, held: Lease | _LocalLease, clock: Clock) -> None:
        self._table, self._held, self._clock, self._is_new = table, held, clock, held.is_new
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost is not None:
            raise RayDetrError(f"this process has lost its lease: {self._lost} Run the same command again to resume.")

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        held = self._held
        try:
            if self._is_alone() and self._delete():
                if isinstance(held, _LocalLease):
                    held.close()
            elif isinstance(held, _LocalLease):
                held.give_up(self._clock.now())
            elif self._lost is None:
                release(self._table, held, now=self._clock.now())
        except StoreError as error:  # the outcome of the run matters more; the lease ends when its heartbeat is too old
            _logger.warning("the lease of %s could not be released: %s", self._table.uri, error)

    def _delete(self) -> bool:
        """Delete a lease that is still held; return whether the store and the credentials allowed it."""
        try:
            for key in (LEASE_KEY, LOCK_KEY) if isinstance(self._held, _LocalLease) else (LEASE_KEY,):
                self._table.delete(key)
        except StoreError:
            return False
        return True

    def _is_alone(self) -> bool:
        """Return whether the lease is certainly held and the table's folder has no other object."""
        silent_seconds = (self._clock.now() - self._held.holder.heartbeat_at).total_seconds()
        if not self._is_new or self._lost is not None or silent_seconds > LEASE_SECONDS / 2:
            return False
        try:
            return all(entry.key in (LEASE_KEY, LOCK_KEY) for entry in self._table.list())
        except StoreError:
            return False

    def _run(self) -> None:
        try:
            self._beat()
        finally:  # even after an unexpected error: without a heartbeat, others take the lease over
            if not self._ended.is_set() and self._lost is None:
                self._lost = "its heartbeat has stopped; the log says why."

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                if isinstance(self._held, _LocalLease):
                    self._held.write(self._clock.now())
                else:
                    self._held = renew(self._table, self._held, now=self._clock.now())
            except LeaseHeld as error:
                self._lost = str(error)
                return
            except StoreError as error:  # the lease is not lost yet: others wait for LEASE_SECONDS without a heartbeat
                _logger.info("the lease of %s could not be renewed: %s", self._table.uri, error)


class _LocalLease:
    """A lock that the kernel releases with this process, and the record beside it."""

    def __init__(self, table: LocalStore, descriptor: int, holder: Holder, *, is_new: bool) -> None:
        self._table, self._descriptor, self.holder, self.is_new = table, descriptor, holder, is_new

    def write(self, now: datetime, *, is_released: bool = False) -> None:
        self.holder = replace(self.holder, heartbeat_at=now, is_released=is_released)
        self._table.put(LEASE_KEY, _encode(self.holder))

    def give_up(self, now: datetime) -> None:
        try:
            self.write(now, is_released=True)
        finally:
            self.close()

    def close(self) -> None:
        os.close(self._descriptor)


def _lock(table: LocalStore, token: str, clock: Clock) -> _LocalLease:
    descriptor = table.lock(LOCK_KEY)
    now = clock.now()
    if descriptor is None:
        try:
            holder, _ = _read(table)
        except NotFound:  # the holder has the lock and has not written its record yet
            raise LeaseHeld(f"another process is writing table {table.uri}. {_ADVICE}") from None
        raise LeaseHeld(held_sentence(table.uri, holder, now))
    try:
        is_new = next(iter(table.list(LEASE_KEY)), None) is None
        holder = Holder(token, this_process(), acquired_at=now, heartbeat_at=now)
        lease = _LocalLease(table, descriptor, holder, is_new=is_new)
        lease.write(now)
    except StoreError:
        os.close(descriptor)
        raise
    return lease


def _wait_for(take: Callable[[], Any], wait_seconds: float, say: Callable[[str], None], clock: Clock) -> Any:
    deadline: float | None = None
    while True:
        try:
            return take()
        except LeaseHeld as held:
            deadline = clock.monotonic() + wait_seconds if deadline is None else deadline  # from the first answer on
            left = deadline - clock.monotonic()
            if left <= 0:
                raise
            say(f"waiting: {held}")
        clock.sleep(min(WAIT_SECONDS, left))


_ADVICE = "Wait for it (--wait-minutes), or stop it."


def held_sentence(uri: str, holder: Holder, now: datetime) -> str:
    """Return the error message that names the holder of a lease and says what to do."""
    process, ago = holder.process, max(0.0, (now - holder.heartbeat_at).total_seconds())
    who = f"host {process.host}, pid {process.pid}"
    if holder.is_released:
        return f"table {uri} was written by another process in the meantime ({who}), which ended {ago:.0f} s ago."
    at_once = "at once on the same host, " if process.boot else ""  # see `is_dead`
    return (
        f"table {uri} is being written by another process ({who}, heartbeat {ago:.0f} s ago). {_ADVICE} "
        f"If that process has died, its lease is taken over {at_once}after {LEASE_SECONDS:.0f} s"
        f"{' on another' if process.boot else ''}."
    )


def _replace(table: Store, lease: Lease, holder: Holder, now: datetime) -> Lease:
    etag = lease.etag or table.head(LEASE_KEY).etag  # not every store returns the etag of a put
    while True:
        assert etag is not None, "a store that replaces conditionally has etags"
        try:
            return Lease(holder, table.put(LEASE_KEY, _encode(holder), if_match=etag))
        except Changed:
            seen, (there, etag) = etag, _read(table)
        if there == holder:  # this put, whose response was lost
            return Lease(there, etag)
        if there.token != holder.token or etag == seen:
            raise LeaseHeld(held_sentence(table.uri, there, now))
        # an earlier put of this process, whose response was lost: write the new record


def _read(table: Store) -> tuple[Holder, str | None]:
    blob = table.get(LEASE_KEY)
    try:
        holder = read_record(Holder, blob.data)
        if holder.heartbeat_at.tzinfo is None:
            raise ValueError("a time without its zone")  # noqa: TRY301 - reported like other damage of the record
    except ValueError as error:
        raise Misconfigured(
            f"{join_uri(table.uri, LEASE_KEY)} is damaged: the process that writes the table cannot be read from it. "
            "Remove it if no process is writing."
        ) from error
    return holder, blob.etag


def _encode(holder: Holder) -> bytes:
    times = {name: getattr(holder, name).isoformat() for name in ("acquired_at", "heartbeat_at")}
    return (json.dumps({**asdict(holder), **times}, indent=2) + "\n").encode()
