"""One writer per table: who comes second is told of the first, whoever dies is taken over, nobody loses in silence."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pipelines.errors import LeaseHeld, RayDetrError
from pipelines.labelling import lease as module
from pipelines.labelling import writer_process
from pipelines.labelling.lease import (
    LEASE_KEY,
    LEASE_SECONDS,
    acquire,
    current_holder,
    holding,
    keeps_lease,
    release,
    renew,
)
from pipelines.labelling.writer_process import Process, is_dead, this_process
from pipelines.store import Blob, Denied, Misconfigured, Store, StoreDown, StoreEntry, open_store
from pipelines.store.local import LocalStore
from tests.memory_store import MemoryStore, memory_store
from tests.simulation.world import Clock
from tests.waiting import wait_until

NOW = datetime(2026, 11, 26, tzinfo=UTC)
HERE = this_process()
ELSEWHERE = Process("gpu-7", "another boot", "pid:[1]", 4121, "99")
ROOT = Path(__file__).parents[3]


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@contextmanager
def held(
    table: Store,
    token: str = "b",  # noqa: S107 - of a lease
    wait_seconds: float = 0.0,
    said: list[str] | None = None,
) -> Iterator[None]:
    say = (lambda _: None) if said is None else said.append
    with holding(table, can_swap=True, token=token, wait_seconds=wait_seconds, say=say) as check_lease:
        check_lease()
        yield


class LosingStore(MemoryStore):
    """Carries out every put, and loses the answer."""

    is_losing = True

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        etag = super().put(key, data, create=create, if_match=if_match)
        if self.is_losing:
            super_put = super().put
            super_put(key, data, create=create, if_match=if_match)  # as a client that sends it again
        return etag


def test_the_second_is_told_who_holds_the_lease_and_how_long_ago_it_was_alive() -> None:
    table = memory_store()
    acquire(table, ELSEWHERE, token="a", now=NOW)

    with pytest.raises(
        LeaseHeld,
        match=r"table memory://store is being written by another process \(host gpu-7, pid 4121, heartbeat 8 s ago",
    ):
        acquire(table, HERE, token="b", now=later(8))


def test_a_lease_is_kept_by_folders_and_by_stores_that_had_a_holder(tmp_path: Path) -> None:
    table = memory_store()
    table.put("_runs/night/run.json", b"{}")

    assert keeps_lease(open_store(str(tmp_path)))
    assert not keeps_lease(table)
    release(table, acquire(table, ELSEWHERE, token="a", now=NOW), now=later(1))
    assert keeps_lease(table)


def test_a_lease_that_was_given_up_is_free_and_is_never_deleted() -> None:
    table = memory_store()
    release(table, acquire(table, ELSEWHERE, token="a", now=NOW), now=later(1))

    assert table.get(LEASE_KEY).data
    assert acquire(table, HERE, token="b", now=later(2)).holder.token == "b"


def test_a_holder_elsewhere_is_taken_over_when_it_was_silent_for_ten_minutes_and_not_before() -> None:
    table = memory_store()
    first = renew(table, acquire(table, ELSEWHERE, token="a", now=NOW), now=later(100))

    with pytest.raises(LeaseHeld):
        acquire(table, HERE, token="b", now=later(100 + LEASE_SECONDS))
    acquire(table, HERE, token="b", now=later(101 + LEASE_SECONDS))
    with pytest.raises(LeaseHeld, match=f"pid {os.getpid()}"):
        renew(table, first, now=later(102 + LEASE_SECONDS))
    release(table, first, now=later(103 + LEASE_SECONDS))  # changes nothing of its successor's

    with pytest.raises(LeaseHeld, match=f"pid {os.getpid()}"):
        acquire(table, ELSEWHERE, token="c", now=later(104 + LEASE_SECONDS))


def test_whoever_lost_a_lease_that_is_given_up_again_is_told_so() -> None:
    table = memory_store()
    first = acquire(table, ELSEWHERE, token="a", now=NOW)
    second = acquire(table, HERE, token="b", now=later(1000))
    release(table, second, now=later(1010))

    with pytest.raises(
        LeaseHeld, match=rf"was written by another process in the meantime \(.*pid {os.getpid()}\), which ended 5 s"
    ):
        renew(table, first, now=later(1015))


def test_a_holder_that_died_on_this_machine_is_taken_over_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
        dead = replace(HERE, pid=process.pid, started="1")
    table = memory_store()
    acquire(table, dead, token="a", now=NOW)

    assert acquire(table, HERE, token="b", now=later(1)).holder.token == "b"


def test_the_holder_is_reported_as_long_as_the_lease_is_held() -> None:
    table = memory_store()
    assert current_holder(table, HERE, NOW) is None

    lease = acquire(table, ELSEWHERE, token="a", now=NOW)

    assert current_holder(table, HERE, later(LEASE_SECONDS)) == lease.holder
    assert current_holder(table, HERE, later(LEASE_SECONDS + 1)) is None
    release(table, lease, now=later(1))
    assert current_holder(table, HERE, later(2)) is None


def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it() -> None:
    assert not is_dead(HERE, HERE)
    assert is_dead(replace(HERE, started="1"), HERE)
    assert not is_dead(replace(HERE, started="1", boot="another"), HERE)  # of another machine nothing is known
    assert not is_dead(replace(HERE, started="1", namespace="pid:[1]"), HERE)


@pytest.mark.parametrize("hidden", [FileNotFoundError, PermissionError])  # by hidepid=2 and hidepid=1
@pytest.mark.parametrize(("signal", "is_there"), [(PermissionError, True), (ProcessLookupError, False), (None, True)])
def test_a_process_that_proc_hides_is_alive_if_it_exists(
    hidden: type[OSError], signal: type[OSError] | None, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=hidden))
    kill = Mock(side_effect=signal)
    monkeypatch.setattr(os, "kill", kill)

    assert is_dead(HERE, HERE) is not is_there
    kill.assert_called_once_with(HERE.pid, 0)  # which does nothing to the process


def test_a_process_may_have_any_name(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 ("
    program.symlink_to("/bin/sh")
    with subprocess.Popen([program, "-c", "read line"], stdin=subprocess.PIPE) as process:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()

        assert writer_process._started(process.pid) == fields[19]
        process.kill()


def test_a_process_is_known_by_its_boot_its_namespace_and_its_start() -> None:
    fields = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()

    assert this_process() == Process(
        host=socket.gethostname(),
        boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        namespace=f"pid:[{Path('/proc/self/ns/pid').stat().st_ino}]",
        pid=os.getpid(),
        started=fields[19],  # proc(5): the 22nd field of all
    )


@pytest.mark.parametrize("hidden", [FileNotFoundError, PermissionError])  # on macOS, in containers
def test_without_proc_only_the_heartbeat_tells_that_a_holder_is_dead(
    hidden: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()  # its number is free, as that of a process on another machine may be here
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=hidden))
    here = this_process()
    elsewhere = replace(here, host="another", pid=process.pid)
    table = memory_store()
    lease = acquire(table, elsewhere, token="a", now=NOW)

    assert (here.boot, here.namespace, here.pid, here.started) == ("", "", os.getpid(), "unknown")
    assert not is_dead(elsewhere, here)
    assert current_holder(table, here, later(LEASE_SECONDS)) == lease.holder
    with pytest.raises(LeaseHeld, match=r"its lease is taken over after 600 s\.$"):
        acquire(table, here, token="b", now=later(LEASE_SECONDS))
    assert acquire(table, here, token="b", now=later(LEASE_SECONDS + 1)).holder.token == "b"


def test_of_two_that_take_over_at_once_one_is_refused() -> None:
    table = memory_store()
    acquire(table, ELSEWHERE, token="a", now=NOW)

    class Racing(MemoryStore):
        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            if if_match is not None:
                acquire(table, ELSEWHERE, token="faster", now=later(1000))
            return table.put(key, data, create=create, if_match=if_match)

        def get(self, key: str):  # type: ignore[no-untyped-def]
            return table.get(key)

    with pytest.raises(LeaseHeld, match="gpu-7"):
        acquire(Racing("memory://store"), HERE, token="b", now=later(1000))


def test_a_put_that_meets_itself_after_a_lost_answer_is_ours() -> None:
    table = LosingStore("memory://store")

    lease = acquire(table, HERE, token="a", now=NOW)
    lease = renew(table, lease, now=later(30))
    release(table, lease, now=later(60))

    assert acquire(table, ELSEWHERE, token="b", now=later(61)).holder.token == "b"


def test_a_lease_is_given_up_though_the_answer_to_the_heartbeat_before_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = memory_store()
    lease = acquire(table, ELSEWHERE, token="a", now=NOW)
    put = MemoryStore.put

    def losing(self: MemoryStore, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> None:
        put(self, key, data, create=create, if_match=if_match)
        raise StoreDown("the answer was lost")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "put", losing)
        with pytest.raises(StoreDown):
            renew(table, lease, now=later(30))
    release(table, lease, now=later(40))

    assert acquire(table, HERE, token="b", now=later(41)).holder.token == "b"


def test_every_kind_of_store_knows_one_writer(store: Store) -> None:
    said: list[str] = []
    with held(store, "a"):
        with pytest.raises(LeaseHeld, match=f"pid {os.getpid()}"), held(store, "b"):
            pass
        with pytest.raises(LeaseHeld), held(store, "b", wait_seconds=0.2, said=said):
            pass
    with held(store, "c"):
        pass
    assert said[0].startswith(f"waiting: table {store.uri} is being written by another process")


def test_a_store_that_answers_late_is_still_waited_for() -> None:
    clock = Clock()
    said: list[str] = []

    def take() -> str:
        clock.sleep(10)
        if clock.seconds < 25:
            raise LeaseHeld("a is writing")
        return "taken"

    assert module._wait_for(take, 5, said.append, clock) == "taken"
    assert (said, clock.seconds) == (["waiting: a is writing"], 25)


def test_without_time_to_wait_nothing_is_waited_for() -> None:
    take = Mock(side_effect=LeaseHeld("a is writing"))

    with pytest.raises(LeaseHeld, match="a is writing"):
        module._wait_for(take, 0, Mock(side_effect=AssertionError), Clock())
    assert take.call_count == 1


def test_the_thread_of_heartbeats_has_a_name_and_does_not_keep_its_process_alive() -> None:
    def beating() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "lease"]

    with held(memory_store()):
        (thread,) = beating()
        assert thread.daemon
    assert beating() == []


def check_until(check: Callable[[], None], *, seconds: float) -> None:
    """Check again and again, until it raises or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check()
        time.sleep(0.01)


