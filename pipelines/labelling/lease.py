"""One writer per table: a lease with a heartbeat. It saves work and money; commits are safe without it.

Object stores: `_lease.json`, taken, renewed and given up by conditional puts. Folders: a lock on `_lease.lock`, which
the kernel gives up with the process, and the same record to name the holder by. Both files are deleted only by the
holder of a table that has nothing else: a start that failed before it had begun a run leaves nothing.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pipelines.clock import Clock, SystemClock
from pipelines.errors import LeaseHeld, RayDetrError
from pipelines.store import AlreadyExists, Changed, Misconfigured, NotFound, Store, StoreError, join_uri
from pipelines.store.local import LocalStore

LEASE_KEY: Final = "_lease.json"
LOCK_KEY: Final = "_lease.lock"
LEASE_SECONDS: Final = 600.0  # a host that was cut off from its cluster went on for 479 s (measured, Ray 2.60)
HEARTBEAT_SECONDS: Final = 30.0
TRIES_SECONDS: Final = (
    15.0  # of a heartbeat or of giving up: the next one comes soon, and a store that is lost stays so
)
WAIT_SECONDS: Final = 5.0  # between two looks at a lease that is waited for

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """Which process of which machine. `started` and `boot` tell a process from a later one with its number."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class Holder:
    """What `_lease.json` says: who holds the lease, or held it last. `token` is of one start."""

    token: str
    process: Process
    acquired_at: datetime
    heartbeat_at: datetime
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held: its record, the etag that it had when it was written, and whether there was none before."""

    holder: Holder
    etag: str | None
    is_new: bool = False


def this_process() -> Process:
    """Return this process as others on this machine can recognise it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path, but a number of the kernel's
    return Process(socket.gethostname(), boot, namespace, os.getpid(), _started(os.getpid()) or "")


def is_dead(process: Process, here: Process) -> bool:
    """Return whether a process is known to have ended: it was on this machine, and is not there any more."""
    is_neighbour = (process.boot, process.namespace) == (here.boot, here.namespace)
    return is_neighbour and _started(process.pid) != process.started


def is_free(holder: Holder, here: Process, now: datetime) -> bool:
    """Return whether a lease may be taken over: it was given up, its holder is dead here, or silent for too long.

    Silence is measured between two machines' clocks, which are taken to agree to a minute or so. Where they do not, a
    lease is taken over too early or late, which costs work only.
    """
    silent_seconds = (now - holder.heartbeat_at).total_seconds()
    return holder.is_released or is_dead(holder.process, here) or silent_seconds > LEASE_SECONDS


def current_holder(table: Store, here: Process, now: datetime) -> Holder | None:
    """Return who holds the lease of a table now, None if it may be taken.

    Raises:
        StoreError: the store refused, or the record is damaged.
    """
    try:
        holder, _ = _read(table)
    except NotFound:
        return None
    return None if is_free(holder, here, now) else holder


def acquire(table: Store, here: Process, *, token: str, now: datetime) -> Lease:
    """Take the lease of a table in an object store.

    Raises:
        LeaseHeld: another start has it, and is not known to be dead.
        StoreError: the store refused; the lease may be ours or not.
    """
    mine = Holder(token, here, acquired_at=now, heartbeat_at=now)
    try:
        return Lease(mine, table.put(LEASE_KEY, _encode(mine), create=True), is_new=True)
    except AlreadyExists:
        pass
    try:
        holder, etag = _read(table)
        if holder.token == token:  # a response was lost, and the put that was sent again met the first
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
    except NotFound:  # its holder wrote nothing and has deleted it meanwhile; if another one takes it now, that is told
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
        LeaseHeld: another start has taken the lease over.
        StoreError: the store refused; it is still ours as far as we know.
    """
    return _replace(table, lease, replace(lease.holder, heartbeat_at=now), now)


def release(table: Store, lease: Lease, *, now: datetime) -> None:
    """Give the lease up. That another start has it already is fine.

    Raises:
        StoreError: the store refused; the lease ends by silence.
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
    """Hold a table's lease as long as the context is open.

    What it gives is to be called now and then: it raises `RayDetrError` when another start has taken the lease over.

    Args:
        table: The table.
        can_swap: Whether its store replaces conditionally (`store.probe`).
        token: Random, of this start.
        wait_seconds: How long another holder is waited for.
        say: Is told whom we wait for.
        quick: The same table through a store that gives up after `TRIES_SECONDS`, for heartbeats and giving up: the
            end of a run whose store is lost waits for them. None: `table`.
        clock: What time it is.

    Raises:
        LeaseHeld: another start holds it, at the end of that time too.
        StoreError: the store refused.
    """
    clock = clock or SystemClock()
    if isinstance(table, LocalStore):
        take: Callable[[], Any] = lambda: _lock(table, token, clock)  # noqa: E731 - one of two ways
    elif can_swap:
        take = lambda: acquire(table, this_process(), token=token, now=clock.now())  # noqa: E731
    else:
        _logger.warning("%s cannot hold a lease: overlapping commands on it repeat work, but lose nothing", table.uri)
        yield lambda: None
        return
    held = _wait_for(take, wait_seconds, say, clock)
    keeper = _Keeper(quick or table, held, clock)
    try:
        yield keeper.check
    finally:
        keeper.end()


