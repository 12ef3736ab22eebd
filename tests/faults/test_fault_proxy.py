"""The proxy that the store's fault tests trust: it does what it is told, as often as told, and counts it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.faults.fault_proxy import FaultProxy, Faults, fault_proxy
from tests.waiting import wait_until

BODY = b"0123456789"


class Server(ThreadingHTTPServer):
    """Answers each GET with ten bytes and remembers what was put."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.put: list[tuple[str, bytes]] = []
        self.asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Host"])
        self._answer(BODY)

    def do_HEAD(self) -> None:
        self._answer(BODY)

    def do_DELETE(self) -> None:
        self.send_response(204)
        self.end_headers()

    def do_PUT(self) -> None:
        self.server.put.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with fault_proxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        yield proxy


class Client(http.client.HTTPConnection):
    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(proxy.endpoint.removeprefix("http://"), timeout=10)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self.request(method, path, body)
        answer = self.getresponse()
        return answer.status, answer.read()


def one(proxy: FaultProxy, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes] | str:
    """Ask once, over a connection of its own; return the answer or the name of the failure."""
    client = Client(proxy)
    try:
        return client.ask(method, path, body)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        client.close()


def test_without_faults_it_passes_everything_on_and_keeps_the_connection(server: Server, proxy: FaultProxy) -> None:
    asked: list[tuple[str, str, bytes | None]]
    asked = [("GET", "/a", None), ("HEAD", "/a", None), ("DELETE", "/a", None), ("PUT", "/b?c=d", b"x" * 100_000)]

    answers, addresses = [], set()
    with closing(Client(proxy)) as client:
        for one_asked in asked:
            answers.append(client.ask(*one_asked))
            addresses.add(client.sock.getsockname())

    assert answers == [(200, BODY), (200, b""), (204, b""), (200, b"")]
    assert len(addresses) == 1
    assert server.put == [("/b?c=d", b"x" * 100_000)]
    assert server.asked == [proxy.endpoint.removeprefix("http://")], "a signature covers the host"
    assert proxy.requests == {"GET": 1, "HEAD": 1, "DELETE": 1, "PUT": 1}
    assert proxy.injected == {}


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("slow_down", (503, b"<Code>SlowDown</Code>")),
        ("denied", (403, b"<Code>AccessDenied</Code>")),
        ("expired", (400, b"<Code>ExpiredToken</Code>")),
    ],
)
def test_a_refusal_is_s3s_own_and_the_server_does_not_see_the_request(
    server: Server, proxy: FaultProxy, fault: str, answer: tuple[int, bytes]
) -> None:
    proxy.faults = Faults(**{fault: 1.0})  # type: ignore[arg-type]

    got = one(proxy, "PUT", "/a", b"lost")

    assert isinstance(got, tuple)
    assert (got[0], answer[1] in got[1]) == (answer[0], True)
    assert server.put == []
    assert proxy.injected == {fault: 1}


def test_a_reset_comes_before_the_server_sees_the_request(server: Server, proxy: FaultProxy) -> None:
    proxy.faults = Faults(reset=1.0)

    assert one(proxy, "PUT", "/a", b"lost") == "ConnectionResetError"
    assert server.put == []
    assert proxy.injected == {"reset": 1}


def test_a_truncated_body_is_shorter_than_announced_and_a_shortened_one_is_not(proxy: FaultProxy) -> None:
    proxy.faults = Faults(truncate=1.0)
    assert one(proxy, "GET", "/a") == "IncompleteRead"

    proxy.faults = Faults(shorten=1.0)
    assert one(proxy, "GET", "/a") == (200, BODY[:5])
    assert one(proxy, "HEAD", "/a") == (200, b""), "there is nothing to cut"

    assert proxy.injected == {"truncate": 1, "shorten": 1}


def test_of_every_third_put_the_answer_is_lost_after_the_server_did_it(server: Server, proxy: FaultProxy) -> None:
    proxy.faults = Faults(lost_every=3)

    got = [one(proxy, "PUT", f"/{number}", b"x") for number in range(6)]

    fine, lost = (200, b""), "ConnectionResetError"
    assert got == [fine, fine, lost, fine, fine, lost]
    assert [path for path, _ in server.put] == [f"/{number}" for number in range(6)]
    assert proxy.injected == {"lost": 2}


def test_an_outage_resets_open_connections(proxy: FaultProxy) -> None:
    with closing(Client(proxy)) as client:
        client.ask("GET", "/a")

        proxy.go_down(3600.0)

        with pytest.raises(OSError, match=r"reset|closed|Broken pipe"):
            client.ask("GET", "/a")
    assert proxy.injected["down"] == 1
    proxy.come_back()
    wait_until(lambda: one(proxy, "GET", "/a") == (200, BODY), 20, "its coming back")


def test_an_outage_answers_nothing_even_where_a_request_overtakes_the_reset(
    server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Client(proxy)) as client:
        client.ask("GET", "/a")

        monkeypatch.setattr("tests.faults.fault_proxy._reset", lambda connection: None)
        proxy.go_down(3600.0)

        with pytest.raises(OSError, match="closed"):
            client.ask("GET", "/a")
    assert len(server.asked) == 1


def test_a_short_outage_ends_by_itself(proxy: FaultProxy) -> None:
    proxy.go_down(0.5)

    wait_until(lambda: one(proxy, "GET", "/a") == (200, BODY), 20, "its coming back")


def test_a_long_outage_can_be_ended(proxy: FaultProxy) -> None:
    proxy.go_down(3600.0)
    assert one(proxy, "GET", "/a") == "ConnectionRefusedError"

    proxy.come_back()

    wait_until(lambda: one(proxy, "GET", "/a") == (200, BODY), 20, "its coming back")


def test_a_quota_refuses_what_is_too_much_for_a_second(proxy: FaultProxy) -> None:
    proxy.faults = Faults(most_per_second=1)

    answers = [one(proxy, "GET", "/a") for _ in range(20)]  # within two seconds or three

    assert proxy.injected["slow_down"] == sum(answer != (200, BODY) for answer in answers) >= 10
    wait_until(lambda: one(proxy, "GET", "/a") == (200, BODY), 20, "the next second")


def test_only_what_matches_is_touched(proxy: FaultProxy) -> None:
    proxy.faults = Faults(slow_down=1.0, matching=r"\.jpg")

    assert one(proxy, "GET", "/a.part") == (200, BODY)
    assert one(proxy, "GET", "/a.jpg") != (200, BODY)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_faults_about_as_often_as_told(
    server: Server, proxy: FaultProxy, seed: int
) -> None:
    def failing(ask: Callable[[int], object]) -> list[int]:
        return [number for number in range(200) if ask(number) != (200, BODY)]

    proxy.faults = Faults(slow_down=0.2, reset=0.1, seed=seed)
    first = failing(lambda number: one(proxy, "GET", f"/bucket/{number}"))

    with fault_proxy(f"http://127.0.0.1:{server.server_port}", proxy.faults) as another:
        again = failing(lambda number: one(another, "GET", f"/other/{number}?X-Amz-Signature={number}"))

    assert first == again
    assert 35 <= len(first) <= 85
    assert proxy.injected == another.injected
    assert proxy.injected.total() == len(first)
