"""The program that decodes suspect images in isolation: `python -m pipelines.labelling.decoding_child SETTINGS`.

The fork server imports torch once and forks a supervisor for each connection to the actor. A supervisor forks a worker,
passes it one image, watches it, and reports to the actor how that ended. Only workers read the content of an image. A
worker may read several headers, but it decodes one image only and then exits, so that no image is decoded by a process
that another image has damaged. The fork server is started by exec and imports neither Ray nor a store: it has a single
thread, so forking it is safe.

The actor passes images and receives pixels in memory files that it creates. Everything else is one JSON object in a
packet.
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

PACKET_BYTES = 64 * 1024  # more than a request or a response needs
TICK_SECONDS = 0.1  # between two checks of a worker
STDERR_BYTES = 16 * 1024  # how much of a worker's standard error is read
_PR_SET_PDEATHSIG = 1
_DAMAGING = {"out_of_memory", "crashed"}  # a worker that reported one of these is not used again
_NO_MEMORY = ("allocate", "out of memory", "bad_alloc")  # text of torch's RuntimeError for a MemoryError


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the processes of one decoder: sockets, the model's size rule, and the limits for one image."""

    sockets: tuple[int, ...]
    size_rule: SizeRule | None
    max_pixels: int
    cpu_seconds: float
    asleep_seconds: float
    memory_bytes: int

    def to_json(self) -> str:
        """Return the settings as one command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Parse the result of `to_json`."""
        fields = json.loads(text)
        rule = fields["size_rule"]
        return cls(
            **{
                **fields,
                "sockets": tuple(fields["sockets"]),
                "size_rule": None if rule is None else SizeRule(**rule),
            }
        )

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image is resized to; without a size rule it is not resized."""
        return (height, width) if self.size_rule is None else self.size_rule.shape(height, width)


def main(argv: Sequence[str]) -> None:
    """Fork a supervisor for each socket and wait for them; they exit when the actor closes its ends."""
    settings = Settings.from_json(argv[0])
    load_decoder()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # it may be inherited as ignored, and then exit codes would be lost
    for place, number in enumerate(settings.sockets):
        if os.fork() == 0:
            for other in settings.sockets[place + 1 :]:  # the earlier ones are already closed
                os.close(other)  # otherwise the actor would not notice that its supervisor has exited
            _run_and_end(lambda number=number: supervise(socket.socket(fileno=number), settings))  # type: ignore[misc]
        os.close(number)
    for _ in settings.sockets:
        os.wait()


def supervise(actor: socket.socket, settings: Settings) -> None:
    """Pass the actor's requests to workers, one after the other, until the actor closes its end."""
    worker: _Worker | None = None
    while True:
        worker = worker or _Worker(actor, settings)  # forked before the actor's next request arrives
        message, files, _, _ = socket.recv_fds(actor, PACKET_BYTES, 2)
        if not message:
            break
        report = worker.request(message, files)
        for file in files:
            os.close(file)
        if worker.is_used:
            report |= worker.end()
            worker = None
        actor.send(json.dumps(report).encode())
    worker.end()


