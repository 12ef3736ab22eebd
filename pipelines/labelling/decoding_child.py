"""The program of the processes that decode suspects: `python -m pipelines.labelling.decoding_child SETTINGS`.

The nursery imports torch once and forks a warden for each connection to the actor. A warden forks a worker, gives it
one image, watches it, and tells the actor how that went. Only workers touch what is in an image: each may read headers,
then decodes one picture and ends, so no picture meets a process that another one has damaged. The nursery is started
by exec and imports neither Ray nor a store, so it has one thread and forking it is safe.

Images come, and pixels go back, in memory files that the actor makes; all else is a line of JSON in a packet.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from detr.images.decoding import ImageError, SizeRule, decode, read_header, resize
from detr.images.heic import load_decoder
from pipelines.labelling.process_time import Stopwatch

PACKET_BYTES = 64 * 1024  # more than a request or an answer has
TICK_SECONDS = 0.1  # between two looks at a worker
STDERR_BYTES = 16 * 1024  # of what a worker writes, that are read
_PR_SET_PDEATHSIG = 1
_SCARS = {"out_of_memory", "crashed"}  # after such a failure even a worker that read a header only is not trusted again
_NO_MEMORY = ("allocate", "out of memory", "bad_alloc")  # how torch's RuntimeError says what others say by MemoryError


@dataclass(frozen=True, slots=True)
class Settings:
    """What the children of one decoder know: their sockets, the model's size rule, and what an image may take."""

    sockets: tuple[int, ...]
    size_rule: SizeRule
    max_pixels: int
    cpu_seconds: float
    asleep_seconds: float
    memory_bytes: int

    def to_json(self) -> str:
        """Return it as an argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "sockets": tuple(fields["sockets"]), "size_rule": SizeRule(**fields["size_rule"])})


def main(argv: Sequence[str]) -> None:
    """Fork a warden for each socket, and wait until all have ended: they do when the actor has closed its ends."""
    settings = Settings.from_json(argv[0])
    load_decoder()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited, and we want to know how children end
    for place, number in enumerate(settings.sockets):
        if os.fork() == 0:
            for other in settings.sockets[place + 1 :]:  # those before are closed already
                os.close(other)  # else the actor would not notice that its warden is gone
            _run_and_end(lambda number=number: keep(socket.socket(fileno=number), settings))  # type: ignore[misc]
        os.close(number)
    for _ in settings.sockets:
        os.wait()


def keep(actor: socket.socket, settings: Settings) -> None:
    """Have one image after the other looked at or prepared in a worker, until the actor closes its end."""
    worker: _Worker | None = None
    while True:
        worker = worker or _Worker(actor, settings)  # forked while the actor has not asked yet
        message, files, _, _ = socket.recv_fds(actor, PACKET_BYTES, 2)
        if not message:
            break
        report = worker.serve(message, files)
        for file in files:
            os.close(file)
        if worker.is_used:
            report |= worker.end()
            worker = None
        actor.send(json.dumps(report).encode())
    worker.end()


class _Worker:
    """A process that decodes one picture at most; as its parent, we know all about its end."""

    def __init__(self, actor: socket.socket, settings: Settings) -> None:
        self._actor, self._settings = actor, settings
        self.is_used = False
        self._stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            actor.close()
            self._socket.close()
            _run_and_end(lambda: work(other, self._stderr, settings))
        other.close()
        self._ended = os.pidfd_open(self._pid)

    def serve(self, message: bytes, files: Sequence[int]) -> dict[str, Any]:
        """Pass a request on and watch; say how it ended: answered, died, lost, or too long computing or asleep."""
        self.is_used = json.loads(message)["work"] == "prepare"
        watch = Stopwatch(self._pid)
        poll = select.poll()
        for event in (self._socket, self._ended, self._actor):
            poll.register(event, select.POLLIN)
        try:
            socket.send_fds(self._socket, [message], files)
        except OSError:  # it ended while it waited, so this image has nothing to do with it
            return self._report("lost", watch)
        while True:
            ready = {number for number, _ in poll.poll(TICK_SECONDS * 1000)}
            if self._socket.fileno() in ready:
                packet = _receive(self._socket)
                if packet:
                    answer = json.loads(packet)
                    self.is_used |= answer.get("kind") in _SCARS
                    return self._report("answered", watch) | {"answer": answer}
            if self._ended in ready:
                return self._report("died", watch)
            if self._actor.fileno() in ready:  # it does not speak out of turn, so it is gone
                self.end()
                os._exit(0)
            spent = watch.read()
            if spent.computing > self._settings.cpu_seconds:
                return self._report("computing", watch)
            if spent.asleep > self._settings.asleep_seconds:
                return self._report("asleep", watch)

    def end(self) -> dict[str, Any]:
        """Kill it, unless it has ended, and return how it died, what it took in all, and what it said."""
        os.kill(self._pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        _, status, usage = os.wait4(self._pid, 0)
        said = os.pread(self._stderr, STDERR_BYTES, 0).decode(errors="replace").strip()
        for number in (self._ended, self._stderr):
            os.close(number)
        self._socket.close()
        return {
            "exit_code": os.waitstatus_to_exitcode(status),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * 1024,
            "said": said,
        }

    def _report(self, ended: str, watch: Stopwatch) -> dict[str, Any]:
        if ended != "answered":
            self.is_used = True  # whatever it did, nobody else gets it
        spent = watch.read()
        return {
            "ended": ended,
            "wall_seconds": spent.wall,
            "asleep_seconds": spent.asleep,
            "free_bytes": free_bytes(),
        }


def work(warden: socket.socket, stderr: int, settings: Settings) -> None:
    """Answer requests until the warden closes its end or kills us; dies with the warden."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    # of 1 byte there is neither a file nor a pipe to a collector, which a limit of 0 would not stop; 0 stays 0
    _limit(resource.RLIMIT_CORE, 1)
    # private writable memory, and not RLIMIT_AS: of addresses torch's libraries alone take gigabytes, unused
    _limit(resource.RLIMIT_DATA, _data_bytes() + settings.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, 3 * settings.max_pixels + STDERR_BYTES)  # Python ignores its signal
    Path("/proc/self/oom_score_adj").write_text("1000")  # where the machine has no memory left, rather us than others
    while True:
        message, files, _, _ = socket.recv_fds(warden, PACKET_BYTES, 2)
        if not message:
            return
        image, pixels = files
        answer = _look(image, settings) if json.loads(message)["work"] == "look" else _prepare(image, pixels, settings)
        warden.send(json.dumps(answer).encode())
        for file in files:
            os.close(file)