def test_a_start_that_has_lost_its_lease_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    table = memory_store()
    with holding(table, can_swap=True, token="a", wait_seconds=0, say=lambda _: None) as check_lease:
        check_lease()
        table.put(LEASE_KEY, module._encode(module.Holder("b", ELSEWHERE, NOW, NOW)))
        with pytest.raises(RayDetrError, match=r"has lost its lease: table memory://store is being written .*gpu-7"):
            check_until(check_lease, seconds=20)


def test_heartbeats_and_giving_up_go_through_the_store_that_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    table = memory_store()
    puts: list[str] = []
    is_held = threading.Event()

    class Impatient(MemoryStore):
        def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
            assert is_held.wait(20)
            puts.append(key)
            return table.put(key, data, create=create, if_match=if_match)

        def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
            return table.list(prefix, after)

    table.put("_runs/_order/0000001.json", b"{}")
    with holding(
        table, can_swap=True, token="a", wait_seconds=0, say=lambda _: None, quick=Impatient("memory://table")
    ):
        assert puts == []
        is_held.set()
        wait_until(lambda: bool(puts))
    assert len(puts) >= 2
    assert set(puts) == {LEASE_KEY}
    assert acquire(table, ELSEWHERE, token="b", now=datetime.now(UTC)).holder.token == "b"