class _Worker:
    """A process that decodes at most one image. Its parent learns exactly how it ended."""

    def __init__(self, actor: socket.socket, settings: Settings) -> None:
        self._actor, self._settings = actor, settings
        self.is_used = False
        self._stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            actor.close()
            self._socket.close()
            _run_and_end(lambda: serve(other, self._stderr, settings))
        other.close()
        self._ended = os.pidfd_open(self._pid)

    def request(self, message: bytes, files: Sequence[int]) -> dict[str, Any]:
        """Pass a request to the worker and report how it ended: answered, died, lost, computing or asleep too long."""
        self.is_used = json.loads(message)["request"] == "prepare"
        watch = Stopwatch(self._pid)
        poll = select.poll()
        for event in (self._socket, self._ended, self._actor):
            poll.register(event, select.POLLIN)
        try:
            socket.send_fds(self._socket, [message], files)
        except OSError:  # it exited before this request, so the image is not the cause
            return self._report("lost", watch)
        while True:
            ready = {number for number, _ in poll.poll(TICK_SECONDS * 1000)}
            if self._socket.fileno() in ready:
                packet = _receive(self._socket)
                if packet:
                    answer = json.loads(packet)
                    self.is_used |= answer.get("kind") in _DAMAGING
                    return self._report("answered", watch) | {"answer": answer}
            if self._ended in ready:
                return self._report("died", watch)
            if self._actor.fileno() in ready:  # it sends nothing during a request, so it has exited
                self.end()
                os._exit(0)
            spent = watch.read()
            if spent.computing > self._settings.cpu_seconds:
                return self._report("computing", watch)
            if spent.asleep > self._settings.asleep_seconds:
                return self._report("asleep", watch)

    def end(self) -> dict[str, Any]:
        """Kill the worker unless it has exited; return its exit code, resource usage and standard error."""
        os.kill(self._pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own
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
            self.is_used = True  # its state is unknown
        spent = watch.read()
        return {
            "ended": ended,
            "wall_seconds": spent.wall,
            "asleep_seconds": spent.asleep,
            "free_bytes": free_bytes(),
        }


def serve(supervisor: socket.socket, stderr: int, settings: Settings) -> None:
    """Answer requests, as a worker, until the supervisor closes its end; the kernel kills it with the supervisor."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    # 1 byte writes no core file and starts no collector; with 0, core_pattern's collector would still be started
    _limit(resource.RLIMIT_CORE, 1)
    # private writable memory, not RLIMIT_AS: torch's libraries alone map gigabytes of addresses that they do not use
    _limit(resource.RLIMIT_DATA, _data_bytes() + settings.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, 3 * settings.max_pixels + STDERR_BYTES)  # Python ignores its signal
    Path("/proc/self/oom_score_adj").write_text("1000")  # if the machine runs out of memory, kill this process first
    while True:
        message, files, _, _ = socket.recv_fds(supervisor, PACKET_BYTES, 2)
        if not message:
            return
        image, pixels = files
        if json.loads(message)["request"] == "header":
            answer = _read_header(image, settings)
        else:
            answer = _prepare(image, pixels, settings)
        supervisor.send(json.dumps(answer).encode())
        for file in files:
            os.close(file)


def machine_bytes() -> int:
    """Return the memory of this machine or container."""
    machine, (limit, _) = _meminfo("MemTotal"), _group()
    return machine if limit is None else min(machine, limit)


def free_bytes() -> int:
    """Return the memory of this machine or container that is available."""
    machine, (limit, now) = _meminfo("MemAvailable"), _group()
    return machine if limit is None else min(machine, limit - now)


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _group() -> tuple[int | None, int]:
    """Return the memory limit of the control group (None: no limit) and its current usage."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, now = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except FileNotFoundError:  # the machine's root group has no such files
        return None, 0
    return None if limit == "max" else int(limit), int(now)


def _read_header(image: int, settings: Settings) -> Mapping[str, Any]:
    try:
        data = os.pread(image, os.fstat(image).st_size, 0)
        header = read_header(data, max_pixels=settings.max_pixels)
    except Exception as error:  # noqa: BLE001 - the boundary of a process: it becomes a response
        return _failure(error)
    taken_at = None if header.taken_at is None else header.taken_at.isoformat()
    return {"header": {**asdict(header), "taken_at": taken_at}}


def _prepare(image: int, pixels: int, settings: Settings) -> Mapping[str, Any]:
    try:
        data = os.pread(image, os.fstat(image).st_size, 0)
        picture = decode(data, max_pixels=settings.max_pixels)
        height, width = picture.shape[1:]
        shape = settings.shape(height, width)
        small = resize(picture, *shape).permute(1, 2, 0).contiguous().numpy().tobytes()
    except Exception as error:  # noqa: BLE001 - the boundary of a process: it becomes a response
        return _failure(error)
    left = memoryview(small)
    try:
        while left:
            left = left[os.write(pixels, left) :]
    except OSError as error:
        return {"machine": f"its pixels could not be sent to the parent process: {error}"}
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
    """Return what RLIMIT_DATA counts: private writable memory of this process, torch's libraries included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def _limit(what: int, most: int) -> None:
    """Set a resource limit of this process, at most its hard limit."""
    given = resource.getrlimit(what)[1]
    most = most if given == resource.RLIM_INFINITY else min(most, given)
    resource.setrlimit(what, (most, most))


def _receive(worker: socket.socket) -> bytes:
    try:
        return worker.recv(PACKET_BYTES)
    except ConnectionResetError:  # it exited before it read the request
        return b""


def _run_and_end(run: Callable[[], None]) -> NoReturn:
    """Call a function and exit: a forked process must not continue with its parent's code."""
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
