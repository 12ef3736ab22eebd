"""Decode in child processes, so that a harmful image kills only its child: for shards that were lost before."""

import json
import mmap
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from signal import Signals
from typing import Any

import torch

from detr.batching import Prepared
from detr.images.decoding import (
    EmptyImage,
    Header,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    SizeRule,
    TooExtreme,
    TruncatedImage,
    UnreadableImage,
    UnsupportedImage,
)
from pipelines.labelling.decoding import DecodingLimits
from pipelines.labelling.decoding_child import PACKET_BYTES, Settings, machine_bytes

CHILD = "pipelines.labelling.decoding_child"
MOST_TRIES = 3  # for an image whose decoder is killed from outside each time
# Signals that a process causes itself. All others are external: an operator, or the out-of-memory killer.
_OWN_SIGNALS = {
    Signals.SIGSEGV,
    Signals.SIGABRT,
    Signals.SIGBUS,
    Signals.SIGILL,
    Signals.SIGFPE,
    Signals.SIGTRAP,
    Signals.SIGSYS,
}
# Environment variables that are passed to children; no credentials.
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "TZ", "SYSTEMROOT")
_KEPT_PREFIXES = ("LC_", "LD_", "PYTHON")


class DecoderCrashed(ImageError):
    """Decoding the image kills its process, or raises an exception that no damaged file should."""

    kind = "crashed"


class DecodeTimeout(ImageError):
    """Decoding the image exceeds its limit of CPU time, or of time asleep."""

    kind = "decode_timeout"


class OutOfMemory(ImageError):
    """Decoding the image takes more memory than the largest allowed image."""

    kind = "out_of_memory"


class DecoderLost(Exception):
    """Decoding processes were repeatedly killed from outside: nothing is known about the image."""


_BY_KIND = {
    error.kind: error
    for error in (EmptyImage, NotAnImage, UnsupportedImage, TruncatedImage, UnreadableImage, ImageTooLarge, TooExtreme)
}


@dataclass(frozen=True, slots=True)
class Report:
    """The end of one request to a worker, as reported by its supervisor; see `decoding_child`.

    Attributes:
        ended: "answered", "died", "lost", or "computing" or "asleep" for too long.
        answer: The response, if it answered.
        exit_code: Of the process; negative is a signal. It is killed after its response as well.
        cpu_seconds: CPU time of the process.
        asleep_seconds: How long no thread of it ran or waited for a core or a disk.
        wall_seconds: Wall time of the request.
        peak_bytes: Peak memory of the process, including about 700 MB for libraries.
        free_bytes: Memory of the machine that was available at the end.
        said: Its standard error.
    """

    ended: str
    answer: Mapping[str, Any] | None = None
    exit_code: int | None = None
    cpu_seconds: float = 0.0
    asleep_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_bytes: int = 0
    free_bytes: int = 0
    said: str = ""


