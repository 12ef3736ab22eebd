"""A store that sends steadily, but needs longer for one object than the usual limit of a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import pipelines.store.buckets
import pipelines.store.interface
import pipelines.store.obstore_store
from pipelines.store import Store, StoreDown, StoreOptions, open_store

SIZE = 1_500_000
SECONDS = 1.5


class SlowBodies(BaseHTTPRequestHandler):
    """Sends each object in pieces, never silent for more than a tenth of a second."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        first, last = (int(wanted[0]), min(SIZE - 1, int(wanted[1]))) if wanted[0] else (0, SIZE - 1)
        self.send_response(206 if wanted[0] else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 02:00:00 GMT")
        if wanted[0]:
            self.send_header("Content-Range", f"bytes {first}-{last}/{SIZE}")
        self.end_headers()
        piece = SIZE // 15
        try:
            for start in range(first, last + 1, piece):
                time.sleep(SECONDS / 15)
                self.wfile.write(b"x" * min(piece, last + 1 - start))
        except OSError:
            return  # the client has left


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket whose requests may take 1 second, or more if they transfer more than 100,000 bytes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowBodies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(pipelines.store.buckets, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(pipelines.store.interface, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(pipelines.store.interface, "SLOWEST_BYTES", 100_000)
    monkeypatch.setattr(pipelines.store.obstore_store, "QUICK_BYTES", 100_000)
    options = StoreOptions(
        anonymous=True, endpoint=f"http://127.0.0.1:{server.server_port}", region="us-east-1", retry_seconds=0.0
    )
    yield open_store("s3://lake", options)
    server.shutdown()
    server.server_close()


def test_large_objects_and_ranges_are_read_over_a_slow_link(store: Store) -> None:
    reads = (
        lambda: store.get("a.tif").data,
        lambda: store.get_range("a.tar", 0, SIZE),
        lambda: store.get_range("a.tar", 0, SIZE, if_match="1"),
    )
    with ThreadPoolExecutor(3) as pool:
        found = [future.result() for future in [pool.submit(read) for read in reads]]

    assert [len(data) for data in found] == [SIZE] * 3


def test_a_small_read_that_takes_longer_than_a_request_may_is_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.store.obstore_store, "QUICK_BYTES", SIZE)

    with pytest.raises(StoreDown):
        store.get_range("a.tar", 0, SIZE)
