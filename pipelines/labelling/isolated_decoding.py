"""Decoding where an image can kill a child process only: for shards that were lost before."""

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
MOST_TRIES = 3  # of an image whose decoder is ended by somebody else each time
# What a process dies of by its own doing. Any other signal is sent: by an operator, or by a machine without memory.
_OWN_DOING = {
    Signals.SIGSEGV,
    Signals.SIGABRT,
    Signals.SIGBUS,
    Signals.SIGILL,
    Signals.SIGFPE,
    Signals.SIGTRAP,
    Signals.SIGSYS,
}
# What children need of our environment: credentials are none of their business.
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "TZ", "SYSTEMROOT")
_KEPT_PREFIXES = ("LC_", "LD_", "PYTHON")


class DecoderCrashed(ImageError):
    """Decoding it kills the process, or raises what no damaged file should."""

    kind = "crashed"


class DecodeTimeout(ImageError):
    """Decoding it does not come to an end, though it has a core, or sleeps."""

    kind = "decode_timeout"


class OutOfMemory(ImageError):
    """Decoding it takes more memory than the largest picture that is allowed."""

    kind = "out_of_memory"


class DecoderLost(Exception):
    """The machine ends the processes that decode, again and again: nothing is known about the image."""


_BY_KIND = {
    error.kind: error
    for error in (EmptyImage, NotAnImage, UnsupportedImage, TruncatedImage, UnreadableImage, ImageTooLarge, TooExtreme)
}


@dataclass(frozen=True, slots=True)
class Report:
    """How one request to a worker ended, as its warden saw it; see `decoding_child`.

    Attributes:
        ended: answered, died, lost, or too long computing or asleep.
        answer: what it found, when it answered.
        exit_code: of the process; negative is a signal. It is killed after its answer, too.
        cpu_seconds: of the process.
        asleep_seconds: how long it waited for nothing that would come.
        wall_seconds: of the request.
        peak_bytes: of the process, with some 700 MB of libraries.
        free_bytes: memory of the machine that was free at the end.
        said: the last that it wrote.
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
    """Decodes each image in a process that nothing else is decoded in; as many at once as threads call.

    An image that kills, hangs or starves its process becomes an `ImageError` with its evidence. What the machine or an
    operator did is never blamed on an image: it is tried again, then `DecoderLost` is raised.
    """

    def __init__(self, *, size_rule: SizeRule, max_pixels: int, threads: int, limits: DecodingLimits) -> None:
        """Start the processes; the first image waits the seconds that they take to import torch.

        Args:
            size_rule: the model's.
            max_pixels: larger pictures are refused by their header.
            threads: how many images are decoded at once.
            limits: what an image may take.
        """
        # where the largest picture would not fit, the machine's own out-of-memory killer must not come first: its
        # victims are never blamed
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
        self._nurseries: list[subprocess.Popen[bytes]] = []
        self._wardens: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._alone = threading.Lock()
        self._threads = threads
        for warden in self._start(threads):
            self._wardens.put(warden)

    def look(self, data: bytes) -> Header:
        """Return what the header says of an image that can be decoded and resized.

        Raises:
            ImageError: it cannot.
            DecoderLost: the machine does not let us know.
        """
        answer, _ = self._ask("look", data)
        header: dict[str, Any] = answer["header"]
        taken_at = header["taken_at"]
        return Header(**{**header, "taken_at": None if taken_at is None else datetime.fromisoformat(taken_at)})

    def prepare(self, data: bytes) -> Prepared:
        """Return the image decoded, upright and resized.

        Raises:
            ImageError: what is wrong with it.
            DecoderLost: the machine does not let us know.
        """
        answer, pixels = self._ask("prepare", data)
        assert pixels is not None
        # channels-last, as `detr.images.decoding.resize` gives it
        return Prepared(pixels.view(*answer["shape"], 3).permute(2, 0, 1), answer["height"], answer["width"])

    def close(self) -> None:
        """End the processes. They end with this one in any case."""
        for _ in range(self._threads):
            self._wardens.get().close()
        for nursery in self._nurseries:
            nursery.wait()

    def _ask(self, work: str, data: bytes) -> tuple[Mapping[str, Any], torch.Tensor | None]:
        warden = self._wardens.get()
        reasons = []
        try:
            for attempt in range(MOST_TRIES):
                with self._first_or_alone(attempt):
                    try:
                        report, pixels = _exchange(warden, work, data)
                    except ConnectionError:
                        reasons.append("the process that watches over them ended")
                        warden.close()
                        (warden,) = self._start(1)
                        continue
                verdict = judge(report, self._limits)
                if isinstance(verdict, ImageError):
                    raise verdict
                if not isinstance(verdict, str):
                    return verdict, pixels
                reasons.append(verdict)
        finally:
            self._wardens.put(warden)
        raise DecoderLost(
            f"an image of {len(data):,} bytes could not be decoded in {MOST_TRIES} tries, none of which shows anything "
            f"about the image: {'; '.join(reasons)}"
        )

    @contextmanager
    def _first_or_alone(self, attempt: int) -> Iterator[None]:
        """Let later tries run one after the other: it may be that there was no room for so many at once."""
        if attempt == 0:
            yield
            return
        with self._alone:
            yield

    def _start(self, count: int) -> list[socket.socket]:
        """Start a nursery with `count` wardens, and return the connections to them."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        theirs = [pair[1].fileno() for pair in pairs]
        settings = replace(self._settings, sockets=tuple(theirs))
        nursery = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", CHILD, settings.to_json()],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=2,
            env=child_environment(os.environ),
            start_new_session=True,  # Ctrl-C is the actor's to answer
        )
        self._nurseries.append(nursery)
        for _, other in pairs:
            other.close()
        return [ours for ours, _ in pairs]


def judge(report: Report, limits: DecodingLimits) -> Mapping[str, Any] | ImageError | str:
    """Return the answer, what is wrong with the image, or in a sentence why this try says nothing about the image."""
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
            f"decoding it was stopped for sleeping longer than {limits.asleep_seconds:g} s, as in a deadlock: it "
            f"waited for no core and no disk ({_evidence(report)})"
        )
    if (
        report.ended == "died"
        and report.exit_code is not None
        and (report.exit_code >= 0 or -report.exit_code in _OWN_DOING)
    ):
        said = f"; it said: {report.said.splitlines()[-1][:300]}" if report.said else ""
        return DecoderCrashed(f"decoding it ended its process by {_how(report.exit_code)} ({_evidence(report)}{said})")
    if report.ended == "lost":
        return "its process had already ended"
    return f"its process was ended by {_how(report.exit_code)}, sent by another process"


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what children are given of our environment: what Python needs, and no credentials.

    Our `sys.path` goes along, which Ray may have extended. One thread each: there is a child for every core. The memory
    of what is imported in huge pages, so that a fork copies fewer of their tables.
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


def _exchange(warden: socket.socket, work: str, data: bytes) -> tuple[Report, torch.Tensor | None]:
    """Have a warden look at or prepare an image; return how it went, and the pixels as `(bytes,)` uint8 if any."""
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    pixels = os.memfd_create("pixels", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(image, left) :]
        socket.send_fds(warden, [json.dumps({"work": work}).encode()], [image, pixels])
        packet = warden.recv(PACKET_BYTES)
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