class DecoderInChild:
    """Decodes each image in a process of its own, one for each calling thread.

    An image that kills its process, hangs it or exhausts its memory becomes an `ImageError` with the evidence. If the
    machine or an operator killed the process, the image is tried again; after `MOST_TRIES`, `DecoderLost` is raised.
    """

    def __init__(self, *, size_rule: SizeRule | None, max_pixels: int, threads: int, limits: DecodingLimits) -> None:
        """Start the processes. The first image waits some seconds until they have imported torch.

        Args:
            size_rule: The model's; None does not resize.
            max_pixels: Larger images are refused after reading the header.
            threads: Number of images to decode concurrently.
            limits: For one image.
        """
        # the limit must be reached before the kernel's out-of-memory killer acts, whose kills are not blamed on images
        limits = replace(limits, memory_bytes=min(limits.memory_bytes, machine_bytes() // 2))
        self._limits = limits
        self._settings = Settings(
            sockets=(),
            size_rule=size_rule,
            max_pixels=max_pixels,
            cpu_seconds=limits.cpu_seconds,
            asleep_seconds=limits.asleep_seconds,
            memory_bytes=limits.memory_bytes,
        )
        self._fork_servers: list[subprocess.Popen[bytes]] = []
        self._supervisors: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._alone = threading.Lock()
        self._threads = threads
        for supervisor in self._start(threads):
            self._supervisors.put(supervisor)

    def read_header(self, data: bytes) -> Header:
        """Return the header of an image that can be decoded.

        Raises:
            ImageError: it cannot.
            DecoderLost: its processes were killed from outside.
        """
        answer, _ = self._ask("header", data)
        header: dict[str, Any] = answer["header"]
        taken_at = header["taken_at"]
        return Header(**{**header, "taken_at": None if taken_at is None else datetime.fromisoformat(taken_at)})

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized.

        Raises:
            ImageError: the image cannot be decoded.
            DecoderLost: its processes were killed from outside.
        """
        answer, pixels = self._ask("prepare", data)
        assert pixels is not None
        # channels-last, as returned by `detr.images.decoding.resize`
        return Prepared(pixels.view(*answer["shape"], 3).permute(2, 0, 1), answer["height"], answer["width"])

    def close(self) -> None:
        """End the processes. They also end with this process."""
        for _ in range(self._threads):
            self._supervisors.get().close()
        for server in self._fork_servers:
            server.wait()

    def _ask(self, request: str, data: bytes) -> tuple[Mapping[str, Any], torch.Tensor | None]:
        supervisor = self._supervisors.get()
        reasons = []
        try:
            for attempt in range(MOST_TRIES):
                with self._first_or_alone(attempt):
                    try:
                        report, pixels = _exchange(supervisor, request, data)
                    except ConnectionError:
                        reasons.append("its supervisor process ended")
                        supervisor.close()
                        (supervisor,) = self._start(1)
                        continue
                verdict = judge(report, self._limits)
                if isinstance(verdict, ImageError):
                    raise verdict
                if not isinstance(verdict, str):
                    return verdict, pixels
                reasons.append(verdict)
        finally:
            self._supervisors.put(supervisor)
        raise DecoderLost(
            f"an image of {len(data):,} bytes could not be decoded in {MOST_TRIES} attempts; none failed because "
            f"of the image: {'; '.join(reasons)}"
        )

    @contextmanager
    def _first_or_alone(self, attempt: int) -> Iterator[None]:
        """Run retries one at a time: the machine may have lacked memory for several."""
        if attempt == 0:
            yield
            return
        with self._alone:
            yield

    def _start(self, count: int) -> list[socket.socket]:
        """Start a fork server with `count` supervisors and return the connections to them."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        theirs = [pair[1].fileno() for pair in pairs]
        settings = replace(self._settings, sockets=tuple(theirs))
        server = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", CHILD, settings.to_json()],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=2,
            env=child_environment(os.environ),
            start_new_session=True,  # Ctrl-C is handled by the actor
        )
        self._fork_servers.append(server)
        for _, other in pairs:
            other.close()
        return [ours for ours, _ in pairs]


def judge(report: Report, limits: DecodingLimits) -> Mapping[str, Any] | ImageError | str:
    """Return the response, the error of the image, or, as text, why this attempt is inconclusive."""
    answer = report.answer or {}
    if "machine" in answer:
        return str(answer["machine"])
    if report.ended == "answered" and "kind" not in answer:
        return answer
    if answer.get("kind") == OutOfMemory.kind or "bad_alloc" in report.said:
        if report.free_bytes + report.peak_bytes < limits.memory_bytes:
            return f"the machine had {_megabytes(report.free_bytes)} of memory left"
        return OutOfMemory(
            f"decoding it takes more than the {_megabytes(limits.memory_bytes)} of memory that an image may take "
            f"({answer.get('text') or _how(report.exit_code)}; {_evidence(report)})"
        )
    if answer.get("kind") == DecoderCrashed.kind:
        return DecoderCrashed(f"decoding it raised {answer['text']} ({_evidence(report)})")
    if answer:
        return _BY_KIND[answer["kind"]](answer["text"])
    if report.ended == "computing":
        return DecodeTimeout(
            f"decoding it was stopped for taking more than the {limits.cpu_seconds:g} s of CPU time that an image "
            f"may take ({_evidence(report)})"
        )
    if report.ended == "asleep":
        return DecodeTimeout(
            f"decoding it was stopped for sleeping longer than {limits.asleep_seconds:g} s, as in a deadlock: it was "
            f"not waiting for a core or a disk ({_evidence(report)})"
        )
    if (
        report.ended == "died"
        and report.exit_code is not None
        and (report.exit_code >= 0 or -report.exit_code in _OWN_SIGNALS)
    ):
        said = f"; last line of its output: {report.said.splitlines()[-1][:300]}" if report.said else ""
        return DecoderCrashed(f"decoding it ended its process by {_how(report.exit_code)} ({_evidence(report)}{said})")
    if report.ended == "lost":
        return "its process had already ended"
    return f"its process was ended by {_how(report.exit_code)}, sent by another process"


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of child processes: what Python needs, without credentials.

    `sys.path`, which Ray may have extended, is passed as PYTHONPATH. Libraries use one thread, because there is a child
    for every core. Heap memory is in huge pages, so that a fork copies fewer page tables.
    """
    kept = {name: value for name, value in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    paths = [str(Path(path).absolute()) for path in sys.path]  # "" is the current folder
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONMALLOC": "malloc",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _exchange(supervisor: socket.socket, request: str, data: bytes) -> tuple[Report, torch.Tensor | None]:
    """Send a request with an image to a supervisor; return its report, and the pixels as `(bytes,)` uint8 if any."""
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    pixels = os.memfd_create("pixels", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(image, left) :]
        socket.send_fds(supervisor, [json.dumps({"request": request}).encode()], [image, pixels])
        packet = supervisor.recv(PACKET_BYTES)
        if not packet:
            raise ConnectionResetError("the supervisor has ended")
        size = os.fstat(pixels).st_size
        mapped = torch.frombuffer(mmap.mmap(pixels, size), dtype=torch.uint8) if size else None
    finally:
        os.close(image)
        os.close(pixels)
    return Report(**json.loads(packet)), mapped


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "an unknown cause"
    return f"exit code {exit_code}" if exit_code >= 0 else Signals(-exit_code).name


def _evidence(report: Report) -> str:
    return (
        f"{report.cpu_seconds:.1f} s of CPU time, {report.wall_seconds:.1f} s in all, "
        f"peak memory {_megabytes(report.peak_bytes)}"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