def test_a_store_that_is_down_for_a_while_loses_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    table = memory_store()
    with holding(table, can_swap=True, token="a", wait_seconds=0, say=lambda _: None) as check_lease:
        with monkeypatch.context() as patched:

            def fail(*_: object, **__: object) -> None:
                raise StoreDown("no answer")

            patched.setattr(MemoryStore, "put", fail)
            threading.Event().wait(0.1)
        threading.Event().wait(0.1)
        check_lease()
        with pytest.raises(LeaseHeld):
            acquire(table, ELSEWHERE, token="b", now=datetime.now(UTC))


@pytest.mark.parametrize("record", [b'{"token": 1}', b"\xff", b"[]", b"[" * 100_000])
def test_a_damaged_lease_is_reported(record: bytes) -> None:
    table = memory_store()
    table.put(LEASE_KEY, record)

    with pytest.raises(
        Misconfigured, match=r"memory://store/_lease.json is damaged: .*Remove it if no process is writing"
    ):
        acquire(table, HERE, token="b", now=NOW)


def test_a_damaged_record_in_a_folder_matters_to_nobody_who_has_the_lock(tmp_path: Path) -> None:
    table = open_store(str(tmp_path))
    table.put(LEASE_KEY, b'{"token": 1}')

    with held(table), pytest.raises(LeaseHeld, match=f"pid {os.getpid()}"), held(table, "c"):
        pass


