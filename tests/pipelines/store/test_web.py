"""Web servers: everything that they do differently."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines.store import (
    Denied,
    Misconfigured,
    NotFound,
    ObjectTooLarge,
    StoreDown,
    StoreError,
    StoreOptions,
    Stores,
    Throttled,
    open_store,
)
from pipelines.store.web import _as_it_stands

BODY = b"0123456789" * 1000
ONE_TRY = StoreOptions(retry_seconds=0.0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    busy = 0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/plain.jpg":
            self.reply(200, BODY, ETag='W/"abc"')
        elif path == "/signed.jpg":
            self.reply(200 if self.path == "/signed.jpg?sig=a%2Fb+c&n=1" else 403, BODY)
        elif path == "/a%20b%23.jpg":
            self.reply(200, BODY)
        elif path == "/chunked.jpg":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(BODY), 999):
                part = BODY[at : at + 999]
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        elif path == "/gzip.jpg":
            self.reply(200, gzip.compress(BODY), Content_Encoding="gzip")
        elif path == "/bomb.jpg":
            self.reply(200, gzip.compress(bytes(20 * 1024**2)), Content_Encoding="gzip")
        elif path == "/endless.jpg":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # until the other side goes away
                while True:
                    self.wfile.write(bytes(100_000))
            self.close_connection = True
        elif path == "/moved.jpg":
            self.reply(302, b"", Location="/plain.jpg")
        elif path == "/range.jpg":
            first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
            if first >= len(BODY):
                self.reply(416, b"")
            else:
                self.reply(206, BODY[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(BODY)}")
        elif path == "/cut.jpg":
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:5000])
            self.close_connection = True
        elif path == "/busy-once.jpg":
            type(self).busy += 1
            self.reply(503 if type(self).busy == 1 else 200, BODY)
        else:
            self.reply(int(path[1:4]), b"<html>no</html>")

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "key", ["plain.jpg", "chunked.jpg", "gzip.jpg", "moved.jpg", "signed.jpg?sig=a%2Fb+c&n=1", "a b%23.jpg"]
)
def test_a_file_is_read_however_it_is_sent(web: str, key: str) -> None:
    assert Stores(ONE_TRY).get(f"{web}/{key}").data == BODY


@pytest.mark.parametrize("key", ["bomb.jpg", "endless.jpg"])
def test_a_file_that_would_fill_the_memory_is_given_up(web: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.store.web.LARGEST_BYTES", 1024**2)

    with pytest.raises(ObjectTooLarge, match=rf"{key} is longer than 1,048,576 bytes"):
        Stores(ONE_TRY).get(f"{web}/{key}")
    with pytest.raises(ObjectTooLarge, match=rf"{key} is longer than 1,000 bytes"):
        Stores(ONE_TRY).get(f"{web}/{key}", most_bytes=1_000)


def test_etag_and_size_are_reported_where_the_server_tells_them(web: str) -> None:
    store = open_store(web, ONE_TRY)

    assert store.get("plain.jpg").etag == "abc"
    assert store.get("chunked.jpg").etag is None
    assert (store.head("plain.jpg").size, store.head("plain.jpg").etag) == (10_000, "abc")
    assert (store.head("chunked.jpg").size, store.head("gzip.jpg").size) == (None, None)


def test_a_range_is_cut_out_where_the_server_sends_everything(web: str) -> None:
    store = open_store(web, ONE_TRY)

    assert store.get_range("range.jpg", 5, 8) == b"56789012"
    assert store.get_range("plain.jpg", 5, 8) == b"56789012"
    assert store.get_range("range.jpg", 20_000, 5) == b""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("404.jpg", NotFound),
        ("410.jpg", NotFound),
        ("401.jpg", Denied),
        ("403.jpg", Denied),
        ("451.jpg", Denied),
        ("429.jpg", Throttled),
        ("503.jpg", Throttled),
        ("500.jpg", StoreDown),
        ("cut.jpg", StoreDown),
    ],
)
def test_a_refusal_is_the_error_that_it_means_and_keeps_the_secret(
    web: str, key: str, expected: type[StoreError]
) -> None:
    with pytest.raises(StoreError, match=key) as raised:
        Stores(ONE_TRY).get(f"{web.replace('//', '//user:hunter2@')}/{key}?sig=hunter2")

    assert type(raised.value) is expected
    error: BaseException | None = raised.value
    while error is not None:
        assert "hunter2" not in repr(error)
        error = error.__cause__ or error.__context__


def test_a_server_that_was_busy_is_asked_again(web: str) -> None:
    assert open_store(web, StoreOptions(retry_seconds=5.0)).get("busy-once.jpg").data == BODY


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://bücher.example/ü b.jpg?x=ö%20c", "https://xn--bcher-kva.example/%C3%BC%20b.jpg?x=%C3%B6%20c"),
        ("http://bücher.example:8080/a%2Fb.jpg", "http://xn--bcher-kva.example:8080/a%2Fb.jpg"),
        ("https://Host.example/A%20b.jpg?sig=a/b+c==", "https://Host.example/A%20b.jpg?sig=a/b+c=="),
        ("http://[::1]:81/a.jpg", "http://[::1]:81/a.jpg"),
    ],
)
def test_only_the_name_of_an_international_host_is_written_otherwise(written: str, sent: str) -> None:
    assert str(_as_it_stands(written)) == sent


def test_a_file_of_an_international_host_is_read(web: str) -> None:
    host = web.replace("127.0.0.1", "ｌocalhost")  # noqa: RUF001 - a letter that DNS writes as another

    assert Stores(ONE_TRY).get(f"{host}/plain.jpg").data == BODY


def test_a_name_that_no_host_can_have_is_not_an_address() -> None:
    with pytest.raises(Misconfigured, match="is not a web address"):
        Stores().get("http://b\u00fc..example/a.jpg")


def test_no_server_is_a_store_that_is_down() -> None:
    with pytest.raises(StoreDown, match=r"http://127.0.0.1:9/a.jpg"):
        Stores(ONE_TRY).get("http://127.0.0.1:9/a.jpg")


@pytest.mark.parametrize("uri", ["http:///a.jpg", "http://host:port/a.jpg"])
def test_an_address_that_is_not_of_the_web_is_refused(uri: str) -> None:
    with pytest.raises(Misconfigured, match="not a web address"):
        Stores(ONE_TRY).get(uri)


def test_the_web_is_neither_listed_nor_written(web: str) -> None:
    store = open_store(f"{web}/folder", ONE_TRY)

    with pytest.raises(Misconfigured, match="list of URIs"):
        store.list()
    with pytest.raises(Misconfigured, match="can only be read"):
        store.put("k", b"1", create=True)
    with pytest.raises(Misconfigured, match="can only be read"):
        store.delete("k")