class _Keeper:
    """The heart of a lease: beats in a thread of its own until it is ended or the lease is lost."""

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
        except StoreError as error:  # the run's own outcome is what counts; the lease ends by silence
            _logger.warning("the lease of %s could not be released: %s", self._table.uri, error)

    def _delete(self) -> bool:
        """Delete a lease that is still held; return whether that was possible: credentials may not allow it."""
        try:
            for key in (LEASE_KEY, LOCK_KEY) if isinstance(self._held, _LocalLease) else (LEASE_KEY,):
                self._table.delete(key)
        except StoreError:
            return False
        return True

    def _is_alone(self) -> bool:
        """Return whether the lease is certainly held and the table has nothing else, not even files of others."""
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
        finally:  # whatever ended it, traceback or not: without a heartbeat others take the lease over
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
            except StoreError as error:  # nothing is lost yet: others wait for LEASE_SECONDS of silence
                _logger.info("the lease of %s could not be renewed: %s", self._table.uri, error)


class _LocalLease:
    """A lock that ends with this process, and the record beside it."""

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
        except NotFound:  # it has the lock and has not written who it is yet
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
    deadline = clock.monotonic() + wait_seconds
    while True:
        try:
            return take()
        except LeaseHeld as held:
            left = deadline - clock.monotonic()
            if left <= 0:
                raise
            say(f"waiting: {held}")
        clock.sleep(min(WAIT_SECONDS, left))


_ADVICE = "Wait for it (--wait-minutes), or stop it."


def held_sentence(uri: str, holder: Holder, now: datetime) -> str:
    """Return who holds the lease of a table, or has held it meanwhile, and what to do."""
    process, ago = holder.process, max(0.0, (now - holder.heartbeat_at).total_seconds())
    who = f"host {process.host}, pid {process.pid}"
    if holder.is_released:
        return f"table {uri} was written by another process meanwhile ({who}), which ended {ago:.0f} s ago."
    return (
        f"table {uri} is being written by another process ({who}, heartbeat {ago:.0f} s ago). {_ADVICE} "
        f"A dead holder is replaced at once on its own host, elsewhere after {LEASE_SECONDS:.0f} s."
    )


def _replace(table: Store, lease: Lease, holder: Holder, now: datetime) -> Lease:
    etag = lease.etag or table.head(LEASE_KEY).etag  # not every store answers a put with it
    while True:
        assert etag is not None, "a store that replaces conditionally has etags"
        try:
            return Lease(holder, table.put(LEASE_KEY, _encode(holder), if_match=etag))
        except Changed:
            seen, (there, etag) = etag, _read(table)
        if there == holder:  # this very put, whose answer was lost
            return Lease(there, etag)
        if there.token != holder.token or etag == seen:
            raise LeaseHeld(held_sentence(table.uri, there, now))
        # an earlier put of ours, whose answer was lost: what is to be written now is not there yet


def _read(table: Store) -> tuple[Holder, str | None]:
    blob = table.get(LEASE_KEY)
    try:
        record = json.loads(blob.data)
        process = record["process"]
        holder = Holder(
            token=str(record["token"]),
            process=Process(
                host=str(process["host"]),
                boot=str(process["boot"]),
                namespace=str(process["namespace"]),
                pid=int(process["pid"]),
                started=str(process["started"]),
            ),
            acquired_at=datetime.fromisoformat(record["acquired_at"]),
            heartbeat_at=datetime.fromisoformat(record["heartbeat_at"]),
            is_released=bool(record["is_released"]),
        )
        if holder.heartbeat_at.tzinfo is None:
            raise ValueError("a time without its zone")  # noqa: TRY301 - as the other faults of the record
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Misconfigured(
            f"{join_uri(table.uri, LEASE_KEY)} is damaged: the process that writes the table cannot be read from it. "
            "Remove it if no process is writing."
        ) from error
    return holder, blob.etag


def _encode(holder: Holder) -> bytes:
    times = {name: getattr(holder, name).isoformat() for name in ("acquired_at", "heartbeat_at")}
    return (json.dumps({**asdict(holder), **times}, indent=2) + "\n").encode()


def _started(pid: int) -> str | None:
    """Return when a process of this machine was started, in the kernel's ticks; None if there is none, or it ended."""
    try:
        # behind the name, which may hold anything, comes field 3, the state; the start is field 22
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie waits for its parent only
    except (FileNotFoundError, ProcessLookupError):
        return None