def test_a_store_that_can_hold_no_lease_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    table = memory_store()
    with holding(table, can_swap=False, token="a", wait_seconds=0, say=lambda _: None) as check_lease:
        check_lease()

    assert "memory://store does not support a lease: overlapping commands on it repeat work" in caplog.text
    assert list(table.list()) == []


def test_a_heart_that_stops_for_an_unforeseen_reason_is_a_lost_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))
    table = memory_store()
    with holding(table, can_swap=True, token="a", wait_seconds=0, say=lambda _: None) as check_lease:
        monkeypatch.setattr(module, "renew", None)
        wait_until(lambda: bool(seen))
        with pytest.raises(RayDetrError, match=r"lost its lease: its heartbeat has stopped; the log says why\. Run"):
            check_lease()
    assert isinstance(seen[0], TypeError)


def test_a_dead_process_that_its_parent_has_not_asked_for_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    alive = replace(HERE, pid=process.pid, started=writer_process._started(process.pid) or "")
    assert not is_dead(alive, HERE)
    assert process.stdin is not None
    process.stdin.close()
    wait_until(lambda: is_dead(alive, HERE))

    assert Path(f"/proc/{process.pid}").exists()
    process.wait()


def test_the_record_of_a_folder_says_who_writes_since_when_and_that_it_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    table = open_store(str(tmp_path))
    table.put("_runs/_order/0000001.json", b"{}")

    def record() -> dict[str, Any]:
        read: dict[str, Any] = json.loads(table.get(LEASE_KEY).data)
        return read

    with held(table, "a"):
        first = record()
        wait_until(lambda: record()["heartbeat_at"] != first["heartbeat_at"])
        later = record()
        assert later["heartbeat_at"] > first["heartbeat_at"] >= first["acquired_at"]
        assert (later["token"], later["process"]["pid"], later["is_released"]) == ("a", os.getpid(), False)
    assert record()["is_released"] is True


def test_a_killed_holder_of_a_folder_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pipelines.labelling.lease import holding\nfrom pipelines.store import open_store\n"
        "with holding(open_store(sys.argv[1]), can_swap=False, token='a', wait_seconds=0, say=print):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    table = open_store(str(tmp_path / "table"))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "table")], cwd=ROOT, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeld, match=f"pid {other.pid}"), held(table):
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()

        with held(table):
            pass


