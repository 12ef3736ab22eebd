"""A server between client and store that fails as told."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

import pytest


@dataclass(frozen=True)
class Reply:
    """An answer that the store itself never gave."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


Fault = Reply | Literal["lost", "refused", "reset", "cut", "none"]


@dataclass
class Between:
    """What to do to the next requests, in order, and then to all others.

    "refused": the connection ends without an answer; "reset": it is reset; "lost": it ends after the store has done
    what was asked; "cut": half of the answer's body is sent.
    """

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    always: Fault = "none"
    seen: list[str] = field(default_factory=list)

    def answer(self, status: int, body: str = "", **headers: str) -> Reply:
        return Reply(status, body, tuple((name.replace("_", "-"), value) for name, value in headers.items()))

    def s3_error(self, status: int, code: str, extra: str = "") -> Reply:
        return Reply(status, f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>m</Message>{extra}</Error>')


@pytest.fixture
def between() -> Iterator[Callable[[str], Between]]:
    """Start a server between the client and an upstream endpoint ("" for none)."""
    servers: list[ThreadingHTTPServer] = []

    def start(upstream: str = "") -> Between:
        server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        state = Between(f"http://127.0.0.1:{server.server_port}")
        server.RequestHandlerClass = _handler(state, upstream)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return state

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _handler(state: Between, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            state.seen.append(f"{self.command} {self.path}")
            fault = state.faults.pop(0) if state.faults else state.always
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            if fault in ("refused", "reset"):
                self.close_connection = True
                return
            if isinstance(fault, Reply):
                self.answer(fault.status, list(fault.headers), fault.body.encode())
                return
            connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=10)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if fault == "lost":
                self.close_connection = True
                return
            self.answer(answer.status, answer.getheaders(), data, cut=fault == "cut")

        def answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                    self.send_header(name, value)
            length = next((v for n, v in headers if n.lower() == "content-length"), str(len(data)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    return Handler