def machine_bytes() -> int:
    """Return how much memory there is, in this container."""
    machine, (limit, _) = _meminfo("MemTotal"), _group()
    return machine if limit is None else min(machine, limit)


def free_bytes() -> int:
    """Return how much memory could be taken here, in this container, without anybody else losing theirs."""
    machine, (limit, now) = _meminfo("MemAvailable"), _group()
    return machine if limit is None else min(machine, limit - now)


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _group() -> tuple[int | None, int]:
    """Return the limit of the container's control group, None if it has none, and what it uses now."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, now = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except FileNotFoundError:  # the machine's root group has no such files
        return None, 0
    return None if limit == "max" else int(limit), int(now)


def _look(image: int, settings: Settings) -> Mapping[str, Any]:
    try:
        data = os.pread(image, os.fstat(image).st_size, 0)
        header = read_header(data, max_pixels=settings.max_pixels)
        settings.size_rule.shape(header.height, header.width)
    except Exception as error:  # noqa: BLE001 - the boundary of a process: it becomes an answer
        return _failure(error)
    taken_at = None if header.taken_at is None else header.taken_at.isoformat()
    return {"header": {**asdict(header), "taken_at": taken_at}}


def _prepare(image: int, pixels: int, settings: Settings) -> Mapping[str, Any]:
    try:
        data = os.pread(image, os.fstat(image).st_size, 0)
        picture = decode(data, max_pixels=settings.max_pixels)
        height, width = picture.shape[1:]
        shape = settings.size_rule.shape(height, width)
        small = resize(picture, *shape).permute(1, 2, 0).contiguous().numpy().tobytes()
    except Exception as error:  # noqa: BLE001 - the boundary of a process: it becomes an answer
        return _failure(error)
    left = memoryview(small)
    try:
        while left:
            left = left[os.write(pixels, left) :]
    except OSError as error:
        return {"machine": f"its pixels could not be handed over: {error}"}
    return {"height": height, "width": width, "shape": shape}


def _failure(error: Exception) -> Mapping[str, Any]:
    if isinstance(error, ImageError):
        return {"kind": error.kind, "text": str(error)}
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    is_memory = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(hint in str(error) for hint in _NO_MEMORY)
    )
    return {"kind": "out_of_memory" if is_memory else "crashed", "text": text[:1000]}


def _data_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process now: private writable memory, torch's libraries included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def _limit(what: int, most: int) -> None:
    """Limit what this process may take, but never above what it was given."""
    given = resource.getrlimit(what)[1]
    most = most if given == resource.RLIM_INFINITY else min(most, given)
    resource.setrlimit(what, (most, most))


def _receive(worker: socket.socket) -> bytes:
    try:
        return worker.recv(PACKET_BYTES)
    except ConnectionResetError:  # it died before it had read what we sent
        return b""


def _run_and_end(run: Callable[[], None]) -> NoReturn:
    """Run something, and end the process: one that was forked must not go on with what its parent was doing."""
    code = 1
    try:
        run()
        code = 0
    except Exception:  # noqa: BLE001 - the boundary of a process
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _run_and_end(lambda: main(sys.argv[1:]))