def test_a_local_lease_that_could_not_be_written_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_store(str(tmp_path / "table"))

    def fail(*_: object, **__: object) -> None:
        raise StoreDown("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(type(table), "put", fail)
        with pytest.raises(StoreDown), held(table):
            pass

    with held(table):
        pass


def test_a_start_that_wrote_nothing_leaves_no_table(store: Store) -> None:
    with pytest.raises(RayDetrError), held(store):
        raise RayDetrError("no cluster.")

    assert list(store.list()) == []
    with held(store):  # and nothing is in the way of the next
        store.put("_runs/_order/0000001.json", b"{}")
    assert LEASE_KEY in {entry.key for entry in store.list()}
    with held(store):
        pass
    assert LEASE_KEY in {entry.key for entry in store.list()}


def test_a_lease_that_was_there_before_is_left_though_nothing_else_is() -> None:
    table = memory_store()
    release(table, acquire(table, ELSEWHERE, token="a", now=NOW), now=later(1))

    with held(table):
        pass

    assert json.loads(table.get(LEASE_KEY).data)["is_released"] is True


@pytest.mark.parametrize(("silent_seconds", "is_deleted"), [(1, True), (LEASE_SECONDS / 2, True), (301, False)])
def test_a_lease_is_deleted_only_while_it_is_certainly_held(silent_seconds: float, *, is_deleted: bool) -> None:
    class Watched(MemoryStore):
        def delete(self, key: str) -> None:
            deleted.append(key)
            super().delete(key)

    table, clock, deleted = Watched("memory://table"), Clock(), list[str]()
    with holding(table, can_swap=True, token="a", wait_seconds=0, say=lambda _: None, clock=clock):
        clock.seconds += silent_seconds

    assert deleted == [LEASE_KEY] * is_deleted
    assert list(table.list()) == [] if is_deleted else json.loads(table.get(LEASE_KEY).data)["is_released"]


def test_a_lease_is_not_deleted_where_other_objects_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = memory_store()
    with held(table):
        monkeypatch.setattr(table, "list", Mock(side_effect=StoreDown("no answer")))

    assert json.loads(table.get(LEASE_KEY).data)["is_released"] is True


def test_a_lease_of_somebody_else_is_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    table = memory_store()
    with held(table, "a"):
        table.put(LEASE_KEY, module._encode(module.Holder("b", ELSEWHERE, NOW, NOW)))
        monkeypatch.setattr(module, "LEASE_SECONDS", -1.0)  # as after a heartbeat that was refused for so long

    assert json.loads(table.get(LEASE_KEY).data)["token"] == "b"


def test_a_lock_on_a_file_that_was_removed_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_store(str(tmp_path / "table"))
    assert isinstance(table, LocalStore)
    flock = fcntl.flock

    def removed_meanwhile(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(descriptor, how)
        table.delete("lock")

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    descriptor = table.lock("lock")

    assert descriptor is not None
    assert table.lock("lock") is None  # the file that is there is locked
    os.close(descriptor)


def test_a_lease_that_may_not_be_deleted_is_released() -> None:
    class Undeletable(MemoryStore):
        def delete(self, key: str) -> None:
            raise Denied(f"{key}: denied.")

    table = Undeletable("memory://store")

    with held(table, "a"):
        pass

    with held(table, "b"):  # is not in the way of the next
        pass


def test_a_lease_that_its_holder_deletes_meanwhile_is_taken() -> None:
    class Vanishing(MemoryStore):
        def get(self, key: str, **options: Any) -> Blob:
            self.delete(key)  # between the refused put and this
            return super().get(key, **options)

    table = Vanishing("memory://store")
    table.put(LEASE_KEY, module._encode(module.Holder("b", ELSEWHERE, NOW, NOW)))

    assert acquire(table, HERE, token="a", now=later(1)).is_new
