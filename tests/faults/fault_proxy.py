"""A proxy on loopback that makes the HTTP server behind it misbehave: slow, refusing, cut off, answers lost, gone.

The Host header goes through as it came, so that signatures of S3 stay valid.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from typing import NamedTuple
from urllib.parse import urlsplit

PIECE = 64 * 1024
HEAD_BYTES = 256 * 1024
ENDS = (b"content-length", b"transfer-encoding")  # what tells a client where an answer ends
SIGNING = re.compile(r"[?&](x-amz-[a-z-]+|signature|expires)=[^&]*", re.IGNORECASE)
REFUSALS = {
    "slow_down": (503, "Slow Down", "SlowDown"),
    "denied": (403, "Forbidden", "AccessDenied"),
    "expired": (400, "Bad Request", "ExpiredToken"),
}


@dataclass(frozen=True, slots=True)
class Faults:
    """What shall go wrong. Rates are shares of the requests, 0..1, and of one request at most one comes true.

    Args:
        slow_down: 503 SlowDown, and the store does not see the request.
        denied: 403 AccessDenied, and the store does not see the request: throttling that looks like a refusal.
        expired: 400 ExpiredToken, and the store does not see the request.
        reset: The connection is reset, and the store does not see the request.
        truncate: A part of the answer's body, and the end, though the header announces more.
        shorten: A part of the answer's body, which the header agrees with: only who knows the size can tell.
        most_per_second: Of more requests the rest is refused with 503 SlowDown, as a store does that has a quota.
        lost_every: Of every Nth PUT the store does what it is told, and the connection is reset instead of an answer.
        latency_seconds: That each answer takes longer.
        matching: A pattern; requests whose path does not have it are left alone.
        seed: Each draw follows from it, the method, the path in the bucket, and how often that was asked for before.
    """

    slow_down: float = 0.0
    denied: float = 0.0
    expired: float = 0.0
    reset: float = 0.0
    truncate: float = 0.0
    shorten: float = 0.0
    most_per_second: int = 0
    lost_every: int = 0
    latency_seconds: float = 0.0
    matching: str = ""
    seed: int = 1


RATES = ("slow_down", "denied", "expired", "reset", "truncate", "shorten")


class _Message(NamedTuple):
    """A request or an answer: its first line, its header lines by lower-case name, and its body as it was sent."""

    first: bytes
    header: dict[bytes, bytes]
    body: bytes

    def raw(self) -> bytes:
        return b"\r\n".join([self.first, *self.header.values(), b"", self.body])

    @property
    def status(self) -> int:
        return int(self.first.split()[1])

    def value(self, name: bytes) -> bytes:
        return self.header.get(name, b"").partition(b":")[2].strip()


class FaultProxy:
    """The proxy; `faults` may be replaced while it serves, and `injected` and `requests` be read."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        self._upstream = (parts.hostname, parts.port or 80)
        self.faults = faults
        self.requests: Counter[str] = Counter()  # by method
        self.injected: Counter[str] = Counter()  # by fault, "down" among them: connections that were reset by it
        self._seen: Counter[tuple[str, str]] = Counter()
        self._second, self._this_second = 0, 0  # which it is, and how many requests it has had
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closing, self._is_back = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = self._listen(0)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def go_down(self, seconds: float) -> None:
        """Reset all connections and listen to nobody for so long, or until `come_back`; returns at once."""
        port = self._listener.getsockname()[1]
        with self._lock:
            self.injected["down"] += len(self._connections)
        self._hang_up()

        self._is_back.clear()

        def wait() -> None:
            self._is_back.wait(seconds)
            if not self._closing.is_set():
                self._listener = self._listen(port)

        self._start(wait)

    def come_back(self) -> None:
        """End an outage."""
        self._is_back.set()

    def close(self) -> None:
        """Stop serving."""
        self._closing.set()
        self._is_back.set()
        self._hang_up()
        for thread in self._threads:
            thread.join(timeout=30)
        self._hang_up()  # what came back in the meantime

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self._start(lambda: self._accept(listener))
        return listener

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _hang_up(self) -> None:
        with suppress(OSError):  # it hung up before
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts; closing alone would not
        self._listener.close()
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            _reset(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                is_serving = listener.fileno() >= 0
                if is_serving:
                    self._connections.add(connection)
            if not is_serving:  # accepted as the proxy went down, which did not see it
                _reset(connection)
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as incoming:
                while (request := _read(incoming, connection)) is not None:
                    # Linux hands out what arrives after the proxy went down, too, if this thread wakes late
                    if not self._is_open(connection) or not self._answer(request, connection):
                        break
        except OSError:  # the client went away, or `go_down` came: it sees a broken connection as it should
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            with suppress(OSError):
                connection.close()

    def _is_open(self, connection: socket.socket) -> bool:
        with self._lock:
            return connection in self._connections

    def _answer(self, request: _Message, connection: socket.socket) -> bool:
        """Answer one request, well or badly; return whether the connection can go on."""
        faults = self.faults
        method, target = request.first.decode("latin-1").split(" ")[:2]
        fault = self._draw(faults, method, target)
        if fault in REFUSALS:
            self._count(fault)
            connection.sendall(_refusal(*REFUSALS[fault], with_body=method != "HEAD"))
            return True
        if fault == "reset":
            self._count(fault)
            _reset(connection)
            return False
        time.sleep(faults.latency_seconds)
        try:
            answer = self._ask(request)
        except OSError:
            self._count("upstream gone")
            _reset(connection)
            return False
        if fault == "lost":
            self._count(fault)
            _reset(connection)
            return False
        if fault in ("truncate", "shorten") and method != "HEAD" and answer.body:
            self._count(fault)
            part = answer.body[: len(answer.body) // 2]
            header = dict(answer.header)
            if fault == "shorten":
                header[b"content-length"] = b"Content-Length: %d" % len(part)
            connection.sendall(_Message(answer.first, header, part).raw())
            return fault == "shorten"
        knows_its_end = method == "HEAD" or answer.status in (204, 304) or not answer.header.keys().isdisjoint(ENDS)
        if not knows_its_end:
            answer.header[b"connection"] = b"Connection: close"
        connection.sendall(answer.raw())
        return knows_its_end

    def _draw(self, faults: Faults, method: str, target: str) -> str:
        with self._lock:
            self.requests[method] += 1
            puts = self.requests["PUT"]
            key = (method, SIGNING.sub("", target).split("/", 2)[-1])  # without the bucket, whose name tests draw
            nth = self._seen[key]
            self._seen[key] += 1
        if not re.search(faults.matching, target):
            return ""
        if faults.most_per_second and not self._has_quota(faults.most_per_second):
            return "slow_down"
        if method == "PUT" and faults.lost_every and puts % faults.lost_every == 0:
            return "lost"
        digest = hashlib.sha256(repr((faults.seed, *key, nth)).encode()).digest()
        drawn = random.Random(digest).random()  # noqa: S311 - a test's chance, not a secret
        edge = 0.0
        for name in RATES:
            edge += getattr(faults, name)
            if drawn < edge:
                return name
        return ""

    def _has_quota(self, most_per_second: int) -> bool:
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._this_second = second, 0
            self._this_second += 1
            return self._this_second <= most_per_second

    def _count(self, fault: str) -> None:
        with self._lock:
            self.injected[fault] += 1

    def _ask(self, request: _Message) -> _Message:
        """Return what the server answers, over a connection of this request alone."""
        header = {name: line for name, line in request.header.items() if name != b"expect"}
        header[b"connection"] = b"Connection: close"
        with socket.create_connection(self._upstream, timeout=120) as server:
            server.sendall(_Message(request.first, header, request.body).raw())
            pieces = []
            while piece := server.recv(PIECE):
                pieces.append(piece)
        head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
        first, lines = _split(head)
        lines.pop(b"connection", None)
        return _Message(first, lines, body)


@contextmanager
def fault_proxy(upstream: str, faults: Faults | None = None) -> Iterator[FaultProxy]:
    """Put a proxy in front of a server, for as long as the block lasts."""
    proxy = FaultProxy(upstream, faults or Faults())
    try:
        yield proxy
    finally:
        proxy.close()


def _read(incoming: BufferedReader, connection: socket.socket) -> _Message | None:
    """Return the next whole request of a connection; None at its end."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = incoming.readline(HEAD_BYTES)
        if not line:
            return None
        head += line
    first, header = _split(head.removesuffix(b"\r\n\r\n"))
    message = _Message(first, header, b"")
    if message.value(b"expect"):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not message.value(b"transfer-encoding"), "no client of ours sends bodies of unknown length"
    length = int(message.value(b"content-length") or 0)
    body = incoming.read(length)
    return message._replace(body=body) if len(body) == length else None


def _split(head: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    return first, {line.partition(b":")[0].strip().lower(): line for line in lines}


def _refusal(status: int, reason: str, code: str, *, with_body: bool) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{reason}</Message></Error>'
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + (body if with_body else "")).encode()


def _reset(connection: socket.socket) -> None:
    """Close with a reset, as a crashed server does, instead of a goodbye."""
    with suppress(OSError):  # closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes who reads it; a file object on it would keep it open
        connection.close()
